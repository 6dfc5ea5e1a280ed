"""Data sets and what is done to them before a model sees them."""

from typing import Literal

from pydantic import Field, StrictBool

from experiment.data import TOY_ENTROPY_NATS
from experiment.sections.base import Count, Layout, Section, Seed, Widths


class DigitsData(Section):
    """scikit-learn's 1797 digits, 8 by 8, 17 grey levels."""

    kind: Literal["digits"]
    layout: Layout = "flat"
    labels: StrictBool = False


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
    labels: StrictBool = False


class CifarData(Section):
    """The first 4000 training images of CIFAR-10 from four lossless sheets under the data root."""

    kind: Literal["cifar10_lossless_4k"]
    layout: Layout = "image"
    validation_rows: Count = 400
    test_rows: Count = 400


class BSDSData(Section):
    """Noisy 8 by 8 patches of the Berkeley images under the data root, 63 values each."""

    kind: Literal["bsds300_patches"]
    train_rows: Count = 1_000_000
    validation_rows: Count = 50_000
    test_rows: Count = 250_000
    seed: Seed = 0


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

Data = DigitsData | ToyData | MNISTData | CifarData | BSDSData | TableData
