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
from torch.distributions import MultivariateNormal
from torch.overrides import TorchFunctionMode

from cflows import SDE
from cflows.samplers.sampler import Sampler
from cflows.sde import Score
from core import GaussianMixture
from core.rng import RowGenerators
from core.shapes import align

_DRAWS = (torch.randn, torch.randn_like, torch.normal, torch.Tensor.normal_)

# Means, covariances and weights of three modes in the plane, apart from one another and of different shapes.
MODES = (
    torch.tensor([[-2.0, 0.5], [1.5, 1.5], [1.0, -2.0]], dtype=torch.float64),
    torch.tensor([[[0.3, 0.2], [0.2, 0.3]], [[0.2, 0.0], [0.0, 0.4]], [[0.5, -0.2], [-0.2, 0.2]]], dtype=torch.float64),
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
)


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


def mixture_score(sde: SDE, mixture: GaussianMixture) -> Score:
    """Score of data from a mixture, in closed form at every t."""
    return lambda x, t: mixture.perturbed_score(x, *sde.marginal(t))


def modes() -> GaussianMixture:
    """The mixture of MODES."""
    return GaussianMixture(*MODES)


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
    build: Callable[[int], Sampler],
    sde: SDE,
    order: float,
    *,
    t_min: float,
    steps: tuple[int, ...] = (200, 400, 800),
    draws: int = 1,
    mean: float = 0.0,
) -> None:
    """Twice the steps divide the errors of mean and variance at t_min by 2^order, within 15 %.

    A step takes so many `draws`; what is right to twelve digits has every order.
    """
    data = {"mean": mean, "variance": 0.5}
    start, target = marginal_moments(sde, 1.0, **data), marginal_moments(sde, t_min, **data)
    found = [exact_moments(build(n), sde, draws=draws * n, start=start, **data) for n in steps]
    for name, exact, values in zip(("mean", "variance"), target, zip(*found, strict=True), strict=True):
        errors = [abs(value - exact) for value in values]
        for coarse, fine in pairwise(errors):
            if coarse > 1e-12:
                measured = math.log2(coarse / fine)
                assert abs(measured - order) < 0.15 * order, (
                    f"weak order {measured:.2f} of the {name}, not {order} (errors {errors})"
                )


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


def reaches_a_mixture(
    sampler: Sampler, sde: SDE, *, bias: float, generator: torch.Generator, rows: int = 4000, t_min: float = 0.0
) -> None:
    """From prior noise: weight, mean and covariance of every mode, at t_min.

    Each within `bias` plus four Monte Carlo errors: weights as they are, means in standard deviations of their mode,
    covariances, whitened by their mode, twice that. A point belongs to the modes by its responsibilities, under which
    the exact law has these very moments, however much the modes overlap.
    """
    x_T = sde.prior(2).double().sample((rows,), generator=generator)
    x = sampler(mixture_score(sde, modes()), sde, x_T, generator=generator)
    assert x.shape == (rows, 2)
    scale, std = sde.marginal(torch.tensor(t_min, dtype=torch.float64))
    means, covariances, weights = MODES
    laws = MultivariateNormal(scale * means, scale**2 * covariances + std**2 * torch.eye(2))
    responsibilities = torch.softmax(weights.log() + laws.log_prob(x[:, None]), 1)
    for mean, root, weight, r in zip(laws.loc, laws.scale_tril, weights.tolist(), responsibilities.T, strict=True):
        error = 4 / math.sqrt(weight * rows)
        share, r = r.mean().item(), r / r.sum()
        assert abs(share - weight) < bias + 2 / rows**0.5, f"the mode of weight {weight} weighs {share:.3f}"
        z = torch.linalg.solve_triangular(root, (x - mean).T, upper=False)
        assert (z @ r).abs().max() < bias + error, f"the mean of mode {weight} is {z @ r} standard deviations off"
        covariance = (r * z) @ z.T - torch.eye(2)
        assert covariance.abs().max() < 2 * bias + 2**0.5 * error, f"mode {weight}'s covariance is off by {covariance}"


def row_is_its_own(sampler: Sampler, sde: SDE, *, seeds: tuple[int, ...] = (5, 0, 12, 7)) -> None:
    """With a generator for each row a row is the same alone, in another batch, and in another place there."""
    score = mixture_score(sde, modes())
    x_T = sde.prior(2).double().sample((len(seeds),), generator=torch.Generator().manual_seed(1))

    def run(index: list[int]) -> Tensor:
        return sampler(score, sde, x_T[index], generator=RowGenerators([seeds[i] for i in index]))

    together = run(list(range(len(seeds))))
    for index in ([len(seeds) - 1], [2, 0]):
        torch.testing.assert_close(run(index), together[index], rtol=1e-9, atol=1e-9)


def is_clean(sampler: Sampler, sde: SDE, *, steps: int | None, random: bool = True) -> None:
    """The generator alone decides, x_T stays as it was, no gradient; the callback sees every step and the result.

    `steps` is how often the callback is called, None where that depends on the run; what is not `random` gives the same
    for every generator.
    """
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
        expected = range(len(seen) if steps is None else steps)
        assert seen, "the callback was never called"
        assert [step for step, _ in seen] == list(expected), "the callback did not see every step"
        assert torch.equal(seen[-1][1], x), "the callback's last state is not the result"
        with torch.random.fork_rng():
            torch.manual_seed(99)
            state = torch.get_rng_state()
            assert torch.equal(run(0), x), "the same generator gives another path"
            assert torch.equal(state, torch.get_rng_state()), "the global generator was moved"
        assert torch.equal(run(1), x) != random, "the generator is ignored" if random else "it is random"
        assert run(0, x_T[:0]).shape == (0, *event), "no rows in, some out"
