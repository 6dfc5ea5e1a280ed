"""Test rows in batches, with the same noise for every model."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from core.density import Context

# The noise of a draw follows from these two: with other batches every model would see other noise.
NOISE_SEED = 10_000_000
BATCH_ROWS = 1000


class Batch(NamedTuple):
    """Rows that are evaluated together.

    Attributes:
        first_row: index of the first among all.
        x: `(rows, *event)`.
        context: `(rows, features)`, or None.
        generator: of the noise of this batch and draw.
    """

    first_row: int
    x: Tensor
    context: Context
    generator: torch.Generator


def batches(
    x: Tensor, context: Context = None, *, draw: int = 0, device: torch.device | None = None
) -> Iterator[Batch]:
    """All rows in turn, with the noise of one draw, each batch on the device, or where the rows are."""
    return (batch_at(i, x, context, draw=draw, device=device) for i in range(batch_count(x)))


def batch_count(x: Tensor) -> int:
    """Batches of a draw."""
    return math.ceil(len(x) / BATCH_ROWS)


def batch_at(
    place: int, x: Tensor, context: Context = None, *, draw: int = 0, device: torch.device | None = None
) -> Batch:
    """One of the batches of a draw, by its place among them."""
    device, start = x.device if device is None else device, place * BATCH_ROWS
    part = slice(start, start + BATCH_ROWS)
    generator = torch.Generator(device).manual_seed(NOISE_SEED + draw * batch_count(x) + place)
    of_part = None if context is None else context[part].to(device)
    return Batch(start, x[part].to(device), of_part, generator)
