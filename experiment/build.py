"""From a config to data, a model over raw data and its training objective."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cflows import (
    SDE,
    VESDE,
    VPSDE,
    DenoisingScoreMatching,
    EulerMaruyama,
    LikelihoodWeighting,
    ScoreSDE,
    SubVPSDE,
)
from cflows.objectives.denoising import VarianceWeighting
from cflows.probability_flow import ODESolver
from core import DensityModel, ExactDivergence, Hutchinson, HutchPlusPlus, StandardNormal
from core.divergence import Divergence
from discrete import (
    NICE,
    NSF,
    Bijection,
    Compose,
    Dequantization,
    Flow,
    Glow,
    LinearFlow,
    Logit,
    RealNVP,
    VariationalDequantization,
)
from discrete.bijections.preprocessing import Scaling
from experiment import config as c
from experiment.data import Dataset, cifar10_lossless_4k, digits, mnist, table, toy
from experiment.errors import UserError
from experiment.objective import MaximumLikelihood, Preprocessed


@dataclass(frozen=True)
class Built:
    """A model and the objective that trains it; they share their parameters.

    Attributes:
        model: density over raw data, preprocessing included.
        objective: `forward(batch, generator=)` returns the loss of raw data.
    """

    model: DensityModel
    objective: MaximumLikelihood | Preprocessed


def load_data(data: c.Section, root: Path) -> Dataset:
    """The dataset that a config names.

    Args:
        data: the `[data]` section.
        root: folder of the data files.

    Raises:
        UserError: a missing, damaged or unusable file.
    """
    match data:
        case c.DigitsData():
            return digits(layout=data.layout)
        case c.ToyData():
            return toy(
                data.name,
                train_rows=data.train_rows,
                validation_rows=data.validation_rows,
                test_rows=data.test_rows,
                seed=data.seed,
            )
        case c.MNISTData():
            return mnist(root, layout=data.layout, validation_rows=data.validation_rows)
        case c.CifarData():
            return cifar10_lossless_4k(
                root, layout=data.layout, validation_rows=data.validation_rows, test_rows=data.test_rows
            )
        case c.TableData():
            return table(root / data.path, validation=data.validation, test=data.test, seed=data.seed)
    raise UserError(f"data.kind {type(data).__name__} has no loader.")


def build(
    config: c.Config, event_shape: tuple[int, ...], *, bins: int | None = None, rows: Tensor | None = None
) -> Built:
    """The model over raw data and its objective.

    Args:
        config: the experiment; its seed is not used here, parameters come from torch's global generator.
        event_shape: shape of one row.
        bins: levels of integer data, None for continuous data.
        rows: training rows to which a standardization is fitted; without them it waits for a state dict.

    Raises:
        UserError: preprocessing or model and data do not fit.

    Example:
        >>> from experiment.config import parse_config
        >>> config = parse_config({"data": {"kind": "digits"}, "model": {"kind": "nice"}}, source="example")
        >>> build(config, (64,), bins=17).model.event_shape
        torch.Size([64])
    """
    preprocessing = _preprocessing(config.preprocessing, event_shape, bins=bins, rows=rows)
    try:
        inner = _model(config.model, event_shape)
    except ValueError as error:
        raise UserError(f"model.kind={config.model.kind}: {error}") from error
    model = inner if preprocessing is None else Flow(preprocessing, inner)
    if isinstance(inner, ScoreSDE) and isinstance(config.model, c.ScoreSDEModel):
        if config.preprocessing.variational is not None:
            raise UserError(
                "preprocessing.variational trains by maximum likelihood, but model.kind=score_sde does not."
            )
        weighting = LikelihoodWeighting() if config.model.weighting == "likelihood" else VarianceWeighting()
        loss = DenoisingScoreMatching(inner, inner.sde, weighting=weighting, t_min=config.model.t_min)
        return Built(model, Preprocessed(preprocessing, loss))
    return Built(model, MaximumLikelihood(model))


def _preprocessing(
    section: c.Preprocessing,
    event_shape: tuple[int, ...],
    *,
    bins: int | None,
    rows: Tensor | None,
) -> Bijection | None:
    if (section.kind != "none" or section.variational is not None) and bins is None:
        raise UserError(
            f"preprocessing.kind={section.kind} and preprocessing.variational are for integer data, whose levels they "
            "map from [0, 1); for continuous data use kind='none' with standardize=true."
        )
    layers: list[Bijection] = [] if bins is None else [_dequantization(section, event_shape, bins)]
    if isinstance(section, c.LogitPreprocessing):
        layers.append(Logit(event_shape, alpha=section.alpha))
    if isinstance(section, c.ScalePreprocessing):
        layers.append(Scaling(event_shape, loc=0.5, scale=0.5))
    if section.standardize:
        layers.append(_standardization(layers, event_shape, rows))
    return Compose(*layers) if layers else None


def _dequantization(section: c.Preprocessing, event_shape: tuple[int, ...], bins: int) -> Bijection:
    if section.variational is None:
        return Dequantization(event_shape, bins=bins)
    noise = section.variational
    return VariationalDequantization(event_shape, bins=bins, layers=noise.layers, hidden=noise.hidden)


def _standardization(layers: list[Bijection], event_shape: tuple[int, ...], rows: Tensor | None) -> Scaling:
    """Mean and standard deviation of the training rows behind `layers`, with dequantization noise of its own seed."""
    if rows is None:
        return Scaling(event_shape, loc=torch.zeros(event_shape), scale=torch.ones(event_shape))
    z = rows
    if layers:
        z, _ = Compose(*layers)(rows, generator=torch.Generator().manual_seed(0))
    if len(z) < 2:
        raise UserError(f"preprocessing.standardize needs 2 training rows or more, but there are {len(z)}.")
    std, mean = torch.std_mean(z, 0)
    constant = (std <= 1e-12 * mean.abs()).flatten().nonzero()
    if len(constant):
        raise UserError(
            f"preprocessing.standardize: column {constant[0].item()} of the training rows is constant, so it has no "
            "scale; remove the column."
        )
    return Scaling(event_shape, loc=mean, scale=std)


def _model(section: c.Model, event_shape: tuple[int, ...]) -> DensityModel:
    match section:
        case c.NICEModel():
            base = StandardNormal(event_shape) if section.base == "normal" else None
            return NICE(event_shape, layers=section.layers, hidden=section.hidden, dropout=section.dropout, base=base)
        case c.RealNVPModel():
            return RealNVP(event_shape, **section.model_dump(exclude={"kind"}))
        case c.GlowModel():
            return Glow(event_shape, **section.model_dump(exclude={"kind"}))
        case c.NSFModel():
            return NSF(event_shape, **section.model_dump(exclude={"kind"}))
        case c.LinearModel():
            return LinearFlow(event_shape, **section.model_dump(exclude={"kind"}))
        case c.ScoreSDEModel():
            return ScoreSDE(
                event_shape,
                sde=_sde(section.sde),
                hidden=section.hidden,
                dropout=section.dropout,
                frequencies=section.frequencies,
                data_std=section.data_std,
                t_min=section.t_min,
                divergence=_divergence(section.divergence),
                solver=ODESolver(**section.solver.model_dump()),
                error_factor=section.error_factor,
                sampler=EulerMaruyama(**section.sampler.model_dump()),
            )


def _sde(section: c.VPProcess | c.SubVPProcess | c.VEProcess) -> SDE:
    kinds: dict[str, type[SDE]] = {"vp": VPSDE, "sub_vp": SubVPSDE, "ve": VESDE}
    return kinds[section.kind](**section.model_dump(exclude={"kind"}))


def _divergence(section: c.ExactTrace | c.HutchinsonTrace | c.HutchPlusPlusTrace | None) -> Divergence | None:
    if section is None:
        return None
    kinds: dict[str, type[Divergence]] = {
        "exact": ExactDivergence,
        "hutchinson": Hutchinson,
        "hutch++": HutchPlusPlus,
    }
    return kinds[section.kind](**section.model_dump(exclude={"kind"}))


def parameter_count(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
