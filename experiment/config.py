"""What an experiment is: one small frozen class per kind, so that a setting it does not use cannot be written."""

import hashlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from experiment.data import TOY_ENTROPY_NATS
from experiment.errors import UserError
from experiment.messages import describe

Count = Annotated[int, Field(strict=True, ge=1)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Widths = Annotated[tuple[Count, ...], Field(min_length=1)]
Layout = Literal["flat", "image"]
Network = Literal["plain", "resnet"]
Activation = Literal["relu", "silu", "tanh", "elu", "gelu"]


class Section(BaseModel):
    """A table of the config file: unknown keys are refused, values are checked and then fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DigitsData(Section):
    """scikit-learn's 1797 digits, 8 by 8, 17 grey levels."""

    kind: Literal["digits"]
    layout: Layout = "flat"


class ToyData(Section):
    """A two-dimensional toy density, sampled afresh from its seed."""

    kind: Literal["toy"]
    name: Literal[tuple(TOY_ENTROPY_NATS)]  # type: ignore[valid-type]
    train_rows: Count = 50_000
    validation_rows: Count = 5_000
    test_rows: Count = 10_000
    seed: Seed = 0


class MNISTData(Section):
    """MNIST from its four official files under the data root."""

    kind: Literal["mnist"]
    layout: Layout = "flat"
    validation_rows: Count = 10_000


class CifarData(Section):
    """The first 4000 training images of CIFAR-10 from four lossless sheets under the data root."""

    kind: Literal["cifar10_lossless_4k"]
    layout: Layout = "image"
    validation_rows: Count = 400
    test_rows: Count = 400


class TableData(Section):
    """Rows of numbers from a .npy or .csv file under the data root."""

    kind: Literal["table"]
    path: str
    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)
    seed: Seed = 0


class VariationalNoise(Section):
    """See `discrete.VariationalDequantization`."""

    layers: Count = 4
    hidden: Widths = (64, 64)


class NoPreprocessing(Section):
    """The data as they are; integers are dequantized to [0, 1), with learned noise where `variational` is given."""

    kind: Literal["none"] = "none"
    standardize: StrictBool = False
    variational: VariationalNoise | None = None


class LogitPreprocessing(Section):
    """Integers dequantized to [0, 1), then logit(α + (1 - 2α) x)."""

    kind: Literal["logit"]
    alpha: float = Field(0.05, gt=0, lt=0.5)
    standardize: StrictBool = False
    variational: VariationalNoise | None = None


class ScalePreprocessing(Section):
    """Integers dequantized to [0, 1), then stretched to [-1, 1)."""

    kind: Literal["scale"]
    standardize: StrictBool = False
    variational: VariationalNoise | None = None


Preprocessing = NoPreprocessing | LogitPreprocessing | ScalePreprocessing


class NICEModel(Section):
    """See `discrete.NICE`."""

    kind: Literal["nice"]
    layers: Count = 4
    hidden: Widths = (512, 512)
    dropout: Share = 0.0
    base: Literal["logistic", "normal"] = "logistic"


class RealNVPModel(Section):
    """See `discrete.RealNVP`."""

    kind: Literal["real_nvp"]
    layers: Count | None = None
    levels: Count | None = None
    strides: Widths = (1,)
    hidden: Widths = (128, 128)
    conditioner: Network | None = None
    dropout: Share = 0.0
    activation: Activation = "relu"
    log_scale_bound: Positive = 3.0
    normalization: Literal["actnorm", "batch", "none"] = "actnorm"


class GlowModel(Section):
    """See `discrete.Glow`."""

    kind: Literal["glow"]
    levels: Count = 3
    depth: Count = 16
    hidden: Widths = (128, 128)
    coupling: Literal["affine", "additive"] = "affine"
    conditioner: Network = "plain"
    parametrization: Literal["dense", "lu", "qr"] = "lu"
    scale: Literal["tanh", "sigmoid"] = "tanh"
    activation: Activation = "relu"
    dropout: Share = 0.0
    log_scale_bound: Positive = 3.0
    reversible: StrictBool = False


class NSFModel(Section):
    """See `discrete.NSF`."""

    kind: Literal["nsf"]
    layers: Count | None = None
    levels: Count | None = None
    hidden: Widths = (128, 128)
    bins: int = Field(8, strict=True, ge=2)
    bound: Positive = 3.0
    conditioner: Network = "resnet"
    activation: Activation = "relu"
    dropout: Share = 0.0


class LinearModel(Section):
    """See `discrete.LinearFlow`."""

    kind: Literal["linear"]
    parametrization: Literal["lu", "qr", "triangular"] = "lu"


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


Model = NICEModel | RealNVPModel | GlowModel | NSFModel | LinearModel | ScoreSDEModel


class Train(Section):
    """Optimisation: Adam or AdamW, a schedule, clipping, EMA, validation and early stopping."""

    steps: Count = 10_000
    batch_size: Count = 128
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


class Evaluate(Section):
    """How held-out likelihood is measured."""

    draws: Count = 20


class Config(Section):
    """One experiment, fully resolved."""

    seed: Seed = 0
    data: Annotated[DigitsData | ToyData | MNISTData | CifarData | TableData, Field(discriminator="kind")]
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
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"config {path} does not exist; the ready-made ones lie in configs/.") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"config {path} cannot be read as TOML: {error}.") from error
    for override in overrides:
        _override(table, override)
    return parse_config(table, source=str(path))


def parse_config(table: dict[str, Any], *, source: str) -> Config:
    """A config from nested tables; `source` is named in the error.

    Raises:
        UserError: an unknown key, a wrong type, an impossible value.
    """
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        raise UserError(f"{source}: {describe(error, Config)}") from error


def _override(table: dict[str, Any], override: str) -> None:
    """Sets one `a.b=value` in nested tables."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set takes key=value such as train.steps=500, but was given {override!r}.")
    *parents, last = key.strip().split(".")
    for name in parents:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {override}: {name!r} is a value, not a table, so {key!r} does not exist in it.")
    try:
        table[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[last] = text.strip()
