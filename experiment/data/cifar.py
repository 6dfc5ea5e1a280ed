from pathlib import Path

import numpy as np
import pooch
import torch
from PIL import Image
from torch import Tensor

from experiment.data.dataset import Dataset, Layout, lay_out
from experiment.errors import UserError

SHA256 = {
    "cifar10_batch_0.png": "0614720d69293a033786d5fe2924c4e9a9b48874f19ca4627c4662a864ee9f2d",
    "cifar10_batch_1.png": "2927e26ea68602e34a7424826b76b7336ce36b8f6bcc2e9fce0c05568ff6b4c1",
    "cifar10_batch_2.png": "0b2759e307bb405bb1a6531f8a0f557eaec46d7546050612fdb836f0fa60eae0",
    "cifar10_batch_3.png": "a4530ff15c83886058a97c352f53f38be07d191de8f410e998e91786b5900a26",
}

SHEET_SHAPE = (1000, 32 * 32, 3)  # each line of pixels is an image


def cifar10_lossless_4k(
    root: Path, *, layout: Layout = "image", validation_rows: int = 400, test_rows: int = 400
) -> Dataset:
    """The first 4000 training images of CIFAR-10, 32x32 pixels in 3 colours of 256 levels, from four lossless sheets.

    Enough to train and test image models, not to quote the benchmark. The rows stay in the order of the files: the last
    ones are the test rows, those before them the validation rows.

    Args:
        root: folder of all data; the sheets lie in `root/cifar10_lossless_4k`.
        layout: "image" for events of shape (3, 32, 32), "flat" for the same values in the same order as (3072,).
        validation_rows: rows held out for validation.
        test_rows: rows held out for the test.

    Returns:
        The dataset, with `bins` 256.

    Raises:
        UserError: a file is absent or is not the one that is meant, or no training rows would be left.
    """
    folder = root / "cifar10_lossless_4k"
    rows = lay_out(torch.cat([_read_sheet(_find(folder / name)) for name in SHA256]), layout)
    train_rows = len(rows) - validation_rows - test_rows
    if min(train_rows, validation_rows, test_rows) < 1:
        raise UserError(
            f"validation_rows={validation_rows} and test_rows={test_rows} leave {train_rows} of the {len(rows)} images "
            "of cifar10_lossless_4k for training; each split needs at least one."
        )
    train, validation, test = rows.split([train_rows, validation_rows, test_rows])
    return Dataset("cifar10_lossless_4k", train, validation, test, bins=256, image_shape=(3, 32, 32))


def _find(path: Path) -> Path:
    """The path itself, if the file is there and its sha256 is the one that is meant."""
    expected = SHA256[path.name]
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file, and no address to download it from is known; put the file with sha256 "
            f"{expected} there."
        )
    found = pooch.file_hash(str(path))
    if found != expected:
        raise UserError(f"{path}: sha256 is {found}; replace it by the file with sha256 {expected}.")
    return path


def _read_sheet(path: Path) -> Tensor:
    """Pixels of a sheet as whole numbers in float32, (rows, 3, 32, 32)."""
    with Image.open(path) as image:
        pixels = np.asarray(image)
    if pixels.shape != SHEET_SHAPE:
        raise UserError(f"{path}: the sheet has shape {pixels.shape}; a sheet of images has {SHEET_SHAPE}.")
    levels = torch.from_numpy(pixels.astype(np.float32))
    return levels.reshape(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous()
