"""What the adaptive solver keeps: its pieces are those of one Brownian motion, and its error follows the tolerance."""

import math
from collections.abc import Callable

import pytest
import torch
from contracts.samplers import gaussian_score, marginal_moments, mixture_score, modes
from helpers import rng
from torch import Tensor

from cflows import SDE, VPSDE
from cflows.samplers.brownian_path import BrownianPath
from cflows.samplers.sampler import Sampler

Bridge = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def halves_are_brownian(bridge: Bridge) -> None:
    """Of W = √(u + v) a and z, both N(0, 1): the halves have variances u and v and nothing in common, to ten digits."""
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for u, v in ((1.0, 1.0), (0.2, 3.0), (5.0, 1e-3)):
        u, v = torch.tensor(u, dtype=torch.float64), torch.tensor(v, dtype=torch.float64)
        left = torch.stack([bridge((u + v).sqrt(), u, v, zero), bridge(zero, u, v, one)])
        right = torch.stack([(u + v).sqrt() - left[0], -left[1]])
        torch.testing.assert_close(left.square().sum(), u, rtol=1e-10, atol=0)
        torch.testing.assert_close(right.square().sum(), v, rtol=1e-10, atol=1e-12)
        assert (left * right).sum().abs() < 1e-12


def walks_a_brownian_motion(path: Callable[..., BrownianPath], *, rows: int = 4000) -> None:
    """However the rows halve: pieces follow one another from end to end, independent, of variance exp λ' - exp λ."""
    low, high, generator = -1.0, 2.0, rng(1)
    walk = path(low, high, like=torch.zeros(rows, 1, dtype=torch.float64), generator=rng(0), max_levels=4)
    normalized, reached = [], torch.full((rows,), low, dtype=torch.float64)
    previous = torch.full((rows,), torch.nan, dtype=torch.float64)
    while len(left := walk.left()):
        deep = left[(walk.level[left] < 4) & (torch.rand(len(left), generator=generator) < 0.6)]
        if len(deep):
            walk.halve(deep)
            continue
        here, there = walk.here(left), walk.there(left)
        assert torch.equal(here, reached[left]), "a piece starts where the one before it did not end"
        z = walk.increment[left, 0] / (there.exp() - here.exp()).sqrt()
        normalized.append(torch.stack([z, previous[left]], 1))
        previous[left], reached[left] = z, there
        walk.advance(left)
    assert torch.equal(reached, torch.full_like(reached, high)), "the pieces do not end at the end"
    z = torch.cat(normalized)
    error, pairs = len(z) ** -0.5, z[~z[:, 1].isnan()].prod(1)
    assert z[:, 0].mean().abs() < 4 * error, f"increments have the mean {z[:, 0].mean():.3f}"
    assert (z[:, 0].var() - 1).abs() < 4 * 2**0.5 * error, f"increments have {z[:, 0].var():.3f} times their variance"
    assert pairs.mean().abs() < 4 * len(pairs) ** -0.5, f"increments in a row correlate by {pairs.mean():.3f}"


def keeps_the_variance(sampler: Sampler, *, variance: float, bias: float, rows: int = 4000) -> None:
    """That of Gaussian data, started at the exact law of x_1, at t_min, within `bias` and three Monte Carlo errors."""
    sde, generator = VPSDE(), rng(0)
    start = marginal_moments(sde, 1.0, variance=variance)[1] ** 0.5
    x_T = start * torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    x = sampler(gaussian_score(sde, 0.0, variance), sde, x_T, generator=generator)
    off = x.var().item() / marginal_moments(sde, 1e-3, variance=variance)[1] - 1
    assert abs(off) < bias + 3 * (2 / rows) ** 0.5, f"the variance is off by {off:.3f} of it"


def one_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws that a piece of a row's path keeps whatever made it halve: hashes of row, level, place and coordinate."""

    def normal(path: BrownianPath, rows: Tensor, like: Tensor) -> Tensor:
        place = 0.37 * rows + 1.7 * path.level[rows] + 13.0 * path.position[rows] / 2**path.max_levels
        keys = place.to(like)[:, None] + 0.61 * torch.arange(1, like.shape[1] + 1).to(like)
        return torch.special.ndtri((torch.sin(97.0 * keys) * 43758.5453).frac().abs())

    monkeypatch.setattr(BrownianPath, "_normal", normal)


def error_follows_the_tolerance(
    build: Callable[[float], Sampler], sde: SDE, monkeypatch: pytest.MonkeyPatch, *, rows: int = 40
) -> None:
    """With its power ⅔: the error of a step, h^1.5, is held to it, and that of a path of n ∝ 1/h steps is √n h^1.5 = h.

    Medians of the distances to where a far tighter tolerance takes the rows along the same Brownian paths.
    """
    one_path(monkeypatch)
    score = mixture_score(sde, modes())
    x_T = sde.prior(2).double().sample((rows,), generator=rng(0))
    coarse, fine, reference = (build(tolerance)(score, sde, x_T) for tolerance in (0.16, 0.04, 0.01))
    errors = [(end - reference).norm(dim=1).median().item() for end in (coarse, fine)]
    assert errors[0] < 0.15, f"the error is {errors[0]:.2f} at a tolerance of 0.16"
    power = math.log(errors[0] / errors[1], 4)
    assert 0.4 < power < 0.95, f"the error falls with the power {power:.2f} of the tolerance"
