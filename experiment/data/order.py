"""Orders of rows drawn with a seed: a permutation that is held, or one that is computed place by place."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST_HELD = 2**21  # rows: 16 MiB of places
ROUNDS = 8


class Order(Protocol):
    """A permutation of rows, of which a part is asked for by a slice of its places."""

    def __getitem__(self, places: slice, /) -> Tensor:
        """Rows at these places, int64."""


@dataclass(frozen=True)
class FeistelOrder:
    """π(i) = the first of f(i), f(f(i)), … below `rows`, f a permutation of pairs (l, r) of numbers modulo m.

    i = l m + r with the least m for which m² ≥ rows, and f is `ROUNDS` of (l, r) -> (r, l + h_k(r) mod m), each of
    which can be undone whatever h_k is: a Feistel network. h_k is a hash with a key of the seed. Fewer than 2 m of m²
    values lie beyond the rows, so that walking on hardly costs. No memory but for the places asked for; any place can
    be asked for alone, so an epoch goes on where it stopped and is dealt over processes by slices.

    References:
        Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, the generalized Feistel network and
        cycle walking.
        Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, the hash (mix64).

    Checked by tests/experiment/data/test_order.py.

    Args:
        rows: how many there are, 1 or more.
        seed: of the order, 0 or more.

    Example:
        >>> order = FeistelOrder(10, seed=0)
        >>> sorted(order[0:10].tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
        >>> order[3:5].tolist() == order[0:10].tolist()[3:5]
        True
    """

    rows: int
    seed: int

    def __getitem__(self, places: slice, /) -> Tensor:
        found = self._permuted(np.arange(*places.indices(self.rows), dtype=np.uint64))
        while (beyond := found >= self.rows).any():
            found[beyond] = self._permuted(found[beyond])
        return torch.from_numpy(found.astype(np.int64))

    def _permuted(self, places: NDArray[np.uint64]) -> NDArray[np.uint64]:
        m = np.uint64(math.isqrt(self.rows - 1) + 1)
        left, right = places // m, places % m
        for key in np.random.SeedSequence(self.seed).generate_state(ROUNDS, np.uint64):
            left, right = right, (left + _mix64(right + key) % m) % m
        return left * m + right


def drawn_order(rows: int, seed: int, *, most_held: float = MOST_HELD, device: Any = "cpu") -> Order:
    """An order of rows: `torch.randperm` of the seed up to `most_held` rows, beyond it a `FeistelOrder`.

    Example:
        >>> drawn_order(4, 0)[0:4].sort().values.tolist()
        [0, 1, 2, 3]
    """
    if rows <= most_held:
        return torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).to(device)
    return FeistelOrder(rows, seed)


def _mix64(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64 bits that looks random, modulo 2⁶⁴."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
