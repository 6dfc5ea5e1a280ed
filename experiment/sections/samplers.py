"""How a score model under an SDE is sampled."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool

from cflows.ode.solver import Method
from cflows.time_grid import Spacing
from experiment.sections.base import Count, Positive, Section, Share

PositiveTime = Annotated[float, Field(gt=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]


def _kind(default: str) -> BeforeValidator:
    """What a table is that names no kind."""
    return BeforeValidator(lambda table: {"kind": default, **table} if isinstance(table, dict) else table)


class OneStepSection(Section):
    """What the samplers share that move by one step at a time; see `cflows.samplers.sampler.OneStepSampler`."""

    steps: Count = 1000
    t_min: Share = 1e-3
    spacing: Spacing = "time"
    denoise: StrictBool = True


class EulerMaruyamaSampler(OneStepSection):
    """See `cflows.EulerMaruyama`."""

    kind: Literal["euler_maruyama"] = "euler_maruyama"


class ReverseDiffusionSampler(OneStepSection):
    """See `cflows.ReverseDiffusion`."""

    kind: Literal["reverse_diffusion"] = "reverse_diffusion"


class AncestralSampler(OneStepSection):
    """See `cflows.AncestralSampling`."""

    kind: Literal["ancestral"] = "ancestral"
    variance: Literal["posterior", "transition"] = "posterior"


class StochasticHeunSampler(OneStepSection):
    """See `cflows.StochasticHeun`."""

    kind: Literal["stochastic_heun"] = "stochastic_heun"


class StochasticRungeKuttaSampler(OneStepSection):
    """See `cflows.StochasticRungeKutta`."""

    kind: Literal["stochastic_runge_kutta"] = "stochastic_runge_kutta"


OneStep = (
    EulerMaruyamaSampler
    | ReverseDiffusionSampler
    | AncestralSampler
    | StochasticHeunSampler
    | StochasticRungeKuttaSampler
)


class AdaptiveSampler(Section):
    """See `cflows.AdaptiveSDE`."""

    kind: Literal["adaptive"] = "adaptive"
    rtol: Positive = 0.05
    atol: Positive = 0.01
    t_min: PositiveTime = 1e-3
    max_levels: int = Field(20, strict=True, ge=1, le=60)
    denoise: StrictBool = True


class PredictorCorrectorSampler(Section):
    """See `cflows.PredictorCorrector`."""

    kind: Literal["predictor_corrector"] = "predictor_corrector"
    predictor: Annotated[OneStep, Field(discriminator="kind"), _kind("reverse_diffusion")] = ReverseDiffusionSampler()
    snr: float = Field(0.16, gt=0, lt=1)
    corrector_steps: int = Field(1, strict=True, ge=0)
    norms: Literal["expected", "batch"] = "expected"


class ProbabilityFlowSampler(Section):
    """See `cflows.ProbabilityFlow`."""

    kind: Literal["probability_flow"] = "probability_flow"
    method: Method = "dopri5"
    rtol: Positive = 1e-5
    atol: Positive = 1e-5
    steps: Count = 100
    t_min: Share = 1e-3
    spacing: Spacing = "time"
    denoise: StrictBool = False


class DPMSolverSampler(Section):
    """See `cflows.DPMSolver`."""

    kind: Literal["dpm_solver"] = "dpm_solver"
    steps: Count = 20
    order: int = Field(2, strict=True, ge=1, le=3)
    spacing: Spacing = "log_snr"
    t_min: PositiveTime = 1e-3
    variant: Literal["ode", "sde"] = "ode"
    denoise: StrictBool = False


class EDMHeunSampler(Section):
    """See `cflows.EDMHeun`; `s_max` has no end where it is omitted."""

    kind: Literal["edm_heun"] = "edm_heun"
    steps: Count = 18
    churn: NotNegative = 0.0
    s_min: NotNegative = 0.0
    s_max: Positive | None = None
    s_noise: NotNegative = 1.0
    spacing: Spacing = "karras"
    t_min: PositiveTime = 1e-3
    denoise: StrictBool = True


AnySampler = (
    OneStep | AdaptiveSampler | PredictorCorrectorSampler | ProbabilityFlowSampler | DPMSolverSampler | EDMHeunSampler
)
ReverseSampler = Annotated[
    AnySampler,
    Field(discriminator="kind"),
    _kind("euler_maruyama"),  # the only one there was when the table had no kind
]
