from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from experiment.data.dataset import Dataset
from experiment.errors import UserError

Binarization = Literal["static", "stochastic"]
SPLITS = ("train", "validation", "test")


def binarized(data: Dataset, how: Binarization, *, seed: int = 0) -> Dataset:
    """The data with two levels in the place of K: k/(K - 1) at least ½, or 1 with this probability, drawn once.

    The fixed binarization of MNIST that the literature reports on (Larochelle and Murray, 2011) is one draw of the
    second kind; its file is not used here, so that figures agree with published ones up to the draw.

    Checked by tests/experiment/data/test_data_binarization.py.

    Args:
        data: integers of K levels.
        how: `static` for the threshold, `stochastic` for one draw of every value, the same at every call.
        seed: of the draw; each split has its own, so that its size does not move the others.

    Raises:
        UserError: data without levels.

    Example:
        >>> rows = torch.tensor([[0.0, 1, 2, 3, 4]])
        >>> binarized(Dataset("d", rows, rows, rows, bins=5), "static").test.tolist()
        [[0.0, 0.0, 1.0, 1.0, 1.0]]
    """
    bins = data.bins
    if bins is None:
        raise UserError(f"{data.name}: only integer data can be binarized; leave data.binarize out.")

    def levels(x: Tensor, split: int) -> Tensor:
        share = x / (bins - 1)
        if how == "static":
            return (share >= 0.5).float()
        generator = torch.Generator().manual_seed(seed * len(SPLITS) + split)
        return (torch.rand(x.shape, generator=generator) < share).float()

    train, validation, test = (levels(getattr(data, split), i) for i, split in enumerate(SPLITS))
    name = f"{data.name} binarized ({how})"
    return replace(data, name=name, bins=2, train=train, validation=validation, test=test)
