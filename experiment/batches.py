"""Rows in batches that go to the device one by one; of test rows with the same noise for every model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from core.density import Context

# The noise of a draw follows from these two: with other batches every model would see other noise.
NOISE_SEED = 10_000_000
BATCH_ROWS = 1000
IN_TURN_ROWS = 2000


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


@dataclass(frozen=True)
class InTurn:
    """Rows and, where there are contexts, those, `draws` times in turn, each batch on the device; as often as wanted.

    Attributes:
        rows: `(rows, *event)`, on any device.
        context: `(rows, features)`, or None.
        device: where batches go.
        draws: how often each row comes; a batch may hold the end of one turn and the beginning of the next.
    """

    rows: Tensor
    context: Context
    device: torch.device
    draws: int = 1

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        parts = (self.rows,) if self.context is None else (self.rows, self.context)
        rows = len(self.rows)
        for start in range(0, self.draws * rows, IN_TURN_ROWS):
            end = min(start + IN_TURN_ROWS, self.draws * rows)
            places = torch.arange(start, end, device=self.rows.device) % rows
            yield tuple(part[places].to(self.device) for part in parts)
