import torch
from torch import Tensor

from experiment.data.dataset import Dataset, Layout, lay_out, split_rows
from experiment.data.labels import Labels

SPLIT_SEED = 1797


def digits(*, layout: Layout = "flat", labels: bool = False) -> Dataset:
    """1797 handwritten digits of 8x8 pixels and 17 grey levels, which come with scikit-learn (no download).

    The split is always the same: 1257 rows to train, 180 to validate, 360 to test.

    Args:
        layout: "flat" for events of shape (64,), "image" for (1, 8, 8).
        labels: whether models are to know which of the ten digits a row is.

    Returns:
        The dataset, with `bins` 17.

    Example:
        >>> digits(layout="image").event_shape
        torch.Size([1, 8, 8])
    """
    from sklearn.datasets import load_digits  # as long to import as torch

    source = load_digits()
    images, classes = lay_out(torch.from_numpy(source.images).float(), layout), torch.from_numpy(source.target).long()
    rows, digit = (_split(part) for part in (images, classes))
    return Dataset("digits", *rows, bins=17, image_shape=(8, 8), labels=Labels(*digit, classes=10) if labels else None)


def _split(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return split_rows(rows, validation=180, test=360, generator=torch.Generator().manual_seed(SPLIT_SEED))
