"""What objectives share."""

import torch
from jaxtyping import Float
from torch import Tensor

from core.rng import Rng, for_all_rows, rand


def spread_evenly(batch: Float[Tensor, "rows ..."], generator: Rng) -> Float[Tensor, " rows"]:
    """u of each row, uniform on [0, 1) and one from the next 1/rows apart: one common random offset."""
    rows = len(batch)
    offset = rand((), for_all_rows(generator, owner="a spread of times"), like=batch)
    return (offset + torch.arange(rows, dtype=batch.dtype, device=batch.device) / max(rows, 1)) % 1


def half_square(x: Float[Tensor, "rows ..."]) -> Float[Tensor, " rows"]:
    """½ ‖x‖² of each row."""
    return 0.5 * x.square().flatten(1).sum(1)


def mean_over_rows(losses: Float[Tensor, " rows"], *, owner: str) -> Float[Tensor, ""]:
    """The mean.

    Raises:
        ValueError: no rows.
    """
    require_rows(losses, owner=owner)
    return losses.mean()


def require_rows(batch: Float[Tensor, "rows ..."], *, owner: str) -> None:
    """Refuses an empty batch.

    Raises:
        ValueError: no rows.
    """
    if len(batch) == 0:
        raise ValueError(f"{owner} needs at least one row, but the batch is empty.")
