import torch
from sklearn.datasets import load_digits

from experiment.data.dataset import Dataset, Layout, lay_out, split_rows

SPLIT_SEED = 1797


def digits(*, layout: Layout = "flat") -> Dataset:
    """1797 handwritten digits of 8x8 pixels and 17 grey levels, which come with scikit-learn (no download).

    The split is always the same: 1257 rows to train, 180 to validate, 360 to test.

    Args:
        layout: "flat" for events of shape (64,), "image" for (1, 8, 8).

    Returns:
        The dataset, with `bins` 17.

    Example:
        >>> digits(layout="image").event_shape
        torch.Size([1, 8, 8])
    """
    rows = lay_out(torch.from_numpy(load_digits().images).float(), layout)
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    train, validation, test = split_rows(rows, validation=180, test=360, generator=generator)
    return Dataset("digits", train, validation, test, bins=17, image_shape=(8, 8))
