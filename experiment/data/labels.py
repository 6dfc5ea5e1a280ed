from dataclasses import dataclass

import torch
from torch import Tensor

from experiment.errors import UserError


@dataclass(frozen=True, eq=False)
class Labels:
    """The class of each row of a dataset's three splits.

    Attributes:
        train: classes of the training rows, `(rows,)` int64, each within 0..classes-1.
        validation: classes of the validation rows.
        test: classes of the test rows.
        classes: how many there are.

    Raises:
        UserError: a class that is none of them.

    Example:
        >>> Labels(train=torch.tensor([2, 0]), validation=torch.tensor([1]), test=torch.tensor([1]), classes=3).classes
        3
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    classes: int

    def __post_init__(self) -> None:
        for split in (self.train, self.validation, self.test):
            bad = ((split < 0) | (split >= self.classes)).nonzero()
            if len(bad):
                raise UserError(
                    f"labels: row {bad[0, 0]} has class {split[bad[0, 0]]}; classes go from 0 to {self.classes - 1}."
                )


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """The context of rows of these classes, `(rows, classes)` float32: 1 at the class, else 0; no class is all 0.

    Example:
        >>> one_hot(torch.tensor([1, 0]), 2).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    return torch.nn.functional.one_hot(labels, classes).float()
