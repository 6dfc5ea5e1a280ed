"""What a likelihood solved along an ODE keeps, on problems whose answer is known in closed form.

Every function takes the solver as a callable, so that a wrong one can be handed in.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cflows import SDE, VPSDE, probability_flow_log_prob
from cflows.sde import Score
from core import ExactDivergence, GaussianMixture, LikelihoodEstimate, StandardNormal
from core.bases import Base
from core.density import DensityModel
from core.rng import Rng
from core.shapes import align

Velocity = Callable[[Tensor, Tensor], Tensor]
# (velocity, base, x, steps or tolerance) -> log-density
OrderedSolver = Callable[[Velocity, DensityModel, Tensor, float], Tensor]
# (score, sde, base, x, t_min) -> estimate of the log-density at t_min
Likelihood = Callable[[Score, SDE, DensityModel, Tensor, float], LikelihoodEstimate]


class PerturbedMixture(Base):
    """The law of scale·x₀ + std·ε with x₀ from a mixture: the exact base at t = 1."""

    def __init__(self, mixture: GaussianMixture, scale: Tensor, std: Tensor) -> None:
        super().__init__(mixture.event_shape)
        self.double()
        self.mixture, self.scale, self.std = mixture, scale, std

    def _log_prob(self, x: Tensor) -> Tensor:
        return self.mixture.perturbed_log_prob(x, self.scale, self.std)

    def _rsample(self, shape: tuple[int, ...], generator: Rng) -> Tensor:
        return self.scale * self.mixture.sample(shape, generator=generator) + self.std * self._randn(shape, generator)


def logistic_growth(x: Tensor, t: Tensor) -> Tensor:
    """dx/dt = 2 t x (1 - x): not linear, depends on t, and its divergence 2 t (1 - 2x) is not zero."""
    return 2 * align(t, x) * x * (1 - x)


def logistic_log_prob(base: DensityModel, x: Tensor) -> Tensor:
    """x(1) = 1/(1 + (1/x - 1)/e) and dx(1)/dx = x(1)(1 - x(1))/(x (1 - x)), each coordinate on its own."""
    end = 1 / (1 + (1 / x - 1) / math.e)
    slope = end * (1 - end) / (x * (1 - x))
    return base.log_prob(end) + slope.log().sum(1)


def _logistic_error(solve: OrderedSolver, level: float) -> float:
    x = torch.linspace(0.1, 0.8, 8, dtype=torch.float64).reshape(4, 2)
    base = StandardNormal(2).double()
    return (solve(logistic_growth, base, x, level) - logistic_log_prob(base, x)).abs().max().item()


def order_is(solve: OrderedSolver, order: int, *, steps: tuple[int, ...] = (16, 32, 64)) -> None:
    """Halving the step divides the error of the log-density by 2^order, within 15 %."""
    errors = [_logistic_error(solve, n) for n in steps]
    for coarse, fine in pairwise(errors):
        measured = math.log2(coarse / fine)
        assert abs(measured - order) < 0.15 * order + 0.1, f"order {measured:.2f}, not {order} (errors {errors})"


def error_follows_the_tolerance(solve: OrderedSolver, *, tolerances: tuple[float, ...] = (1e-4, 1e-6, 1e-8)) -> None:
    """An adaptive method stays within 100 tolerances a dimension, and a hundredth of them is a tenth of the error."""
    errors = [_logistic_error(solve, tolerance) / 2 for tolerance in tolerances]
    for error, tolerance in zip(errors, tolerances, strict=True):
        assert error <= 100 * tolerance, f"off by {error:.1e} at tolerance {tolerance:g}"
    for loose, tight in pairwise(errors):
        assert tight < loose / 10, f"errors {errors}"


def time_stays_inside(log_prob: Callable[[Velocity, DensityModel, Tensor], object], *, t_min: float) -> None:
    """The velocity is asked within [t_min, 1] only: a network knows nothing of what lies beyond."""
    seen: list[float] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        seen.extend(t.flatten().tolist())
        return logistic_growth(x, t)

    log_prob(velocity, StandardNormal(2).double(), torch.full((3, 2), 0.4, dtype=torch.float64))
    assert min(seen) >= t_min, f"asked at t = {min(seen):g}, before {t_min:g}"
    assert max(seen) <= 1, f"asked at t = {max(seen):g}, after 1"


def solver_error_is_not_small(estimate: LikelihoodEstimate, exact: Tensor, *, share: float = 0.9) -> None:
    """`solver_error` errs on the large side: it covers the true error of at least this share of the rows."""
    assert estimate.solver_error is not None, "no solver error"
    error = (estimate.log_prob - exact).abs()
    covered = (error <= estimate.solver_error).double().mean().item()
    assert covered >= share, f"covers {covered:.2f} of the rows: {estimate.solver_error} for {error}"


def no_error_hides(run: Callable[..., LikelihoodEstimate], *, generator: torch.Generator) -> None:
    """Of a thousand passing pulses of random times no error exceeds three times the one that is reported.

    dx/dt = 10 exp(-(t - c)²/2w²) x with w below a step: on some the errors of two solves agree by chance.
    """
    w, c = 0.03, 0.2 + 0.6 * torch.rand(1000, 1, dtype=torch.float64, generator=generator)
    x, base = torch.ones_like(c), StandardNormal(1).double()
    estimate = run(lambda x, t: 10 * torch.exp(-0.5 * ((t - c) / w).square()) * x, base, x)
    whole = 10 * w * math.sqrt(2 * math.pi)
    gained = whole * (torch.special.ndtr((1 - c) / w) - torch.special.ndtr(-c / w))[:, 0]
    error = (estimate.log_prob - base.log_prob(x * gained.exp()[:, None]) - gained).abs()
    reported = estimate.solver_error
    assert (error <= 3 * reported).all(), f"an error is {(error / reported).max():.1f} times what is reported"


def no_error_hides_from_steps(
    likelihood: Likelihood, mixture: GaussianMixture, x: Tensor, *, far_too_large: float = 60
) -> None:
    """Under VP from t = 0.001 no row is off by more than three times its `solver_error`, nor is that far too large."""
    sde, t_min = VPSDE(), 1e-3
    with torch.no_grad():
        estimate = likelihood(exact_score(mixture, sde), sde, exact_base(mixture, sde), x, t_min)
    error = (estimate.log_prob - mixture.perturbed_log_prob(x, *sde.marginal(x.new_tensor(t_min)))).abs()
    reported = estimate.solver_error
    assert (error <= 3 * reported).all(), f"an error is {(error / reported).max():.1f} times what is reported"
    large = (reported.square().mean() / error.square().mean()).sqrt()
    assert large <= far_too_large, f"reported is {large:.0f} times the error"


def exact_score(mixture: GaussianMixture, sde: SDE) -> Score:
    """∇ log p_t of a mixture under the SDE."""
    return lambda x, t: mixture.perturbed_score(x, *sde.marginal(t))


def exact_base(mixture: GaussianMixture, sde: SDE) -> PerturbedMixture:
    """p_1 of a mixture under the SDE."""
    return PerturbedMixture(mixture, *sde.marginal(torch.ones((), dtype=torch.float64)))


def by_exact_trace(
    score: Score, sde: SDE, base: DensityModel, x: Tensor, t_min: float, *, tolerance: float = 1e-6, **options: Any
) -> LikelihoodEstimate:
    """`probability_flow_log_prob` as a `Likelihood`."""
    settings: dict[str, Any] = {"divergence": ExactDivergence(), "rtol": tolerance, "atol": tolerance, **options}
    return probability_flow_log_prob(score, sde, x, base=base, t_min=t_min, **settings)


def mixture_likelihood(
    likelihood: Likelihood,
    sde: SDE,
    mixture: GaussianMixture,
    x: Tensor,
    *,
    t_min: float = 1e-5,
    tolerance: float = 1e-4,
) -> None:
    """With the exact score and the exact p_1, the likelihood is that of the mixture at t_min."""
    found = likelihood(exact_score(mixture, sde), sde, exact_base(mixture, sde), x, t_min).log_prob
    expected = mixture.perturbed_log_prob(x, *sde.marginal(x.new_tensor(t_min)))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def truncation_is_first_order(
    likelihood: Likelihood, sde: SDE, mixture: GaussianMixture, x: Tensor, *, t_min: float = 2e-4
) -> None:
    """`truncation` is log p_0(x) - log p_{t_min}(x) up to the square of that difference, as half the time shows."""
    score, base = exact_score(mixture, sde), exact_base(mixture, sde)
    left, gaps = [], []
    for t in (t_min, t_min / 2):
        gap = mixture.log_prob(x) - mixture.perturbed_log_prob(x, *sde.marginal(x.new_tensor(t)))
        truncation = likelihood(score, sde, base, x, t).truncation
        assert truncation is not None, "no truncation"
        left.append((gap - truncation).abs())
        gaps.append(gap.abs())
        assert (left[-1] <= 0.2 * gap.abs() + 1e-9).all(), f"truncation {truncation} for {gap}"
    ratio, expected = (left[0] / left[1]).median().item(), (gaps[0] / gaps[1]).median().item() ** 2
    assert 0.87 < ratio / expected < 1.13, f"half the time leaves 1/{ratio:.2f} of the difference, not 1/{expected:.2f}"


def std_error_covers(estimate: LikelihoodEstimate, exact: float) -> None:
    """About 95 % of independent estimates lie within two standard errors, and their mean within four of its own."""
    error, std_error = estimate.log_prob - exact, estimate.std_error
    assert std_error is not None, "no standard error"
    assert std_error.isfinite().all(), "a standard error is not finite"
    covered = (error.abs() <= 2 * std_error).double().mean().item()
    assert 0.88 <= covered <= 0.985, f"{covered:.3f} of the estimates are within two standard errors"
    bias = error.mean().abs().item() / (error.std().item() / len(error) ** 0.5)
    assert bias < 4, f"the mean is {bias:.1f} standard errors off"
