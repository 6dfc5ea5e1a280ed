"""From a config to data, a model over raw data and its training objective."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from core import DensityModel, GenerativeModel, StandardNormal
from core.density import Context
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
    GaussianizationFlow,
    Glow,
    LinearFlow,
    Logit,
    MintNet,
    PixelCNN,
    PlanarFlow,
    RadialFlow,
    RealNVP,
    ResidualFlow,
    SylvesterFlow,
    TransformerFlow,
    VariationalDequantization,
    WaveNet,
    initialize_gaussianization,
)
from discrete.bijections.preprocessing import Scaling
from experiment.building.autoencoder import build_autoencoder, takes_raw_integers
from experiment.building.baselines import FITTED, build_baseline, fitted_count
from experiment.building.continuous import CONTINUOUS, build_continuous
from experiment.building.decoded import Decoded
from experiment.building.ensemble import mixed
from experiment.building.objective import MaximumLikelihood, Preprocessed
from experiment.config import Config, Model
from experiment.data import (
    Dataset,
    binarized,
    bsds300_patches,
    cifar10,
    cifar10_lossless_4k,
    digits,
    fashion_mnist,
    image_folder,
    mapped_table,
    mnist,
    photographs,
    table,
    toy,
    uci,
    uci_small,
)
from experiment.data.dataset import column_name
from experiment.data.mapped import is_many
from experiment.data.order import MOST_HELD, drawn_order
from experiment.errors import UserError
from experiment.sections.base import Section
from experiment.sections.baselines import BaselineModel, MixtureModel
from experiment.sections.continuous import ScoreSDEModel
from experiment.sections.data import (
    BSDSData,
    Cifar10Data,
    CifarData,
    DigitsData,
    FashionMNISTData,
    ImageFolderData,
    LogitPreprocessing,
    MNISTData,
    NoPreprocessing,
    PhotographsData,
    Preprocessing,
    ScalePreprocessing,
    TableData,
    ToyData,
    UCIData,
    UCISmallData,
)
from experiment.sections.flows import MAFModel, NICEModel
from experiment.sections.gaussianization import GaussianizationModel
from experiment.sections.vae import VAEModel

INITIAL_ROWS = 20_000
FLOWS: dict[str, Callable[..., DensityModel]] = {
    "real_nvp": RealNVP,
    "glow": Glow,
    "nsf": NSF,
    "linear": LinearFlow,
    "made": MADE,
    "maf": MAF,
    "iaf": IAF,
    "transformer_flow": TransformerFlow,
    "planar": PlanarFlow,
    "radial": RadialFlow,
    "sylvester": SylvesterFlow,
    "mintnet": MintNet,
    "residual": ResidualFlow,
    "gaussianization": GaussianizationFlow,
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
            return _binarized(digits(layout=data.layout, labels=data.labels), data)
        case ToyData():
            return toy(
                data.name,
                train_rows=data.train_rows,
                validation_rows=data.validation_rows,
                test_rows=data.test_rows,
                seed=data.seed,
            )
        case MNISTData():
            rows = data.validation_rows
            return _binarized(mnist(root, layout=data.layout, validation_rows=rows, labels=data.labels), data)
        case CifarData():
            return cifar10_lossless_4k(
                root, layout=data.layout, validation_rows=data.validation_rows, test_rows=data.test_rows
            )
        case BSDSData():
            return bsds300_patches(root, **data.model_dump(exclude={"kind"}))
        case FashionMNISTData():
            return fashion_mnist(root, **data.model_dump(exclude={"kind"}))
        case Cifar10Data():
            return cifar10(root, **data.model_dump(exclude={"kind"}))
        case PhotographsData():
            return photographs(**data.model_dump(exclude={"kind"}))
        case UCIData():
            return uci(data.kind, root)
        case UCISmallData():
            return uci_small(root=root, **data.model_dump(exclude={"kind"}))
        case TableData():
            return _table(root / data.path, data)
        case ImageFolderData():
            return image_folder(root / data.path, **data.model_dump(exclude={"kind", "path"}))
    raise UserError(f"data.kind {type(data).__name__} has no loader.")


def _table(path: Path, data: TableData) -> Dataset:
    """From one file in memory, or mapped."""
    settings = data.model_dump(exclude={"kind", "path", "mapped"})
    if not (data.mapped or is_many(path)):
        return table(path, **settings)
    duplicates, noise = settings.pop("duplicates"), settings.pop("noise")
    if duplicates == "drop" or noise:
        raise UserError(
            f"{path}: duplicates='drop' and noise=true need all rows in memory at once, but these are mapped; prepare "
            "the rows without duplicates and ties, and leave both out."
        )
    return mapped_table(path, **settings)


def _binarized(dataset: Dataset, data: DigitsData | MNISTData) -> Dataset:
    return dataset if data.binarize is None else binarized(dataset, data.binarize)


def build(
    config: Config,
    event_shape: tuple[int, ...],
    *,
    bins: int | None = None,
    classes: int = 0,
    rows: Tensor | None = None,
    columns: tuple[str, ...] | None = None,
    parts: Sequence[DensityModel] = (),
    held_out: tuple[Tensor, Context] | None = None,
) -> Built:
    """The model over raw data and its objective.

    Args:
        config: the experiment; its seed is not used here, parameters come from torch's global generator.
        event_shape: shape of one row.
        bins: levels of integer data, None for continuous data.
        classes: classes of labelled data, 0 for none: with them the model is one of x given the class as one-hot.
        rows: training rows to which a standardization is fitted, and from which a Gaussianization flow starts; without
            them both wait for a state dict.
        columns: names of the columns of the rows, for messages.
        parts: the densities of a mixture.
        held_out: validation rows and their contexts, to which its weights are fitted; without them they wait too.

    Raises:
        UserError: preprocessing or model and data do not fit.

    Example:
        >>> from experiment.config import parse_config
        >>> config = parse_config({"data": {"kind": "digits"}, "model": {"kind": "nice"}}, source="example")
        >>> build(config, (64,), bins=17).model.event_shape
        torch.Size([64])
    """
    kind = config.model.kind
    if kind in MASSES or takes_raw_integers(config.model):
        _check_raw(config, bins)
        preprocessing = None
    else:
        preprocessing = build_preprocessing(config.preprocessing, event_shape, bins=bins, rows=rows, columns=columns)
    try:
        if kind in CONTINUOUS:
            return _continuous(config, event_shape, preprocessing, rows, classes)
        if isinstance(config.model, VAEModel):
            _check_fixed(config)
            return Built(*build_autoencoder(config.model, event_shape, preprocessing, bins=bins, classes=classes))
        if isinstance(config.model, MixtureModel):
            _check_bare(config)
            mixture = mixed(parts, held_out)
            return Built(mixture, MaximumLikelihood(mixture))
        if isinstance(config.model, BaselineModel):
            inner = _baseline(config.model, event_shape, preprocessing, rows, bins=bins, classes=classes)
        else:
            inner = _model(config.model, event_shape, bins=bins, classes=classes)
        if isinstance(config.model, GaussianizationModel) and isinstance(inner, Flow) and rows is not None:
            initialize_gaussianization(inner, _preprocess(preprocessing, _some(rows)))
    except ValueError as error:
        raise UserError(f"model.kind={kind}: {error}") from error
    model = inner if preprocessing is None else Flow(preprocessing, inner)
    return Built(model, MaximumLikelihood(model))


def _baseline(
    section: BaselineModel,
    event_shape: tuple[int, ...],
    preprocessing: Bijection | None,
    rows: Tensor | None,
    *,
    bins: int | None,
    classes: int,
) -> DensityModel:
    if classes:
        raise ValueError("it takes no labels; set data.labels=false, or choose another model.")
    if bins is not None and rows is not None:  # the noise of a row depends on its place among all
        rows, preprocessing = _preprocess(preprocessing, rows), None
    return build_baseline(section, event_shape, rows, prepare=partial(_preprocess, preprocessing))


def _continuous(
    config: Config, event_shape: tuple[int, ...], preprocessing: Bijection | None, rows: Tensor | None, classes: int
) -> Built:
    """A continuous model behind its preprocessing, and its objective on preprocessed rows."""
    _check_fixed(config)
    if rows is not None and len(rows) > MOST_HELD:
        rows = _some(rows)
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


def _check_fixed(config: Config) -> None:
    """A model that is trained on preprocessed rows needs a preprocessing without parameters."""
    if config.preprocessing.variational is not None:
        raise UserError(
            f"preprocessing.variational trains with a discrete flow, but model.kind={config.model.kind} is none."
        )


def _check_bare(config: Config) -> None:
    """A mixture is one of densities of raw data."""
    if config.preprocessing != NoPreprocessing():
        raise UserError("model.kind=mixture: its runs have preprocessing of their own; leave [preprocessing] out.")


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
    columns: tuple[str, ...] | None = None,
) -> Bijection | None:
    """What stands between raw data and the model; None for continuous data as they are.

    Args:
        section: the `[preprocessing]` section.
        event_shape: shape of one row.
        bins: levels of integer data, None for continuous data.
        rows: training rows to which a standardization is fitted; without them it waits for a state dict.
        columns: names of the columns of the rows, for messages.

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
        layers.append(_standardization(layers, event_shape, rows, columns))
    return Compose(*layers) if layers else None


def _dequantization(section: Preprocessing, event_shape: tuple[int, ...], bins: int) -> Bijection:
    if section.variational is None:
        return Dequantization(event_shape, bins=bins)
    noise = section.variational
    return VariationalDequantization(event_shape, bins=bins, layers=noise.layers, hidden=noise.hidden)


def _standardization(
    layers: list[Bijection], event_shape: tuple[int, ...], rows: Tensor | None, columns: tuple[str, ...] | None
) -> Scaling:
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
            f"preprocessing.standardize: column {column_name(int(constant[0]), columns)} of the training rows is "
            "constant, so it has no scale; remove the column."
        )
    return Scaling(event_shape, loc=mean, scale=std)


def _some(rows: Tensor) -> Tensor:
    """As many rows as an initialization takes, in an order of its own seed."""
    return rows[drawn_order(len(rows), 0)[:INITIAL_ROWS].to(rows.device)]


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
    """Number of trained values, or of those that a baseline was fitted with."""
    fitted = sum(fitted_count(inner) for inner in module.modules() if isinstance(inner, FITTED))
    return fitted + sum(p.numel() for p in module.parameters() if p.requires_grad)
