import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.rng import Rng, RowGenerators, randn
from core.shapes import align

Index = Int[Tensor, " some"]  # which rows, on the CPU


class BrownianPath:
    """A Brownian motion for each row, in the clock k = exp λ from λ_0 up to λ_1, walked in dyadic pieces of [λ_0, λ_1].

    It starts with the increment W ~ N(0, exp λ_1 - exp λ_0) over the whole. A piece is halved, in λ, by the Brownian
    bridge: of W over u + v the left half, over u, is W u/(u + v) + √(u v/(u + v)) z, and the right half is the rest,
    kept until the row gets there. Whatever makes a row halve its pieces, they stay those of one Brownian motion.

    References:
        Gaines and Lyons, "Variable step size control in the numerical solution of stochastic differential equations",
        1997, section 3.

    Checked by tests/cflows/test_adaptive.py.

    Args:
        low: λ_0.
        high: λ_1, above λ_0.
        like: a tensor `(rows, *event)` whose shape, dtype and device the increments take.
        generator: draws them; one for each row makes a path independent of the batch.
        max_levels: how often the whole can be halved.

    Attributes:
        level: of the piece that a row is at, (high - low)/2^level long in λ, on the CPU.
        increment: W over it.
    """

    def __init__(self, low: float, high: float, *, like: Tensor, generator: Rng, max_levels: int) -> None:
        self.low, self.high, self.max_levels = low, high, max_levels
        self.generator = generator
        self.level = torch.zeros(len(like), dtype=torch.long)
        self.position = torch.zeros(len(like), dtype=torch.long)  # of 2^max_levels, where the piece starts
        self.increment = math.sqrt(math.exp(high) - math.exp(low)) * self._normal(torch.arange(len(like)), like)
        self.kept = torch.zeros_like(self.increment)[None]  # right halves by level; no level above has one

    def left(self) -> Index:
        """The rows that have not arrived."""
        return (self.position < 2**self.max_levels).nonzero()[:, 0]

    def here(self, rows: Index) -> Float[Tensor, " some"]:
        """λ where the piece of each row starts, float64."""
        return self.low + (self.high - self.low) * (self.position[rows].double() / 2**self.max_levels)

    def there(self, rows: Index) -> Float[Tensor, " some"]:
        """λ where it ends."""
        end = self.position[rows] + 2 ** (self.max_levels - self.level[rows])
        return self.low + (self.high - self.low) * (end.double() / 2**self.max_levels)

    def halve(self, rows: Index) -> None:
        """Leaves the left half of the piece to walk, and keeps the right half.

        Raises:
            RuntimeError: a piece that is of the finest level already.
        """
        finest = (self.level[rows] == self.max_levels).nonzero()
        if len(finest):
            row = rows[finest[0]]
            raise RuntimeError(
                f"row {row.item()} needs pieces finer than level {self.max_levels}, at log-SNR "
                f"{self.here(row).item():.4g}: the score is too rough for the tolerance; loosen it or raise max_levels."
            )
        self.level[rows] += 1
        here, middle = self.here(rows), self.there(rows)
        there = 2 * middle - here
        u, v = middle.exp() - here.exp(), there.exp() - middle.exp()
        whole, z = self.increment[rows], self._normal(rows, self.increment)
        first = bridge(whole, align(u.to(whole), whole), align(v.to(whole), whole), z)
        if self.level[rows].max() == len(self.kept):
            self.kept = torch.cat([self.kept, torch.zeros_like(self.kept[:1])])
        self.increment[rows], self.kept[self.level[rows], rows] = first, whole - first

    def advance(self, rows: Index) -> None:
        """Moves to the pieces behind: the right half of level max_levels - n that starts where 2^n divides."""
        self.position[rows] += 2 ** (self.max_levels - self.level[rows])
        position = self.position[rows]
        lowest_bit = position & -position
        self.level[rows] = self.max_levels - lowest_bit.double().log2().round().long()
        self.increment[rows] = self.kept[self.level[rows], rows]

    def _normal(self, rows: Index, like: Tensor) -> Tensor:
        generator = self.generator
        if isinstance(generator, RowGenerators) and len(rows):
            generator = generator.rows(rows.tolist())
        return randn((len(rows), *like.shape[1:]), generator, like=like)


def bridge(whole: Tensor, u: Tensor, v: Tensor, z: Tensor) -> Tensor:
    """W u/(u + v) + √(u v/(u + v)) z: the increment over the first u of the increment W over u + v."""
    return whole * (u / (u + v)) + (u * v / (u + v)).sqrt() * z
