"""From the sections of samplers to the samplers."""

from cflows import EulerMaruyama
from cflows.samplers.adaptive import AdaptiveSDE
from cflows.samplers.ancestral import AncestralSampling
from cflows.samplers.dpm_solver import DPMSolver
from cflows.samplers.edm_heun import EDMHeun
from cflows.samplers.predictor_corrector import PredictorCorrector
from cflows.samplers.probability_flow_ode import ProbabilityFlow
from cflows.samplers.reverse_diffusion import ReverseDiffusion
from cflows.samplers.sampler import OneStepSampler, Sampler
from cflows.samplers.stochastic_heun import StochasticHeun
from cflows.samplers.stochastic_runge_kutta import StochasticRungeKutta
from experiment.sections.samplers import AnySampler, OneStep, PredictorCorrectorSampler

ONE_STEP: dict[str, type[OneStepSampler]] = {
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": AncestralSampling,
    "stochastic_heun": StochasticHeun,
    "stochastic_runge_kutta": StochasticRungeKutta,
}
SAMPLERS: dict[str, type[Sampler]] = {
    **ONE_STEP,
    "adaptive": AdaptiveSDE,
    "probability_flow": ProbabilityFlow,
    "dpm_solver": DPMSolver,
    "edm_heun": EDMHeun,
}


def build_sampler(section: AnySampler) -> Sampler:
    """The sampler of a `[model.sampler]` section; where a setting is None, the sampler's own default stands.

    Raises:
        ValueError: settings that do not go together.
    """
    keywords = section.model_dump(exclude={"kind", "predictor"}, exclude_none=True)
    if isinstance(section, PredictorCorrectorSampler):
        return PredictorCorrector(predictor=_one_step(section.predictor), **keywords)
    return SAMPLERS[section.kind](**keywords)


def _one_step(section: OneStep) -> OneStepSampler:
    return ONE_STEP[section.kind](**section.model_dump(exclude={"kind"}))
