"""The contracts of norms, series and errors of residual flows bite: each passes what is right and rejects one fault."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from contracts import bijections, residual
from helpers import Tooth, normal, perturb, rng, seeded
from torch import Tensor
from wrong import Tampered

from core import LikelihoodEstimate, StandardNormal
from core.nets.lipschitz import Jacobian
from core.nets.spectral import SpectralLayer
from discrete import Bijection, Flow, InvertibleResidual
from discrete.bijections.residual import power_series, roulette_weights, truncation_bound

Q = 0.5
A = normal(7, (7,), rng(0))
A = 0.6 * A / torch.linalg.matrix_norm(A, 2)
Weights = Callable[[int], list[float]]
Step = Callable[[Tensor, Tensor], Tensor]


def series(
    J: Jacobian,
    v: Tensor,
    weights: Sequence[float],
    *,
    sign: int = 1,
    over: Callable[[int], float] = float,
    product: str = "pull",
    start: float = 1.0,
    alternate: int = -1,
) -> tuple[Tensor, Tensor]:
    """`power_series` written again with places to go wrong."""
    log_det, w, u = torch.zeros(v.shape[1], dtype=v.dtype), start * v, v
    for k, c in enumerate(weights, 1):
        u = getattr(J, product)(u)
        log_det = log_det - sign * (-1) ** k * c / over(k) * (u * v).flatten(2).sum(2).mean(0)
        w = w + alternate**k * c * u
    return log_det, w


def estimator(weights: Weights = lambda n: roulette_weights(2, n, Q), **fault: Any) -> residual.Estimator:
    return lambda J, v, further: series(J, v, weights(further), **fault)


ESTIMATORS: dict[str, residual.Estimator] = {
    "(-1)^k for (-1)^(k+1)": estimator(sign=-1),
    "1/k missing": estimator(over=lambda k: 1.0),
    "1/(k + 1) for 1/k": estimator(over=lambda k: k + 1.0),
    "1/P(N ≥ j - 1)": estimator(lambda n: [1.0, 1.0, *(Q ** -(j - 1) for j in range(1, n + 1))]),
    "1/P(N ≥ j + 1)": estimator(lambda n: [1.0, 1.0, *(Q ** -(j + 1) for j in range(1, n + 1))]),
    "1/P(N = j)": estimator(lambda n: [1.0, 1.0, *(Q**-j / (1 - Q) for j in range(1, n + 1))]),
    "no weights": estimator(lambda n: [1.0] * (2 + n)),
    "the second term left out": estimator(lambda n: [1.0, 0.0, *roulette_weights(2, n, Q)[2:]]),
    "gradient without its first term": estimator(start=0.0),
    "gradient without signs": estimator(alternate=1),
    "gradient by J for Jᵀ": estimator(product="push"),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_series(name: str) -> None:
    contract = partial(residual.is_unbiased, A=A, q=Q)
    right = lambda: lambda J, v, further: power_series(J, v, roulette_weights(2, further, Q))  # noqa: E731
    residual.is_unbiased(estimator(), A, q=Q)
    Tooth(contract, right, lambda: ESTIMATORS[name]).bites()


BOUNDS: dict[str, Callable[[int, float, int], float]] = {
    "L^(n+2)": lambda n, L, D: D * L ** (n + 2) / ((n + 1) * (1 - L)),
    "L^n": lambda n, L, D: D * L**n / ((n + 1) * (1 - L)),
    "n in the denominator": lambda n, L, D: D * L ** (n + 1) / (n * (1 - L)),
    "without 1 - L": lambda n, L, D: D * L ** (n + 1) / (n + 1) / 2,
    "of one dimension": lambda n, L, D: L ** (n + 1) / ((n + 1) * (1 - L)),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bound_of_truncation(name: str) -> None:
    Tooth(residual.truncates_within_its_bound, lambda: truncation_bound, lambda: BOUNDS[name]).bites()


def layer() -> InvertibleResidual:
    return perturb(seeded(partial(InvertibleResidual, 3, hidden=(8,))), rng(1), std=1.0)


def test_detached_log_det() -> None:
    """As a likelihood it is right; as a loss it trains nothing."""
    contract = partial(residual.log_det_trains, x=normal(5, (3,), rng(2)))
    Tooth(contract, layer, lambda: Tampered(layer(), forward=lambda x, z, log_det: (z, log_det.detach()))).bites()


def test_log_det_at_y_in_place_of_x() -> None:
    """The inverse evaluates the Jacobian where it was called, not at what it found."""
    z = normal(4, (3,), rng(2))

    def check(f: Bijection) -> None:
        bijections.inverse_log_det_is_that_of_the_jacobian(f, z)

    Tooth(check, layer, lambda: Tampered(layer(), inverse=lambda z, x, log_det: (x, -layer()(z)[1]))).bites()


def estimated() -> Flow:
    build = partial(InvertibleResidual, 12, hidden=(16,), log_det="unbiased")
    return Flow(perturb(seeded(build), rng(3), std=1.0), StandardNormal(12), draws=8).double().eval()


class Shown:
    """A flow whose estimates are changed on the way out."""

    def __init__(self, change: Callable[[LikelihoodEstimate], LikelihoodEstimate]) -> None:
        self.flow, self.change = estimated(), change

    def estimate_log_prob(self, x: Tensor, *, generator: torch.Generator) -> LikelihoodEstimate:
        return self.change(self.flow.estimate_log_prob(x, generator=generator))


def errors(**change: Callable[[LikelihoodEstimate], Any]) -> Callable[[], Shown]:
    return lambda: Shown(lambda e: replace(e, **{name: value(e) for name, value in change.items()}))


ERRORS = {
    "none": errors(std_error=lambda e: None),
    "zero": errors(std_error=lambda e: 0 * e.log_prob),
    "of one draw": errors(std_error=lambda e: 8**0.5 * e.std_error),
    "halved": errors(std_error=lambda e: 0.5 * e.std_error),
    "called exact": errors(kind=lambda e: "exact"),
    "biased by a third of an error": errors(log_prob=lambda e: e.log_prob + e.std_error / 3),
}


@pytest.mark.parametrize("name", ERRORS)
def test_standard_error(name: str) -> None:
    x = normal(800, (12,), rng(6))
    exact = estimated()
    exact.bijection.log_det = "exact"
    exact.bijection.forward_direction = InvertibleResidual(1).forward_direction

    def contract(flow: Any) -> None:
        residual.errors_are_honest(flow, exact, x, draws=8, generator=rng(7))

    Tooth(contract, estimated, ERRORS[name]).bites()


def by_steps(step: Step) -> residual.Normalize:
    """W over what ten power steps find, where that is a number above the bound."""

    def normalize(weight: Tensor) -> Tensor:
        v = torch.ones(weight.shape[1]) / weight.shape[1] ** 0.5
        for _ in range(10):
            v = step(weight, v)
        u = weight @ v
        sigma = u.norm() / v.norm()
        return weight / (sigma / 0.8) if sigma > 0.8 else weight

    return normalize


def by_layer() -> residual.Normalize:
    made = SpectralLayer((20,), 20, bound=0.8).eval()

    def normalize(weight: Tensor) -> Tensor:
        with torch.no_grad():
            made.weight.copy_(weight)
        return made.normalized().detach()

    return normalize


def test_power_steps_without_normalization() -> None:
    """They overflow float32 and leave a norm of 19 as it is; three other faults beside."""
    big = normal(20, (20,), rng(8)).float()
    big = 19 * big / torch.linalg.matrix_norm(big, 2)
    one_direction = torch.outer(big[0], big[1])
    one_direction = 19 * one_direction / torch.linalg.matrix_norm(one_direction, 2)
    contract = partial(residual.bounds_the_norm, bound=0.8, weights=[1e-3 * big, one_direction])
    normalized: Step = lambda W, v: (W.T @ (W @ v)) / (W.T @ (W @ v)).norm()  # noqa: E731
    contract(by_steps(normalized))
    for wrong in (
        by_steps(lambda W, v: W.T @ (W @ v)),
        lambda W: W * 0.8 / torch.linalg.matrix_norm(W, 2),
        lambda W: W / (torch.linalg.matrix_norm(W, 2).double().square() / 0.8).clamp(min=1),
        lambda W: W / torch.linalg.matrix_norm(W, 2).clamp(min=1),
    ):
        Tooth(contract, by_layer, lambda wrong=wrong: wrong).bites()
