"""How fast the path of a one-step solver tends to that of the reverse SDE, for the same Brownian motion.

The data are a mixture on the line, whose score is not linear, so that every term of an Ito-Taylor expansion is there.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from contracts.samplers import mixture_score
from helpers import rng
from torch import Tensor

from cflows import SDE
from cflows.samplers.sampler import OneStepSampler
from cflows.sde import Score, reverse_drift
from cflows.time_grid import Spacing, time_grid
from core import GaussianMixture

PATHS, T_MIN = 600, 0.2


def two_modes() -> GaussianMixture:
    means = torch.tensor([[-1.0], [0.8]], dtype=torch.float64)
    variances = torch.tensor([[[0.1]], [[0.2]]], dtype=torch.float64)
    return GaussianMixture(means, variances, torch.tensor([0.3, 0.7], dtype=torch.float64))


class Motion(NamedTuple):
    """Brownian motion over steps of time: h, ΔW = W(h) - W(0), and I = ∫ W - W(0), `(paths, steps)`; h `(steps,)`."""

    h: Tensor
    increment: Tensor
    integral: Tensor

    def coarse(self, factor: int) -> "Motion":
        """The same motion over so many steps at once: I = Σ I_i + (W_i - W_0) h_i."""
        h, w, i = (part.unflatten(-1, (-1, factor)) for part in self)
        before = w.cumsum(-1) - w
        return Motion(h.sum(-1), w.sum(-1), (i + before * h).sum(-1))


class Problem(NamedTuple):
    """Where paths start, how they are driven, on the finest grid, and where they end."""

    score: Score
    grid: Tensor
    x: Tensor
    motion: Motion
    end: Tensor


@cache
def problem(sde: SDE, spacing: Spacing, finest: int) -> Problem:
    """Started at the exact law of x_1; solved by a Taylor scheme of strong order 1.5 that shares nothing with ours."""
    generator, score = rng(7), mixture_score(sde, two_modes())
    grid = time_grid(sde, steps=finest, t_min=T_MIN, spacing=spacing)
    h = grid[:-1] - grid[1:]
    first, second = torch.randn(2, PATHS, finest, generator=generator, dtype=torch.float64)
    motion = Motion(h, h.sqrt() * first, 0.5 * h**1.5 * (first + second / math.sqrt(3)))
    scale, std = sde.marginal(torch.ones((), dtype=torch.float64))
    data = two_modes().sample((PATHS,), generator=generator)
    x = scale * data + std * torch.randn(PATHS, 1, generator=generator, dtype=torch.float64)
    return Problem(score, grid, x, motion, _taylor(score, sde, x, grid, motion))


def _taylor(score: Score, sde: SDE, x: Tensor, grid: Tensor, motion: Motion) -> Tensor:
    """Strong Taylor scheme of order 1.5 for additive noise (Kloeden and Platen, 1992, eq. 10.4.10), τ = 1 - t.

    x ← x + a h + b ΔW + a_x b I + b_τ (h ΔW - I) + ½ (a_τ + a a_x + ½ b² a_xx) h², a = -(f - g² s), b = g; derivatives
    by central differences, whose error is far below that of the scheme.
    """
    delta = 1e-4

    def a(x: Tensor, t: Tensor) -> Tensor:
        return -reverse_drift(score, sde, x, t)

    for step, t in enumerate(grid[:-1]):
        h, w, i = motion.h[step], motion.increment[:, step, None], motion.integral[:, step, None]
        width = delta * (1 + sde.marginal(t)[1])
        low, here, high = a(torch.cat([x - width, x, x + width]), t).chunk(3)
        a_x, a_xx = (high - low) / (2 * width), (high - 2 * here + low) / width**2
        a_tau = (a(x, t - delta) - a(x, t + delta)) / (2 * delta)
        b, b_tau = sde.diffusion(t), (sde.diffusion(t - delta) - sde.diffusion(t + delta)) / (2 * delta)
        change = here * h + b * w + a_x * b * i + b_tau * (h * w - i)
        x = x + change + 0.5 * (a_tau + here * a_x + 0.5 * b.square() * a_xx) * h**2
    return x


def strong_order_is(
    build: Callable[..., OneStepSampler],
    sde: SDE,
    order: float,
    *,
    spacing: Spacing = "time",
    steps: tuple[int, ...] = (32, 64, 128, 256),
    excess: float = 0.15,
    finest: int = 1024,
) -> None:
    """The root mean square error of the paths at t_min falls with steps^-order: the fitted slope, within 0.15.

    `excess` is by how much it may be above, 0.15 unless the leading term of the error is too small to be seen.
    """
    of = problem(sde, spacing, finest)
    errors = [error_of_the_path(build, sde, spacing, n, of) for n in steps]
    log_steps, log_error = (torch.tensor(values, dtype=torch.float64).log() for values in (steps, errors))
    centred = log_steps - log_steps.mean()
    measured = -((centred * log_error).sum() / centred.square().sum()).item()
    assert -0.15 < measured - order < excess, f"strong order {measured:.2f}, not {order} (errors {errors})"


def error_of_the_path(
    build: Callable[..., OneStepSampler], sde: SDE, spacing: Spacing, steps: int, of: Problem
) -> float:
    """Root mean square over the paths at t_min, in standard deviations there."""
    factor = (len(of.grid) - 1) // steps
    sampler, motion, x = build(steps=steps, t_min=T_MIN, spacing=spacing), of.motion.coarse(factor), of.x
    for step, (t, s) in enumerate(pairwise(of.grid[::factor])):
        draws = _normal(motion, step)
        x = sampler.step(of.score, sde, x, t, s, lambda _, draws=draws: next(draws))
    return ((x - of.end).square().mean().sqrt() / of.end.std()).item()


def _normal(motion: Motion, step: int) -> Iterator[Tensor]:
    """ε₁ = ΔW/√h and ε₂ = √3 (2 I/h^1.5 - ε₁), independent of it: the two that ΔW and I are made of."""
    h, first = motion.h[step], motion.increment[:, step, None] / motion.h[step].sqrt()
    yield first
    yield math.sqrt(3) * (2 * motion.integral[:, step, None] / h**1.5 - first)
