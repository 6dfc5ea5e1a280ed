from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from experiment.data.dataset import Dataset, Layout, check_validation_rows, lay_out
from experiment.data.download import official, read_members
from experiment.data.labels import Labels
from experiment.errors import UserError

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"

BATCHES = [f"cifar-10-batches-bin/{name}.bin" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
RECORD = 1 + 3 * 32 * 32  # the class, then red, green and blue, each line by line


def cifar10(
    root: Path,
    *,
    layout: Layout = "image",
    validation_rows: int = 5_000,
    labels: bool = False,
    url: str = CIFAR10_URL,
) -> Dataset:
    """60000 images of 32x32 pixels in 3 colours of 256 levels, from the official archive in `root/cifar10`.

    The test rows are the official 10000, the validation rows the last of the official training set. The binary version
    of the archive is read, which runs no code; where it is absent it is downloaded (162 MB), and it is used only if its
    sha256 is that of the official file.

    References:
        Krizhevsky, "Learning multiple layers of features from tiny images", 2009,
        https://www.cs.toronto.edu/~kriz/cifar.html: the archive and its format.

    Args:
        root: folder of all downloaded data.
        layout: "image" for events of shape (3, 32, 32), "flat" for the same values in the same order as (3072,).
        validation_rows: rows held out of the 50000 training images.
        labels: whether models are to know which of the ten classes a row is.
        url: address of the archive.

    Returns:
        The dataset, with `bins` 256.

    Raises:
        UserError: the archive cannot be downloaded or is not the official one, or no training rows would be left.
    """
    path = root / "cifar10" / "cifar-10-binary.tar.gz"
    archive = official(path, address=url, digest=f"sha256:{CIFAR10_SHA256}")
    contents = zip(read_members(archive, BATCHES), BATCHES, strict=True)
    *training, test = (_records(content, archive, name) for content, name in contents)
    known = np.concatenate(training)
    check_validation_rows(validation_rows, "cifar10", rows=len(known))
    splits = known[:-validation_rows], known[-validation_rows:], test
    train, validation, held_out = (lay_out(_pixels(records), layout) for records in splits)
    classes = None
    if labels:
        a, b, c = (torch.from_numpy(records[:, 0].astype(np.int64)) for records in splits)
        classes = Labels(train=a, validation=b, test=c, classes=10)
    return Dataset("cifar10", train, validation, held_out, bins=256, image_shape=(3, 32, 32), labels=classes)


def _pixels(records: NDArray[np.uint8]) -> Tensor:
    """Levels as float32, (rows, 3, 32, 32)."""
    return torch.from_numpy(rearrange(records[:, 1:], "n (c h w) -> n c h w", c=3, h=32).astype(np.float32))


def _records(content: bytes, archive: Path, name: str) -> NDArray[np.uint8]:
    if not content or len(content) % RECORD:
        raise UserError(f"{archive}: {name} holds {len(content)} bytes, but a record of cifar10 has {RECORD}.")
    return np.frombuffer(content, np.uint8).reshape(-1, RECORD)
