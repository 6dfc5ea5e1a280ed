"""What solvers of the probability-flow ODE keep: its flow map, closed on Gaussian data, tightly solved on a mixture.

A solver is a callable (score, sde, x) -> x, so that a wrong one, or the way up to the latents, can be handed in.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from contracts.samplers import gaussian_score
from contracts.solvers import exact_score
from helpers import rng
from scipy.integrate import quad, solve_ivp
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cflows import SDE
from cflows.samplers.sampler import Sampler
from cflows.sde import Score, probability_flow
from cflows.time_grid import Spacing, time_grid
from core import GaussianMixture

Solver = Callable[[Score, SDE, Tensor], Tensor]
MEAN, VARIANCE = 0.7, 0.4


def latents(sde: SDE, rows: int = 8, event: tuple[int, ...] = (2,), *, seed: int = 0) -> Tensor:
    """Draws from the prior, float64."""
    return sde.prior(event).double().sample((rows,), generator=rng(seed))


def gaussian_flow(sde: SDE, x: Tensor, s: float, t: float, *, mean: float = MEAN, variance: float = VARIANCE) -> Tensor:
    """x at t from x at s: α_t m + (x - α_s m) √(V_t/V_s), V = α² c + σ²."""
    scale, std = sde.marginal(torch.tensor([s, t], dtype=torch.float64))
    total = scale.square() * variance + std.square()
    return scale[1] * mean + (x - scale[0] * mean) * (total[1] / total[0]).sqrt()


def mixture_flow(sde: SDE, mixture: GaussianMixture, x: Tensor, s: float, t: float) -> Tensor:
    """x at t from x at s to twelve digits, by another solver: dx/dt = f - ½ g² s."""
    velocity = probability_flow(exact_score(mixture, sde), sde)

    def field(time: float, y: Any) -> Any:
        return velocity(torch.from_numpy(y).reshape(x.shape), x.new_tensor(time)).flatten().numpy()

    found = solve_ivp(field, (s, t), x.flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-13)
    return torch.from_numpy(found.y[:, -1].copy()).reshape(x.shape)


def is_the_gaussian_flow(solve: Solver, sde: SDE, x: Tensor, s: float, t: float, *, tolerance: float) -> None:
    """On N(0.7, 0.4) data x at s is taken where it belongs at t."""
    expected = gaussian_flow(sde, x, s, t)
    off = (solve(gaussian_score(sde, MEAN, VARIANCE), sde, x) - expected).abs().max().item()
    assert off < tolerance, f"the flow map is off by {off:.1e}"


@cache
def problem(sde: SDE, mixture: GaussianMixture | None, t_min: float) -> tuple[Tensor, Score, Tensor]:
    """Noise, a score and where its flow takes the noise at t_min; Gaussian data where no mixture."""
    x = latents(sde)
    if mixture is None:
        return x, gaussian_score(sde, MEAN, VARIANCE), gaussian_flow(sde, x, 1.0, t_min)
    return x, exact_score(mixture, sde), mixture_flow(sde, mixture, x, 1.0, t_min)


def order_is(
    build: Callable[[int], Solver],
    sde: SDE,
    order: int,
    *,
    t_min: float,
    mixture: GaussianMixture | None = None,
    steps: Sequence[int] = (80, 160),
) -> None:
    """From 1 to t_min, twice the steps divide the error by 2^order, within 15 %; Gaussian data where no mixture."""
    x, score, expected = problem(sde, mixture, t_min)
    errors = [(build(n)(score, sde, x) - expected).abs().max().item() for n in steps]
    for coarse, fine in pairwise(errors):
        measured = math.log2(coarse / fine)
        assert abs(measured - order) < 0.15 * order, f"order {measured:.2f}, not {order} (errors {errors})"


def rough_grid(sde: SDE, *, steps: int, t_min: float, spacing: str) -> Tensor:
    """In place of `time_grid`: every other time half a step early in log-SNR, so that steps are as 1 to 3 for ever.

    On a grid that a smooth function spreads, neighbouring steps become alike and hide what goes wrong with their ratio.
    """
    lam = sde.log_snr(torch.tensor([1.0, t_min], dtype=torch.float64))
    place = torch.arange(steps + 1, dtype=torch.float64)
    place[1:-1:2] -= 0.5
    times = sde.time(torch.lerp(lam[0], lam[1], place / steps))
    times[0], times[-1] = 1.0, t_min
    return times


def evaluations_are(solve: Solver, sde: SDE, count: int, *, t_min: float) -> None:
    """So many score evaluations, each of all rows, at a 0-dimensional time within [t_min, 1]."""
    seen: list[float] = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        assert (x.shape, t.shape) == ((8, 2), ()), f"the score was asked for x {x.shape} at t {t.shape}"
        seen.extend(t.flatten().tolist())
        return gaussian_score(sde, MEAN, VARIANCE)(x, t)

    solve(score, sde, latents(sde))
    assert len(seen) == count, f"{len(seen)} evaluations, {count} stated"
    assert min(seen) >= t_min, f"asked at t = {min(seen):g}, before {t_min:g}"
    assert max(seen) <= 1, f"asked at t = {max(seen):g}, after 1"


def stays_inside(solve: Solver, score: Score, sde: SDE, x: Tensor, *, t_min: float) -> None:
    """The score is asked within [t_min, 1] only, whatever the solver tries in order to choose a step."""
    seen: list[float] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        seen.extend(t.flatten().tolist())
        return score(x, t)

    solve(watched, sde, x)
    assert t_min <= min(seen), f"asked at t = {min(seen):g}, before {t_min:g}"
    assert max(seen) <= 1, f"asked at t = {max(seen):g}, after 1"


def _integrals(nodes: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """∫ e^{λ - high} of Lagrange's polynomials through the nodes, from low to high."""
    found = []
    for k, node in enumerate(nodes.tolist()):
        others = np.delete(nodes.numpy(), k)

        def integrand(u: float, others: np.ndarray = others, node: float = node) -> float:
            return math.exp(u - high) * np.prod((u - others) / (node - others))

        found.append(quad(integrand, low.item(), high.item())[0])
    return torch.tensor(found, dtype=torch.float64)


def _weights(lam: Tensor, i: int, order: int) -> Tensor:
    """What the last predictions weigh in step i, oldest first; two have a rule of their own, that of algorithm 2."""
    nodes = lam[max(0, i + 1 - order) : i + 1]
    if len(nodes) != 2:
        return _integrals(nodes, lam[i], lam[i + 1])
    h, r = lam[i + 1] - lam[i], (lam[i] - lam[i - 1]) / (lam[i + 1] - lam[i])
    return -torch.expm1(-h) * torch.stack([-1 / (2 * r), 1 + 1 / (2 * r)])


def predictions_weigh(solve: Solver, sde: SDE, order: int, *, steps: int, spacing: Spacing, t_min: float) -> None:
    """Of multistep exponential solvers: data predictions weigh what the polynomial through the last of them does.

    Prediction i is the unit vector i, whatever x: what comes out is the weights, summed over the steps.
    """
    unit = iter(torch.eye(steps, dtype=torch.float64))
    times = time_grid(sde, steps=steps, t_min=t_min, spacing=spacing)
    (alpha, sigma), lam = sde.marginal(times), sde.log_snr(times) / 2

    def score(x: Tensor, t: Tensor) -> Tensor:
        scale, std = sde.marginal(t)
        return (scale * next(unit) - x) / std.square()

    expected = torch.zeros(steps, dtype=torch.float64)
    found = solve(score, sde, expected[None])[0]
    for i in range(steps):
        if order == 3 and i == 1:  # the first step is taken again along the line through its two ends
            rise = _integrals(lam[:2], lam[0], lam[1])[1]
            expected[:2] += alpha[1] * torch.stack([-rise, rise])
        expected = sigma[i + 1] / sigma[i] * expected
        expected[max(0, i + 1 - order) : i + 1] += alpha[i + 1] * _weights(lam, i, order)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


class _Prescribed(TorchFunctionMode):
    """Draws of normal noise come from a list."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.left = list(noise)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.copy_(self.left.pop(0)) if func is torch.randn else result


def strong_order_is(
    build: Callable[[int], Sampler],
    sde: SDE,
    order: float,
    *,
    t_min: float,
    mixture: GaussianMixture,
    steps: Sequence[int] = (10, 20, 40, 80),
    fine: int = 320,
    rows: int = 40,
) -> None:
    """Of exponential solvers: on one Brownian path the root-mean-square error falls as steps^-order, within 0.2.

    What N steps draw is √2 ∫ e^λ dw over each step, divided by its standard deviation √(e^{2λ_s} - e^{2λ_t}), on a grid
    even in log-SNR; the path is that of `fine` steps, whose increments add up.
    """
    times = time_grid(sde, steps=fine, t_min=t_min, spacing="log_snr")
    squares = torch.exp(sde.log_snr(times))
    path = squares.diff().sqrt()[:, None, None] * torch.randn(fine, rows, 2, generator=rng(1), dtype=torch.float64)

    def run(n: int) -> Tensor:
        increments = path.reshape(n, fine // n, rows, 2).sum(1)
        with _Prescribed(increments / squares[:: fine // n].diff().sqrt()[:, None, None]):
            return build(n)(exact_score(mixture, sde), sde, x_T)

    x_T = latents(sde, rows)
    expected = run(fine)
    errors = torch.stack([(run(n) - expected).square().mean().sqrt() for n in steps]).log2()
    level = torch.tensor(steps, dtype=torch.float64).log2()
    centred = level - level.mean()
    measured = -((centred * errors).sum() / centred.square().sum()).item()
    assert abs(measured - order) < 0.2, f"strong order {measured:.2f}, not {order} (errors {errors.exp2().tolist()})"
