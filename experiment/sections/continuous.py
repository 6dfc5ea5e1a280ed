"""Score models: process, network, trace estimator, solver and sampler."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool

from cflows import CosineVPSDE
from cflows.ode.solver import Method
from experiment.sections.base import Count, Positive, Section, Share, Widths
from experiment.sections.samplers import EulerMaruyamaSampler, ReverseSampler


class VPProcess(Section):
    """See `cflows.VPSDE`."""

    kind: Literal["vp"]
    beta_min: Positive = 0.1
    beta_max: Positive = 20.0


class CosineVPProcess(Section):
    """See `cflows.CosineVPSDE`."""

    kind: Literal["cosine_vp"]
    offset: Positive = CosineVPSDE.offset
    scale_min: float = Field(CosineVPSDE.scale_min, gt=0, lt=1)


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


Directions = Literal["rademacher", "gaussian", "sphere"]


class HutchinsonTrace(Section):
    """See `core.Hutchinson`."""

    kind: Literal["hutchinson"]
    probes: Count = 8
    distribution: Directions = "rademacher"


class HutchPlusPlusTrace(Section):
    """See `core.HutchPlusPlus`."""

    kind: Literal["hutch++"]
    probes: int = Field(12, strict=True, ge=3, multiple_of=3)


class Solver(Section):
    """See `cflows.ODESolver`."""

    method: Method = "dopri5_per_sample"
    rtol: Positive = 1e-5
    atol: Positive = 1e-5
    steps: int = Field(100, strict=True, ge=2)


class ScoreSDEModel(Section):
    """See `cflows.ScoreSDE` and `cflows.DenoisingScoreMatching`."""

    kind: Literal["score_sde"]
    sde: Annotated[VPProcess | CosineVPProcess | SubVPProcess | VEProcess, Field(discriminator="kind")] = VPProcess(
        kind="vp"
    )
    network: Literal["mlp", "unet"] = "mlp"
    hidden: Widths = (256, 256, 256)
    depth: Count = 2
    heads: int = Field(0, strict=True, ge=0)
    attention: tuple[Annotated[int, Field(strict=True, ge=0)], ...] | None = None
    patch: Count = 1
    dropout: Share = 0.0
    frequencies: Count = 8
    parametrization: Literal["preconditioned", "score", "noise", "data", "velocity"] = "preconditioned"
    data_std: Positive = 1.0
    t_min: float = Field(1e-5, gt=0, lt=1)
    weighting: Literal["variance", "likelihood", "edm", "cosine", "learned"] = "variance"
    divergence: Annotated[ExactTrace | HutchinsonTrace | HutchPlusPlusTrace, Field(discriminator="kind")] | None = None
    solver: Solver = Solver()
    error_factor: float = Field(10.0, gt=1)
    label_dropout: Share = 0.0
    sampler: ReverseSampler = EulerMaruyamaSampler()


class Ladder(Section):
    """See `cflows.noise_ladder`; `largest_distance` is that of two training rows as the model sees them."""

    sigma_max: Positive | Literal["largest_distance"] = 1.0
    sigma_min: Positive = 0.01
    levels: Count = 10


class AnnealedLangevinSampler(Section):
    """See `cflows.annealed_langevin`; the step size matches the ladder where none is given."""

    step_size: Positive | None = None
    steps: Count = 100
    denoise: StrictBool = True
    start: Literal["normal", "uniform"] = "normal"


class NCSNModel(Section):
    """See `cflows.NCSN` and `cflows.LadderDenoising`."""

    kind: Literal["ncsn"]
    ladder: Ladder = Ladder()
    network: Literal["mlp", "unet", "refinenet"] | None = None
    conditioning: Literal["embedding", "scaling", "instance_norm"] = "embedding"
    hidden: Widths = (128, 128, 128)
    depth: Count = 2
    heads: int = Field(0, strict=True, ge=0)
    dropout: Share = 0.0
    frequencies: Count = 8
    data_std: Positive = 1.0
    weighting: Literal["variance", "uniform"] = "variance"
    sampler: AnnealedLangevinSampler = AnnealedLangevinSampler()


class ImplicitObjective(Section):
    """See `cflows.ImplicitScoreMatching`."""

    kind: Literal["implicit"]


class SlicedObjective(Section):
    """See `cflows.SlicedScoreMatching`."""

    kind: Literal["sliced"]
    projections: Count = 1
    distribution: Directions = "rademacher"
    variance_reduced: StrictBool = True


class FiniteDifferenceObjective(Section):
    """See `cflows.FiniteDifferenceScoreMatching`."""

    kind: Literal["finite_difference"]
    delta: Positive = 0.05
    projections: Count = 1
    distribution: Directions = "rademacher"


class FixedNoiseObjective(Section):
    """See `cflows.FixedNoiseDenoising`."""

    kind: Literal["denoising"]
    sigma: Positive


class EnergyModelSection(Section):
    """See `cflows.EnergyModel`, with the base N(0, base_scale²)."""

    kind: Literal["energy"]
    hidden: Widths = (128, 128)
    base_scale: Positive = 1.0
    objective: Annotated[
        ImplicitObjective | SlicedObjective | FiniteDifferenceObjective | FixedNoiseObjective,
        Field(discriminator="kind"),
    ] = SlicedObjective(kind="sliced")
    step_size: Positive = 0.05
    steps: Count = 500
