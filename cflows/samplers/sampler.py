"""What every reverse-time sampler is, and the loop that those share which move by one step at a time."""

import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from cflows.sde import SDE, Rows, Score
from cflows.time_grid import Spacing, check_grid, time_grid
from core.rng import Rng, randn

Callback = Callable[[int, Tensor], None]
Noise = Callable[[Tensor], Tensor]  # standard normal values like its argument


class Orders(NamedTuple):
    """Powers of the step size that a solver's errors fall with; None where no power is claimed.

    Attributes:
        strong: of the path, for the same Brownian motion; of the solution, for an ODE.
        weak: of the law of x_0: its mean, its covariance.
    """

    strong: float | None
    weak: float | None


class Sampler(abc.ABC):
    """Moves noise x_T at t = 1 to data x_0 along the reverse of an SDE."""

    @property
    @abc.abstractmethod
    def t_min(self) -> float:
        """The last time, within [0, 1), below which it asks for no score."""

    @property
    @abc.abstractmethod
    def orders(self) -> Orders:
        """The orders of convergence that it claims."""

    @abc.abstractmethod
    def __call__(
        self, score: Score, sde: SDE, x_T: Rows, *, generator: Rng = None, callback: Callback | None = None
    ) -> Rows:
        """x_0 like `x_T`, without gradient; `callback(step, x)` is called after each step for progress and paths."""


@dataclass(frozen=True, kw_only=True)
class OneStepSampler(Sampler, abc.ABC):
    """A sampler that needs nothing but x at t to move to s < t, so that it can also predict for another.

    Attributes:
        steps: number of steps.
        t_min: last time, above 0 for a score network.
        spacing: how the times are spread, as in `time_grid`.
        denoise: leave out the noise of the last step, as is usual for images.

    Raises:
        ValueError: fewer than one step, t_min outside [0, 1), or an unknown spacing.
    """

    steps: int = 1000
    t_min: float = 1e-3
    spacing: Spacing = "time"
    denoise: bool = True

    def __post_init__(self) -> None:
        check_grid(type(self).__name__, steps=self.steps, t_min=self.t_min, spacing=self.spacing)

    @abc.abstractmethod
    def step(self, score: Score, sde: SDE, x: Rows, t: Tensor, s: Tensor, noise: Noise) -> Rows:
        """x at s from x at t > s, both 0-dimensional; `noise(x)` draws, and is zero in a last step without noise."""

    def noise_at(self, step: int, draw: Noise) -> Noise:
        """`draw`, or zeros in a last step that leaves its noise out."""
        return torch.zeros_like if self.denoise and step == self.steps - 1 else draw

    @torch.no_grad()
    def __call__(
        self, score: Score, sde: SDE, x_T: Rows, *, generator: Rng = None, callback: Callback | None = None
    ) -> Rows:
        """x_0 like `x_T`."""
        x, draw = x_T, normal_like(generator)
        for step, (t, s) in enumerate(intervals(self, sde, x_T)):
            x = self.step(score, sde, x, t, s, self.noise_at(step, draw))
            if callback is not None:
                callback(step, x)
        return x


def intervals(sampler: OneStepSampler, sde: SDE, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(t, s) of each step, 0-dimensional, in the dtype and on the device of x."""
    times = time_grid(sde, steps=sampler.steps, t_min=sampler.t_min, spacing=sampler.spacing)
    return pairwise(times.to(x))


def normal_like(generator: Rng) -> Noise:
    """Standard normal values like a tensor, from a generator."""
    return lambda x: randn(x.shape, generator, like=x)
