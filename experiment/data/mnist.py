import gzip
import struct
from pathlib import Path

import numpy as np
import pooch
import torch
from torch import Tensor

from experiment.data.dataset import Dataset, Layout, lay_out
from experiment.data.labels import Labels
from experiment.errors import UserError

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"

SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
}

LABELS_SHA256 = {
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}

IDX_IMAGES_MAGIC = 0x0803  # unsigned bytes in three dimensions
IDX_LABELS_MAGIC = 0x0801  # in one


def mnist(
    root: Path,
    *,
    layout: Layout = "flat",
    validation_rows: int = 10_000,
    labels: bool = False,
    url: str = MNIST_URL,
) -> Dataset:
    """70000 handwritten digits of 28x28 pixels and 256 grey levels, from the official files in `root/mnist`.

    The test rows are the official 10000, the validation rows the last of the official training set. A file that is
    absent is downloaded; one that is there is used only if its sha256 is the official one. The two files of labels are
    read only when they are asked for.

    Args:
        root: folder of all downloaded data.
        layout: "flat" for events of shape (784,), "image" for (1, 28, 28).
        validation_rows: rows held out of the 60000 training images.
        labels: whether models are to know which of the ten digits a row is.
        url: folder on the web that holds the files.

    Returns:
        The dataset, with `bins` 256.

    Raises:
        UserError: a file cannot be downloaded or is not the official one, or no training rows would be left.
    """
    official, test = (lay_out(_read_images(_find(root / "mnist" / name, url)), layout) for name in SHA256)
    if not 0 < validation_rows < len(official):
        raise UserError(f"validation_rows: found {validation_rows}; mnist takes 1 to {len(official) - 1}.")
    train, validation = official[:-validation_rows], official[-validation_rows:]
    classes = _labels(root, url, validation_rows) if labels else None
    return Dataset("mnist", train, validation, test, bins=256, image_shape=(28, 28), labels=classes)


def _labels(root: Path, url: str, validation_rows: int) -> Labels:
    official, test = (_read_labels(_find(root / "mnist" / name, url)) for name in LABELS_SHA256)
    return Labels(official[:-validation_rows], official[-validation_rows:], test, classes=10)


def _find(path: Path, url: str) -> Path:
    """The path itself, once the file is there and its sha256 is the official one."""
    if not path.exists():
        _download(path, f"{url.rstrip('/')}/{path.name}")
    found, expected = pooch.file_hash(str(path)), _official(path)
    if found != expected:
        raise UserError(f"{path}: sha256 is {found} and not the official {expected}; delete it to download it again.")
    return path


def _download(path: Path, address: str) -> None:
    """Fetch one file; it appears at `path` whole and verified, or not at all."""
    sha256 = _official(path)
    try:
        pooch.retrieve(address, f"sha256:{sha256}", fname=path.name, path=path.parent, progressbar=True)
    except (OSError, ValueError) as error:
        reason = str(error).split(". ")[0]  # advice that does not apply here may follow
        raise UserError(
            f"{path.name} could not be downloaded from {address} ({reason}); put the file with sha256 {sha256} into "
            f"{path.parent} by other means."
        ) from error


def _official(path: Path) -> str:
    return (SHA256 | LABELS_SHA256)[path.name]


def _read_labels(path: Path) -> Tensor:
    """Digits of a gzipped idx file as int64, (rows,)."""
    content = gzip.decompress(path.read_bytes())
    magic, rows = struct.unpack(">2I", content[:8])
    if magic != IDX_LABELS_MAGIC or len(content) != 8 + rows:
        raise UserError(
            f"{path}: the header promises magic {magic:#06x} and {rows} rows for {len(content) - 8} bytes of labels; "
            f"mnist has magic {IDX_LABELS_MAGIC:#06x} and a byte for each row."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=8).astype(np.int64))


def _read_images(path: Path) -> Tensor:
    """Pixels of a gzipped idx file as float32, (rows, 28, 28)."""
    content = gzip.decompress(path.read_bytes())
    magic, *shape = struct.unpack(">4I", content[:16])
    if magic != IDX_IMAGES_MAGIC or shape[1:] != [28, 28] or len(content) != 16 + shape[0] * 28 * 28:
        raise UserError(
            f"{path}: the header promises magic {magic:#06x} and shape {tuple(shape)} for {len(content) - 16} bytes of "
            f"pixels; mnist has magic {IDX_IMAGES_MAGIC:#06x}, shape (rows, 28, 28) and a byte for each pixel."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).astype(np.float32)).reshape(shape)
