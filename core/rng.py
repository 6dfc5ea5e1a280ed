"""Where randomness comes from: one generator for a call, or one for each row, which then hears of no neighbour."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class RowGenerators:
    """One generator a row, each with a seed of its own: what is drawn for a row depends on its seed alone.

    Not on the batch that the row is in, nor on its place there, nor on the device: every number is drawn on the CPU
    and then moved.

    Checked by tests/core/test_rng.py.

    Args:
        seeds: one a row, whole numbers from 0.

    Raises:
        ValueError: no seed, or a negative one.

    Example:
        >>> a = randn((2, 3), RowGenerators([5, 6]), like=torch.zeros(()))
        >>> b = randn((1, 3), RowGenerators([6]), like=torch.zeros(()))
        >>> torch.equal(a[1:], b)
        True
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        if not len(seeds) or min(seeds) < 0:
            raise ValueError(f"RowGenerators takes one seed a row, each 0 or more, but has {list(seeds)}.")
        self._generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def __len__(self) -> int:
        return len(self._generators)

    def rows(self, index: Sequence[int]) -> "RowGenerators":
        """The generators of some rows, shared with these: what they draw, these have drawn.

        Raises:
            ValueError: a row that has none.
        """
        if len(index) and max(index) >= len(self):
            raise ValueError(f"there are {len(self)} row generators, but row {max(index)} asks for one.")
        chosen = RowGenerators.__new__(RowGenerators)
        chosen._generators = [self._generators[i] for i in index]
        return chosen

    def get_state(self) -> Tensor:
        """Where each generator stands, a row each."""
        return torch.stack([generator.get_state() for generator in self._generators])

    def set_state(self, state: Tensor) -> None:
        """Puts each generator where it stood."""
        for generator, row in zip(self._generators, state, strict=True):
            generator.set_state(row.clone())  # of a view torch reads what lies before it

    def draw(self, law: Callable[..., Tensor], size: Sequence[int], like: Tensor) -> Tensor:
        """`law(shape, generator=, dtype=)` row by row; leading sizes of `size` multiply to the number of rows."""
        rows = next((i for i in range(1, len(size) + 1) if math.prod(size[:i]) == len(self)), None)
        if rows is None:
            raise ValueError(f"{len(self)} row generators cannot draw values of shape {tuple(size)}: one row each.")
        event = tuple(size[rows:])
        drawn = [law(event, generator=generator, dtype=like.dtype) for generator in self._generators]
        return torch.stack(drawn).reshape(tuple(size)).to(like.device)


Rng = torch.Generator | RowGenerators | None


def randn(size: Sequence[int], generator: Rng, *, like: Tensor) -> Tensor:
    """Standard normal values of a shape, in the dtype and on the device of `like`."""
    if isinstance(generator, RowGenerators):
        return generator.draw(torch.randn, size, like)
    return torch.randn(tuple(size), generator=generator, dtype=like.dtype, device=like.device)


def rand(size: Sequence[int], generator: Rng, *, like: Tensor) -> Tensor:
    """Values uniform on [0, 1) of a shape, in the dtype and on the device of `like`."""
    if isinstance(generator, RowGenerators):
        return generator.draw(torch.rand, size, like)
    return torch.rand(tuple(size), generator=generator, dtype=like.dtype, device=like.device)


def for_all_rows(generator: Rng, *, owner: str) -> torch.Generator | None:
    """The generator where one serves all rows.

    Raises:
        TypeError: there is one for each row.
    """
    if isinstance(generator, RowGenerators):
        raise TypeError(f"{owner} draws for all rows at once: it takes one torch.Generator, not RowGenerators.")
    return generator


def with_same_draws(calls: Sequence[Callable[[], T]], generator: Rng) -> list[T]:
    """What the calls return, each of which finds the generator where the first found it, and so draws the same.

    The generator goes on from where the last call that drew anything left it. Without one each draws its own.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> a, b = with_same_draws([lambda: torch.rand(1, generator=g)] * 2, g)
        >>> torch.equal(a, b), torch.equal(b, torch.rand(1, generator=g))
        (True, False)
    """
    if generator is None:
        return [call() for call in calls]
    start = end = generator.get_state()
    found = []
    for call in calls:
        generator.set_state(start)
        found.append(call())
        state = generator.get_state()
        end = end if torch.equal(state, start) else state
    generator.set_state(end)
    return found
