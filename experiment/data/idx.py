"""Images and labels in the format of MNIST, which other data sets keep."""

import gzip
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiment.data.dataset import Dataset, Layout, check_validation_rows, lay_out
from experiment.data.download import official
from experiment.data.labels import Labels
from experiment.errors import UserError

IDX_IMAGES_MAGIC = 0x0803  # unsigned bytes in three dimensions
IDX_LABELS_MAGIC = 0x0801  # in one


def idx_images(
    name: str,
    root: Path,
    *,
    images: Mapping[str, str],
    classes: Mapping[str, str],
    layout: Layout,
    validation_rows: int,
    labels: bool,
    url: str,
) -> Dataset:
    """A data set of 28x28 pixels with 256 grey levels and ten classes, in four gzipped files in `root/<name>`.

    Args:
        name: of the data set and of its folder.
        root: folder of all downloaded data.
        images: digests of the files of training and test images, by their names.
        classes: digests of the files of their labels.
        layout: "flat" for events of shape (784,), "image" for (1, 28, 28).
        validation_rows: the last rows of the training images, held out.
        labels: whether models are to know the class of a row; the files of labels are read only then.
        url: folder on the web that holds the files.

    Returns:
        The dataset, with `bins` 256.

    Raises:
        UserError: a file cannot be downloaded or is not the official one, or no training rows would be left.
    """

    def files(digests: Mapping[str, str]) -> list[Path]:
        return [
            official(root / name / file, address=f"{url.rstrip('/')}/{file}", digest=digest)
            for file, digest in digests.items()
        ]

    train, test = (lay_out(read_images(file, name), layout) for file in files(images))
    check_validation_rows(validation_rows, name, rows=len(train))
    known = None
    if labels:
        digits, test_digits = (read_labels(file, name) for file in files(classes))
        known = Labels(digits[:-validation_rows], digits[-validation_rows:], test_digits, classes=10)
    train, validation = train[:-validation_rows], train[-validation_rows:]
    return Dataset(name, train, validation, test, bins=256, image_shape=(28, 28), labels=known)


def read_labels(path: Path, name: str) -> Tensor:
    """Classes of a gzipped idx file as int64, (rows,).

    Raises:
        UserError: it is no such file.
    """
    content = gzip.decompress(path.read_bytes())
    magic, rows = struct.unpack(">2I", content[:8])
    if magic != IDX_LABELS_MAGIC or len(content) != 8 + rows:
        raise UserError(
            f"{path}: the header promises magic {magic:#06x} and {rows} rows for {len(content) - 8} bytes of labels; "
            f"{name} has magic {IDX_LABELS_MAGIC:#06x} and a byte for each row."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=8).astype(np.int64))


def read_images(path: Path, name: str) -> Tensor:
    """Pixels of a gzipped idx file as float32, (rows, 28, 28).

    Raises:
        UserError: it is no such file.
    """
    content = gzip.decompress(path.read_bytes())
    magic, *shape = struct.unpack(">4I", content[:16])
    if magic != IDX_IMAGES_MAGIC or shape[1:] != [28, 28] or len(content) != 16 + shape[0] * 28 * 28:
        raise UserError(
            f"{path}: the header promises magic {magic:#06x} and shape {tuple(shape)} for {len(content) - 16} bytes of "
            f"pixels; {name} has magic {IDX_IMAGES_MAGIC:#06x}, shape (rows, 28, 28) and a byte for each pixel."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).astype(np.float32)).reshape(shape)
