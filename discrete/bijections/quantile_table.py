"""x = F⁻¹(Φ(z)) from a table, for the search of its root to start at."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from core.shapes import features_first

CELLS = 4  # a knot
MOVES = 2  # to the right within a cell: more of its knots are seldom below


class QuantileTable(NamedTuple):
    """A cubic of the share of z between every two of M knots, of each of D columns.

    Cells even in z tell how many knots lie below: from there to the knots about z it takes a step or two, no search.
    Where a cell is crowded z may get the cubic of a neighbour, and x is its end.

    Checked by tests/discrete/test_quantile_table.py.

    Attributes:
        knots: z of the knots, rising, and ∞ behind the last, `(D, M + 1)`.
        per_z: cells a unit of z, `(D, 1)`.
        below: number of knots below each cell, `(D, cells)`.
        per_span: 1 over the distance of a knot to the next, `(D, M - 1)`.
        cubic: coefficients of shares from 0 to 1, the constant first, each `(D, M - 1)`.
    """

    knots: Tensor
    per_z: Tensor
    below: Tensor
    per_span: Tensor
    cubic: tuple[Tensor, ...]

    @classmethod
    def of(cls, x: Tensor, z: Tensor, slope: Tensor) -> "QuantileTable":
        """That of knots and of dx/dz there, all `(M, *event)`; x rises, but for rounding, and with it z."""
        x, z, slope = features_first(x), features_first(z).cummax(1).values, features_first(slope)
        step, span = x.diff(dim=1), z.diff(dim=1)
        first, last = span * slope[:, :-1], span * slope[:, 1:]
        cubic = x[:, :-1], first, 3 * step - 2 * first - last, first + last - 2 * step
        tiny = torch.finfo(z.dtype).tiny
        cells = CELLS * z.shape[1]
        per_z = cells / (z[:, -1:] - z[:, :1]).clamp(min=tiny)
        cell = _cell(z, z, per_z, cells)
        counts = torch.zeros(len(z), cells, dtype=cell.dtype, device=z.device)
        counts.scatter_add_(1, cell, torch.ones_like(cell))
        below = counts.cumsum(1).sub_(counts)
        return cls(F.pad(z, (0, 1), value=torch.inf), per_z, below, 1 / span.clamp(min=tiny), cubic)

    def __call__(self, z: Tensor) -> Tensor:
        """x of z, both `(batch, *event)`; beyond the knots that of the last of them."""
        columns = features_first(z)
        i = self.below.gather(1, _cell(columns, self.knots, self.per_z, self.below.shape[1]))
        for _ in range(MOVES):
            i += columns > self.knots.gather(1, i)
        j = (i - 1).clamp_(0, self.per_span.shape[1] - 1)
        share = (columns - self.knots.gather(1, j)).mul_(self.per_span.gather(1, j)).clamp_(0, 1)
        x = self.cubic[-1].gather(1, j)
        for c in self.cubic[-2::-1]:
            x.mul_(share).add_(c.gather(1, j))
        return x.T.reshape(z.shape)


def _cell(z: Tensor, knots: Tensor, per_z: Tensor, cells: int) -> Tensor:
    """Of each z in its column; NaN lies in the first."""
    place = (z - knots[:, :1]).mul_(per_z)
    return torch.fmax(place, place.new_zeros(())).clamp_(max=cells - 1).long()
