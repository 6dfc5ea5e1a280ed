"""Data sets and what is done to them before a model sees them."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from experiment.data import TOY_ENTROPY_NATS, UCI_SMALL
from experiment.sections.base import Count, Layout, Section, Seed, Widths

Binarize = Literal["static", "stochastic"] | None
Fraction = Annotated[float, Field(gt=0, lt=1)]
ColumnNames = tuple[StrictStr | StrictInt, ...]


class DigitsData(Section):
    """scikit-learn's 1797 digits, 8 by 8, 17 grey levels, or two where `binarize` is given."""

    kind: Literal["digits"]
    layout: Layout = "flat"
    labels: StrictBool = False
    binarize: Binarize = None


class ToyData(Section):
    """A two-dimensional toy density, sampled afresh from its seed."""

    kind: Literal["toy"]
    name: Literal[tuple(TOY_ENTROPY_NATS)]  # type: ignore[valid-type]
    train_rows: Count = 50_000
    validation_rows: Count = 5_000
    test_rows: Count = 10_000
    seed: Seed = 0


class MNISTData(Section):
    """MNIST from its four official files under the data root; in black and white where `binarize` is given."""

    kind: Literal["mnist"]
    layout: Layout = "flat"
    validation_rows: Count = 10_000
    labels: StrictBool = False
    binarize: Binarize = None


class FashionMNISTData(Section):
    """Fashion-MNIST from its four official files under the data root."""

    kind: Literal["fashion_mnist"]
    layout: Layout = "flat"
    validation_rows: Count = 10_000
    labels: StrictBool = False


class Cifar10Data(Section):
    """CIFAR-10 from its official archive, the binary version, under the data root."""

    kind: Literal["cifar10"]
    layout: Layout = "image"
    validation_rows: Count = 5_000
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


class PhotographsData(Section):
    """Patches of scikit-learn's two photographs, 256 grey or colour levels."""

    kind: Literal["photographs"]
    side: Count = 8
    colour: StrictBool = False
    layout: Layout = "flat"
    train_rows: Count = 50_000
    validation_rows: Count = 5_000
    test_rows: Count = 10_000
    seed: Seed = 0


class UCIData(Section):
    """A benchmark of the MAF paper from its authors' archive under the data root."""

    kind: Literal["power", "gas", "hepmass", "miniboone", "bsds300"]


class UCISmallData(Section):
    """A regression table of the UCI repository under the data root, all columns together."""

    kind: Literal["uci_small"]
    name: Literal[UCI_SMALL]  # type: ignore[valid-type]
    validation: Fraction = 0.1
    test: Fraction = 0.1
    noise: StrictBool = True
    seed: Seed = 0


class TableData(Section):
    """Rows of numbers from a .csv, .csv.gz, .npy, .npz or .parquet file under the data root, or from many.

    Those that are `mapped` may be more than memory holds, and so may those of a folder or pattern: .npy or .parquet.
    """

    kind: Literal["table"]
    path: str
    columns: ColumnNames = ()
    drop: ColumnNames = ()
    missing: Literal["error", "drop"] = "error"
    duplicates: Literal["keep", "drop"] = "keep"
    noise: StrictBool = False
    mapped: StrictBool = False
    validation: Fraction | Count = 0.1
    test: Fraction | Count = 0.1
    seed: Seed = 0


class ImageFolderData(Section):
    """PNG and JPEG images of a folder under the data root."""

    kind: Literal["image_folder"]
    path: str
    size: tuple[Count, Count] | None = None
    colour: StrictBool = True
    layout: Layout = "image"
    validation: Fraction = 0.1
    test: Fraction = 0.1
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

Data = (
    DigitsData
    | ToyData
    | MNISTData
    | FashionMNISTData
    | CifarData
    | Cifar10Data
    | BSDSData
    | PhotographsData
    | UCIData
    | UCISmallData
    | TableData
    | ImageFolderData
)
