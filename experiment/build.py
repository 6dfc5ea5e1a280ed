"""From a config to data, a model over raw data and its training objective."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from core import DensityModel, GenerativeModel, StandardNormal
from discrete import (
    IAF,
    MADE,
    MAF,
    NICE,
    NSF,
    AutoregressiveMLP,
    AutoregressiveTransformer,
    Bijection,
    Compose,
    Dequantization,
    Flow,
    Glow,
    LinearFlow,
    Logit,
    PixelCNN,
    RealNVP,
    TransformerFlow,
    VariationalDequantization,
    WaveNet,
)
from discrete.bijections.preprocessing import Scaling
from experiment.config import Config, Model
from experiment.continuous import CONTINUOUS, build_continuous
from experiment.data import Dataset, bsds300_patches, cifar10_lossless_4k, digits, mnist, table, toy
from experiment.decoded import Decoded
from experiment.errors import UserError
from experiment.objective import MaximumLikelihood, Preprocessed
from experiment.sections.base import Section
from experiment.sections.continuous import ScoreSDEModel
from experiment.sections.data import (
    BSDSData,
    CifarData,
    DigitsData,
    LogitPreprocessing,
    MNISTData,
    NoPreprocessing,
    Preprocessing,
    ScalePreprocessing,
    TableData,
    ToyData,
)
from experiment.sections.flows import MAFModel, NICEModel

FLOWS: dict[str, Callable[..., DensityModel]] = {
    "real_nvp": RealNVP,
    "glow": Glow,
    "nsf": NSF,
    "linear": LinearFlow,
    "made": MADE,
    "maf": MAF,
    "iaf": IAF,
    "transformer_flow": TransformerFlow,
}
MASSES: dict[str, Callable[..., DensityModel]] = {
    "autoregressive_mlp": AutoregressiveMLP,
    "pixel_cnn": PixelCNN,
    "wave_net": WaveNet,
    "autoregressive_transformer": AutoregressiveTransformer,
}


@dataclass(frozen=True)
class Built:
    """A model and the objective that trains it; they share their parameters.

    Attributes:
        model: over raw data, preprocessing included; most are densities.
        objective: `forward(batch, generator=)` returns the loss of raw data.
    """

    model: GenerativeModel
    objective: MaximumLikelihood | Preprocessed


def load_data(data: Section, root: Path) -> Dataset:
    """The dataset that a config names.

    Args:
        data: the `[data]` section.
        root: folder of the data files.

    Raises:
        UserError: a missing, damaged or unusable file.
    """
    match data:
        case DigitsData():
            return digits(layout=data.layout, labels=data.labels)
        case ToyData():
            return toy(
                data.name,
                train_rows=data.train_rows,
                validation_rows=data.validation_rows,
                test_rows=data.test_rows,
                seed=data.seed,
            )
        case MNISTData():
            return mnist(root, layout=data.layout, validation_rows=data.validation_rows, labels=data.labels)
        case CifarData():
            return cifar10_lossless_4k(
                root, layout=data.layout, validation_rows=data.validation_rows, test_rows=data.test_rows
            )
        case BSDSData():
            return bsds300_patches(root, **data.model_dump(exclude={"kind"}))
        case TableData():
            return table(root / data.path, validation=data.validation, test=data.test, seed=data.seed)
    raise UserError(f"data.kind {type(data).__name__} has no loader.")


def build(
    config: Config,
    event_shape: tuple[int, ...],
    *,
    bins: int | None = None,
    classes: int = 0,
    rows: Tensor | None = None,
) -> Built:
    """The model over raw data and its objective.

    Args:
        config: the experiment; its seed is not used here, parameters come from torch's global generator.
        event_shape: shape of one row.
        bins: levels of integer data, None for continuous data.
        classes: classes of labelled data, 0 for none: with them the model is one of x given the class as one-hot.
        rows: training rows to which a standardization is fitted; without them it waits for a state dict.

    Raises:
        UserError: preprocessing or model and data do not fit.

    Example:
        >>> from experiment.config import parse_config
        >>> config = parse_config({"data": {"kind": "digits"}, "model": {"kind": "nice"}}, source="example")
        >>> build(config, (64,), bins=17).model.event_shape
        torch.Size([64])
    """
    kind = config.model.kind
    if kind in MASSES:
        _check_raw(config, bins)
        preprocessing = None
    else:
        preprocessing = build_preprocessing(config.preprocessing, event_shape, bins=bins, rows=rows)
    try:
        if kind in CONTINUOUS:
            return _continuous(config, event_shape, preprocessing, rows, classes)
        inner = _model(config.model, event_shape, bins=bins, classes=classes)
    except ValueError as error:
        raise UserError(f"model.kind={kind}: {error}") from error
    model = inner if preprocessing is None else Flow(preprocessing, inner)
    return Built(model, MaximumLikelihood(model))


def _continuous(
    config: Config, event_shape: tuple[int, ...], preprocessing: Bijection | None, rows: Tensor | None, classes: int
) -> Built:
    """A continuous model behind its preprocessing, and its objective on preprocessed rows."""
    if config.preprocessing.variational is not None:
        raise UserError(
            f"preprocessing.variational trains with a discrete flow, but model.kind={config.model.kind} is none."
        )
    fitted = None if rows is None else partial(_preprocess, preprocessing, rows)
    dropout = config.model.label_dropout if isinstance(config.model, ScoreSDEModel) else 0.0
    if dropout and not classes:
        raise ValueError(f"label_dropout={dropout} leaves out labels, but the data have none; set data.labels=true.")
    inner, objective = build_continuous(config.model, event_shape, rows=fitted, classes=classes)
    model: GenerativeModel = inner
    if preprocessing is not None:
        model = Flow(preprocessing, inner) if isinstance(inner, DensityModel) else Decoded(preprocessing, inner)
    metric = CONTINUOUS[config.model.kind]
    return Built(model, Preprocessed(preprocessing, objective, metric=metric, context_dropout=dropout))


def _check_raw(config: Config, bins: int | None) -> None:
    """A model of probability mass takes whole numbers as they are."""
    if bins is None or config.preprocessing != NoPreprocessing():
        found = "continuous data" if bins is None else f"preprocessing.kind={config.preprocessing.kind} of its own"
        raise UserError(
            f"model.kind={config.model.kind} gives whole numbers a probability mass: it takes integer data without "
            f"preprocessing, but has {found}."
        )


def build_preprocessing(
    section: Preprocessing,
    event_shape: tuple[int, ...],
    *,
    bins: int | None,
    rows: Tensor | None,
) -> Bijection | None:
    """What stands between raw data and the model; None for continuous data as they are.

    Args:
        section: the `[preprocessing]` section.
        event_shape: shape of one row.
        bins: levels of integer data, None for continuous data.
        rows: training rows to which a standardization is fitted; without them it waits for a state dict.

    Raises:
        UserError: preprocessing and data do not fit.
    """
    if (section.kind != "none" or section.variational is not None) and bins is None:
        raise UserError(
            f"preprocessing.kind={section.kind} and preprocessing.variational are for integer data, whose levels they "
            "map from [0, 1); for continuous data use kind='none' with standardize=true."
        )
    layers: list[Bijection] = [] if bins is None else [_dequantization(section, event_shape, bins)]
    if isinstance(section, LogitPreprocessing):
        layers.append(Logit(event_shape, alpha=section.alpha))
    if isinstance(section, ScalePreprocessing):
        layers.append(Scaling(event_shape, loc=0.5, scale=0.5))
    if section.standardize:
        layers.append(_standardization(layers, event_shape, rows))
    return Compose(*layers) if layers else None


def _dequantization(section: Preprocessing, event_shape: tuple[int, ...], bins: int) -> Bijection:
    if section.variational is None:
        return Dequantization(event_shape, bins=bins)
    noise = section.variational
    return VariationalDequantization(event_shape, bins=bins, layers=noise.layers, hidden=noise.hidden)


def _standardization(layers: list[Bijection], event_shape: tuple[int, ...], rows: Tensor | None) -> Scaling:
    """Mean and standard deviation of the training rows behind `layers`."""
    if rows is None:
        return Scaling(event_shape, loc=torch.zeros(event_shape), scale=torch.ones(event_shape))
    z = _preprocess(Compose(*layers) if layers else None, rows)
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


def _preprocess(preprocessing: Bijection | None, rows: Tensor) -> Tensor:
    """The training rows as the model sees them, with dequantization noise of its own seed."""
    if preprocessing is None:
        return rows
    z, _ = preprocessing(rows, generator=torch.Generator().manual_seed(0))
    return z


def _model(section: Model, event_shape: tuple[int, ...], *, bins: int | None, classes: int) -> DensityModel:
    keywords = section.model_dump(exclude={"kind"})
    if classes:
        keywords["context_features"] = classes
    match section:
        case NICEModel(base=base):
            return NICE(event_shape, **{**keywords, "base": StandardNormal(event_shape) if base == "normal" else None})
        case MAFModel(base=base) if base is not None:
            mixture = MADE(event_shape, conditional="mixture", context_features=classes, **base.model_dump())
            return MAF(event_shape, **{**keywords, "base": mixture})
    if section.kind in MASSES:
        return MASSES[section.kind](event_shape, bins=bins, **keywords)
    made = FLOWS[section.kind]
    if classes and "context_features" not in inspect.signature(made).parameters:
        raise ValueError("it takes no labels; set data.labels=false, or choose another model.")
    return made(event_shape, **keywords)


def parameter_count(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
