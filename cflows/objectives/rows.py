"""What objectives share."""

from jaxtyping import Float
from torch import Tensor


def half_square(x: Float[Tensor, "rows ..."]) -> Float[Tensor, " rows"]:
    """½ ‖x‖² of each row."""
    return 0.5 * x.square().flatten(1).sum(1)


def mean_over_rows(losses: Float[Tensor, " rows"], *, owner: str) -> Float[Tensor, ""]:
    """The mean.

    Raises:
        ValueError: no rows.
    """
    if len(losses) == 0:
        raise ValueError(f"{owner} needs at least one row, but the batch is empty.")
    return losses.mean()
