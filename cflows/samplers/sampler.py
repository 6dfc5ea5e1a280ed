import abc
from collections.abc import Callable

from torch import Tensor

from cflows.sde import SDE, Rows, Score
from core.density import Rng

Callback = Callable[[int, Tensor], None]


class Sampler(abc.ABC):
    """Moves noise x_T at t = 1 to data x_0 along the reverse of an SDE."""

    @abc.abstractmethod
    def __call__(
        self, score: Score, sde: SDE, x_T: Rows, *, generator: Rng = None, callback: Callback | None = None
    ) -> Rows:
        """x_0 like `x_T`, without gradient; `callback(step, x)` is called after each step for progress and paths."""
