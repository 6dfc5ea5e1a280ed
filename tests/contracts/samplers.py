"""What every reverse-time sampler keeps, on Gaussian data, where it is an affine map of its noise.

With the exact score s(x, t) = -(x - α m)/(α² c + σ²) the sampler's mean and variance follow from single impulses,
without Monte Carlo error: one row for each draw of noise that the sampler makes.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cflows import SDE
from cflows.samplers.sampler import Sampler
from cflows.sde import Score
from core.shapes import align

_DRAWS = (torch.randn, torch.randn_like, torch.normal, torch.Tensor.normal_)


class _Impulses(TorchFunctionMode):
    """The k-th draw of normal noise is 1 in row k and 0 elsewhere."""

    calls = 0

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _DRAWS:
            result.zero_()
            result[self.calls] = 1.0
            self.calls += 1
        return result


def gaussian_score(sde: SDE, mean: float | Tensor, variance: float | Tensor) -> Score:
    """Score of N(mean, variance) data, coordinate by coordinate."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        scale, std = (align(part, x) for part in sde.marginal(t))
        return -(x - scale * mean) / (scale.square() * variance + std.square())

    return score


def exact_moments(
    sampler: Sampler, sde: SDE, *, mean: float = 0.0, variance: float, draws: int, start: tuple[float, float]
) -> tuple[float, float]:
    """Mean and variance of what the sampler makes of N(start) noise, for N(mean, variance) data."""
    score = gaussian_score(sde, mean, variance)
    return affine_moments(lambda x: sampler(score, sde, x), draws=draws, start=start)


def affine_moments(run: Callable[[Tensor], Tensor], *, draws: int, start: tuple[float, float]) -> tuple[float, float]:
    """Mean and variance of what an affine chain `(rows, 1)` with so many draws of noise makes of N(start)."""
    x = torch.zeros(draws + 2, 1, dtype=torch.float64)
    x[-1] = 1.0
    with _Impulses() as impulses:
        end = run(x)[:, 0]
    assert impulses.calls <= draws, f"{impulses.calls} draws of noise, {draws} expected"
    offset, slope = end[-2], end[-1] - end[-2]
    noise = (end[:-2] - offset).square().sum()
    return (slope * start[0] + offset).item(), (slope.square() * start[1] + noise).item()


def marginal_moments(sde: SDE, t: float, *, mean: float = 0.0, variance: float) -> tuple[float, float]:
    """Mean and variance of x_t for N(mean, variance) data."""
    scale, std = (v.item() for v in sde.marginal(torch.tensor(t, dtype=torch.float64)))
    return scale * mean, scale**2 * variance + std**2


def moments_are(
    sampler: Sampler, sde: SDE, expected: tuple[float, float], *, mean: float, variance: float, draws: int
) -> None:
    """Started at the exact law of x_1, mean and variance are the expected ones to ten digits."""
    start = marginal_moments(sde, 1.0, mean=mean, variance=variance)
    found = exact_moments(sampler, sde, mean=mean, variance=variance, draws=draws, start=start)
    for name, a, b in zip(("mean", "variance"), found, expected, strict=True):
        assert math.isclose(a, b, rel_tol=1e-10, abs_tol=1e-12), f"the {name} is {a}, not {b}"


def weak_order_is(
    build: Callable[[int], Sampler], sde: SDE, order: int, *, t_min: float, steps: tuple[int, ...] = (200, 400, 800)
) -> None:
    """Twice the steps divide the error of the variance at t_min by 2^order, within 15 %."""
    start, (_, target) = marginal_moments(sde, 1.0, variance=0.5), marginal_moments(sde, t_min, variance=0.5)
    errors = [abs(exact_moments(build(n), sde, variance=0.5, draws=n, start=start)[1] - target) for n in steps]
    for coarse, fine in pairwise(errors):
        measured = math.log2(coarse / fine)
        assert abs(measured - order) < 0.15 * order, f"weak order {measured:.2f}, not {order} (errors {errors})"


def reaches_gaussian_data(
    sampler: Sampler, sde: SDE, *, mean: Tensor, variance: Tensor, rows: int, bias: float, generator: torch.Generator
) -> None:
    """From prior noise: mean and covariance within `bias` standard deviations plus five Monte Carlo errors."""
    x_T = sde.prior(len(mean)).double().sample((rows,), generator=generator)
    x = sampler(gaussian_score(sde, mean, variance), sde, x_T, generator=generator)
    std = variance.sqrt()
    assert x.shape == (rows, len(mean))
    off = ((x.mean(0) - mean) / std).abs().max().item()
    assert off < bias + 5 / rows**0.5, f"the mean is {off:.3f} standard deviations off"
    covariance = torch.cov((x / std).T) - torch.eye(len(mean), dtype=x.dtype)
    assert covariance.abs().max() < 2 * bias + 5 * (2 / rows) ** 0.5, f"the scaled covariance is off by {covariance}"


def is_clean(sampler: Sampler, sde: SDE, *, steps: int) -> None:
    """The generator alone decides, x_T stays as it was, no gradient; the callback sees every step and the result."""
    for event, dtype in (((2,), torch.float64), ((1, 2, 2), torch.float32)):
        x_T = torch.linspace(-1, 1, 3 * math.prod(event), dtype=dtype).reshape(3, *event).requires_grad_()
        before, seen = x_T.detach().clone(), []

        def run(seed: int, x: Tensor = x_T, **keywords: Any) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            return sampler(gaussian_score(sde, 0.0, 1.0), sde, x, generator=generator, **keywords)

        x = run(0, callback=lambda step, value, seen=seen: seen.append((step, value.clone())))
        assert (x.shape, x.dtype) == (x_T.shape, dtype)
        assert not x.requires_grad, "the sample carries gradient"
        assert torch.equal(x_T.detach(), before), "x_T was changed in place"
        assert [step for step, _ in seen] == list(range(steps)), "the callback did not see every step"
        assert torch.equal(seen[-1][1], x), "the callback's last state is not the result"
        state = torch.get_rng_state()
        with torch.random.fork_rng():
            torch.manual_seed(99)
            assert torch.equal(run(0), x), "the same generator gives another path"
        assert torch.equal(state, torch.get_rng_state()), "the global generator was moved"
        with torch.random.fork_rng():
            torch.manual_seed(99)
            state = torch.get_rng_state()
            run(0)
            assert torch.equal(state, torch.get_rng_state()), "the global generator was moved"
        assert not torch.equal(run(1), x), "the generator is ignored"
        assert run(0, x_T[:0]).shape == (0, *event), "no rows in, some out"
