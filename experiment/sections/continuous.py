"""Score models: process, network, trace estimator, solver and sampler."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool

from experiment.sections.base import Count, Positive, Section, Share, Widths


class VPProcess(Section):
    """See `cflows.VPSDE`."""

    kind: Literal["vp"]
    beta_min: Positive = 0.1
    beta_max: Positive = 20.0


class SubVPProcess(Section):
    """See `cflows.SubVPSDE`."""

    kind: Literal["sub_vp"]
    beta_min: Positive = 0.1
    beta_max: Positive = 20.0


class VEProcess(Section):
    """See `cflows.VESDE`."""

    kind: Literal["ve"]
    sigma_min: Positive = 0.01
    sigma_max: Positive = 50.0
    transition: Literal["exact", "convention"] = "exact"


class ExactTrace(Section):
    """See `core.ExactDivergence`."""

    kind: Literal["exact"]
    chunk: Count = 64


class HutchinsonTrace(Section):
    """See `core.Hutchinson`."""

    kind: Literal["hutchinson"]
    probes: Count = 8
    distribution: Literal["rademacher", "gaussian"] = "rademacher"


class HutchPlusPlusTrace(Section):
    """See `core.HutchPlusPlus`."""

    kind: Literal["hutch++"]
    probes: int = Field(12, strict=True, ge=3, multiple_of=3)


class Solver(Section):
    """See `cflows.probability_flow.ODESolver`."""

    method: Literal[
        "dopri5", "dopri8", "bosh3", "adaptive_heun", "fehlberg2", "euler", "midpoint", "heun2", "heun3", "rk4"
    ] = "dopri5"
    rtol: Positive = 1e-5
    atol: Positive = 1e-5
    steps: int = Field(100, strict=True, ge=2)


class EulerMaruyamaSampler(Section):
    """See `cflows.EulerMaruyama`."""

    steps: Count = 1000
    t_min: Share = 1e-3
    denoise: StrictBool = True


class ScoreSDEModel(Section):
    """See `cflows.ScoreSDE` and `cflows.DenoisingScoreMatching`."""

    kind: Literal["score_sde"]
    sde: Annotated[VPProcess | SubVPProcess | VEProcess, Field(discriminator="kind")] = VPProcess(kind="vp")
    hidden: Widths = (256, 256, 256)
    dropout: Share = 0.0
    frequencies: Count = 8
    data_std: Positive = 1.0
    t_min: float = Field(1e-5, gt=0, lt=1)
    weighting: Literal["variance", "likelihood"] = "variance"
    divergence: Annotated[ExactTrace | HutchinsonTrace | HutchPlusPlusTrace, Field(discriminator="kind")] | None = None
    solver: Solver = Solver()
    error_factor: float = Field(10.0, gt=1)
    sampler: EulerMaruyamaSampler = EulerMaruyamaSampler()
