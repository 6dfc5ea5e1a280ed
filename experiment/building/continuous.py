"""From the sections of continuous models to the models and their objectives."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cflows import (
    FFJORD,
    NCSN,
    SDE,
    VESDE,
    VPSDE,
    ConditionalFlowMatching,
    CosineVPSDE,
    CosineWeighting,
    DenoisingScoreMatching,
    EDMWeighting,
    EnergyModel,
    FiniteDifferenceScoreMatching,
    FixedNoiseDenoising,
    FlowMatching,
    ImplicitScoreMatching,
    LadderDenoising,
    LearnedWeighting,
    LikelihoodWeighting,
    RegularizedLikelihood,
    ScoreSDE,
    SlicedScoreMatching,
    SubVPSDE,
    VarianceWeighting,
    geometric_ladder,
    largest_distance,
)
from cflows.objectives.weightings import Weighting
from cflows.ode.solver import ODESolver
from core import DiagonalNormal, ExactDivergence, GenerativeModel, Hutchinson, HutchPlusPlus
from core.divergence import Divergence
from experiment.building.samplers import build_sampler
from experiment.sections.base import Section
from experiment.sections.continuous import (
    CosineVPProcess,
    EnergyModelSection,
    ExactTrace,
    HutchinsonTrace,
    HutchPlusPlusTrace,
    Ladder,
    NCSNModel,
    ScoreSDEModel,
    SubVPProcess,
    VEProcess,
    VPProcess,
)
from experiment.sections.continuous_flows import FFJORDModel, FlowMatchingModel

Rows = Callable[[], Tensor]
# What their losses are called in logs.
CONTINUOUS = {
    "score_sde": "denoising_loss",
    "ncsn": "denoising_loss",
    "energy": "score_matching_loss",
    "ffjord": "regularized_nll_nats",
    "flow_matching": "flow_matching_loss",
}


def build_continuous(
    section: Section, event_shape: tuple[int, ...], *, rows: Rows | None = None, classes: int = 0
) -> tuple[GenerativeModel, nn.Module]:
    """A continuous model and the objective that trains it; they share their parameters.

    Args:
        section: the `[model]` section.
        event_shape: shape of one row.
        rows: returns the training rows as the model sees them, for what is fitted to them; without them it waits for a
            state dict.
        classes: width of the context, 0 for none.

    Raises:
        ValueError: a model and data that do not fit.
    """
    match section:
        case ScoreSDEModel():
            return _score_sde(section, event_shape, classes)
        case NCSNModel():
            return _ncsn(section, event_shape, rows, classes)
        case EnergyModelSection():
            return _energy(section, event_shape, classes)
        case FFJORDModel():
            return _ffjord(section, event_shape, classes)
        case FlowMatchingModel():
            return _flow_matching(section, event_shape, classes)
    raise ValueError(f"{type(section).__name__} is no continuous model.")


def _score_sde(section: ScoreSDEModel, event_shape: tuple[int, ...], classes: int) -> tuple[GenerativeModel, nn.Module]:
    model = ScoreSDE(
        event_shape,
        sde=_sde(section.sde),
        network=section.network,
        hidden=section.hidden,
        depth=section.depth,
        heads=section.heads,
        attention=section.attention,
        patch=section.patch,
        dropout=section.dropout,
        context_features=classes,
        frequencies=section.frequencies,
        parametrization=section.parametrization,
        data_std=section.data_std,
        t_min=section.t_min,
        divergence=_divergence(section.divergence),
        solver=ODESolver(**section.solver.model_dump()),
        error_factor=section.error_factor,
        sampler=build_sampler(section.sampler),
    )
    return model, DenoisingScoreMatching(model, model.sde, weighting=_weighting(section), t_min=section.t_min)


def _weighting(section: ScoreSDEModel) -> Weighting:
    match section.weighting:
        case "variance":
            return VarianceWeighting()
        case "likelihood":
            return LikelihoodWeighting()
        case "edm":
            return EDMWeighting(data_std=section.data_std)
        case "cosine":
            return CosineWeighting()
        case "learned":
            return LearnedWeighting()


def _ncsn(
    section: NCSNModel, event_shape: tuple[int, ...], rows: Rows | None, classes: int
) -> tuple[GenerativeModel, nn.Module]:
    keywords = section.model_dump(exclude={"kind", "ladder", "weighting", "sampler"})
    sigmas = _ladder(section.ladder, rows)
    model = NCSN(event_shape, sigmas=sigmas, context_features=classes, **keywords, **section.sampler.model_dump())
    return model, LadderDenoising(model, model.sigmas, weighting=section.weighting)


def _energy(
    section: EnergyModelSection, event_shape: tuple[int, ...], classes: int
) -> tuple[GenerativeModel, nn.Module]:
    base = DiagonalNormal(event_shape, scale=section.base_scale, learnable=False)
    keywords = section.model_dump(include={"hidden", "step_size", "steps"})
    model = EnergyModel(event_shape, base=base, context_features=classes, **keywords)
    options = section.objective.model_dump(exclude={"kind"})
    match section.objective.kind:
        case "implicit":
            return model, ImplicitScoreMatching(model)
        case "sliced":
            return model, SlicedScoreMatching(model, **options)
        case "finite_difference":
            return model, FiniteDifferenceScoreMatching(model, **options)
        case "denoising":
            return model, FixedNoiseDenoising(model, **options)


def _ffjord(section: FFJORDModel, event_shape: tuple[int, ...], classes: int) -> tuple[GenerativeModel, nn.Module]:
    keywords = section.model_dump(exclude={"kind", "objective", "divergence", "solver"})
    model = FFJORD(
        event_shape,
        context_features=classes,
        divergence=_divergence(section.divergence),
        solver=ODESolver(**section.solver.model_dump()),
        **keywords,
    )
    training = section.objective
    objective = RegularizedLikelihood(
        model,
        divergence=_divergence(training.divergence),
        solver=ODESolver(**training.solver.model_dump()),
        **training.model_dump(include={"kinetic", "jacobian", "gradient"}),
    )
    return model, objective


def _flow_matching(
    section: FlowMatchingModel, event_shape: tuple[int, ...], classes: int
) -> tuple[GenerativeModel, nn.Module]:
    keywords = section.model_dump(exclude={"kind", "coupling", "times", "divergence", "solver"})
    model = FlowMatching(
        event_shape,
        context_features=classes,
        divergence=_divergence(section.divergence),
        solver=ODESolver(**section.solver.model_dump()),
        **keywords,
    )
    if classes and section.coupling == "optimal":
        raise ValueError("coupling='optimal' has no place for labels; set data.labels=false or coupling='independent'.")
    return model, ConditionalFlowMatching(
        model, sigma_min=section.sigma_min, coupling=section.coupling, times=section.times
    )


def _ladder(section: Ladder, rows: Rows | None) -> Tensor:
    sigma_max = section.sigma_max
    if sigma_max == "largest_distance":
        # Without rows any ladder of this length will do: the state dict brings the one that was trained.
        fixed = torch.Generator().manual_seed(0)
        sigma_max = 2 * section.sigma_min if rows is None else largest_distance(rows(), generator=fixed).item()
    return geometric_ladder(sigma_max, section.sigma_min, levels=section.levels)


def _sde(section: VPProcess | CosineVPProcess | SubVPProcess | VEProcess) -> SDE:
    kinds: dict[str, type[SDE]] = {"vp": VPSDE, "cosine_vp": CosineVPSDE, "sub_vp": SubVPSDE, "ve": VESDE}
    return kinds[section.kind](**section.model_dump(exclude={"kind"}))


def _divergence(section: ExactTrace | HutchinsonTrace | HutchPlusPlusTrace | None) -> Divergence | None:
    if section is None:
        return None
    kinds: dict[str, type[Divergence]] = {
        "exact": ExactDivergence,
        "hutchinson": Hutchinson,
        "hutch++": HutchPlusPlus,
    }
    return kinds[section.kind](**section.model_dump(exclude={"kind"}))
