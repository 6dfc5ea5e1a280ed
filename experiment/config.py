"""What an experiment is: one small frozen class per kind, so that a setting it does not use cannot be written."""

import hashlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from experiment.errors import UserError
from experiment.messages import describe
from experiment.sections.base import Count, Positive, Section, Seed, Share
from experiment.sections.baselines import BaselineModel, MixtureModel
from experiment.sections.continuous import EnergyModelSection, NCSNModel, ScoreSDEModel
from experiment.sections.continuous_flows import FFJORDModel, FlowMatchingModel
from experiment.sections.data import Data, NoPreprocessing, Preprocessing
from experiment.sections.flows import (
    GlowModel,
    IAFModel,
    LinearModel,
    MADEModel,
    MAFModel,
    NICEModel,
    NSFModel,
    RealNVPModel,
    TransformerFlowModel,
)
from experiment.sections.gaussianization import GaussianizationModel
from experiment.sections.masses import (
    AutoregressiveMLPModel,
    AutoregressiveTransformerModel,
    PixelCNNModel,
    WaveNetModel,
)
from experiment.sections.mintnet import MintNetModel
from experiment.sections.planar import PlanarModel, RadialModel, SylvesterModel
from experiment.sections.residual import ResidualModel
from experiment.sections.vae import VAEModel

FlowModel = (
    NICEModel
    | RealNVPModel
    | GlowModel
    | NSFModel
    | LinearModel
    | MADEModel
    | MAFModel
    | IAFModel
    | TransformerFlowModel
    | PlanarModel
    | RadialModel
    | SylvesterModel
    | MintNetModel
    | ResidualModel
    | GaussianizationModel
)
MassModel = AutoregressiveMLPModel | PixelCNNModel | WaveNetModel | AutoregressiveTransformerModel
Model = (
    BaselineModel
    | MixtureModel
    | FlowModel
    | MassModel
    | VAEModel
    | ScoreSDEModel
    | NCSNModel
    | EnergyModelSection
    | FFJORDModel
    | FlowMatchingModel
)


class Train(Section):
    """Optimisation: Adam or AdamW, a schedule, clipping, EMA, validation and early stopping; a step in parts."""

    steps: Count = 10_000
    batch_size: Count = 128
    parts: Count = Field(1, description="micro-batches of batch_size rows a step; 1 is one a process")
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: Positive = 1e-3
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = Field(0, strict=True, ge=0)
    gradient_clip: Positive | None = None
    ema_decay: Share = 0.0
    validate_every: Count = 500
    validation_draws: Count = 1
    patience: int = Field(
        0, strict=True, ge=0, description="validations without a better one before stopping; 0 never stops"
    )
    log_every: Count = 100
    compile: bool = Field(
        False, strict=True, description="let torch.compile make one graph of a step, from the second on"
    )
    tf32: bool = Field(
        False,
        strict=True,
        description="let a GPU round the factors of products to TF32 in training steps; evaluation never does",
    )
    bad_steps: int = Field(
        10,
        strict=True,
        ge=0,
        description="steps in a row with a loss or gradient that is not finite that are left out; one more ends it",
    )


class Evaluate(Section):
    """How held-out likelihood is measured."""

    draws: Count = 20


class Config(Section):
    """One experiment, fully resolved."""

    seed: Seed = 0
    data: Annotated[Data, Field(discriminator="kind")]
    preprocessing: Annotated[Preprocessing, Field(discriminator="kind")] = NoPreprocessing()
    model: Annotated[Model, Field(discriminator="kind")]
    train: Train = Train()
    evaluate: Evaluate = Evaluate()

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change with any setting."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a TOML config, applies overrides `a.b=value`, and checks the whole.

    Args:
        path: the file.
        overrides: settings such as `train.steps=500`, values in TOML syntax, a bare word being a string.

    Returns:
        The resolved config.

    Raises:
        UserError: a missing or malformed file, an unknown key, a wrong type, an impossible value.
    """
    table = read_toml(Path(path))
    for override in overrides:
        _override(table, override)
    return parse_config(table, source=str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, unchecked.

    Raises:
        UserError: a missing or malformed file.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"config {path} does not exist; the ready-made ones lie in configs/.") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"config {path} cannot be read as TOML: {error}.") from error


def parse_config(table: dict[str, Any], *, source: str) -> Config:
    """A config from nested tables; `source` is named in the error.

    Raises:
        UserError: an unknown key, a wrong type, an impossible value.
    """
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        raise UserError(f"{source}: {describe(error, Config)}") from error


def with_sampler(config: Config, overrides: Sequence[str]) -> Config:
    """The same experiment with another sampler.

    Args:
        config: the experiment.
        overrides: settings such as `sampler.steps=50`; one of another kind begins with that kind's own defaults.

    Raises:
        UserError: a setting of something else, and as of `load_config`.
    """
    changes: dict[str, Any] = {}
    for override in (text.strip().removeprefix("model.") for text in overrides):  # as errors name the keys
        if not override.startswith("sampler."):
            raise UserError(f"--set changes the sampler here, as sampler.steps=50 does, but was given {override!r}.")
        _override(changes, override)
    table = config.model_dump(mode="json")
    table["model"] = _merged(table["model"], changes)
    return parse_config(table, source="--set " + " --set ".join(overrides)) if overrides else config


def _merged(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` over `table`, table by table; one that becomes another kind keeps nothing."""
    merged = {} if changes.get("kind", table.get("kind")) != table.get("kind") else dict(table)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _override(table: dict[str, Any], override: str) -> None:
    """Sets one `a.b=value` in nested tables."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set takes key=value such as train.steps=500, but was given {override!r}.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    set_value(table, key.strip(), value, source=f"--set {override}")


def set_value(table: dict[str, Any], key: str, value: Any, *, source: str = "set") -> None:
    """Sets `a.b` in nested tables, which are made where they are missing.

    Raises:
        UserError: a part of the key is a value, not a table.
    """
    *parents, last = key.split(".")
    for name in parents:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise UserError(f"{source}: {name!r} is a value, not a table, so {key!r} does not exist in it.")
    table[last] = value
