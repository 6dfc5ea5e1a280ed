"""The contracts of score matching bite: each passes what is right and rejects what is wrong in one place."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cases import COVARIANCES, LADDER, MEANS, WEIGHTS
from contracts import divergences, score_matching
from contracts.divergences import SPHERE_VARIANCE
from contracts.score_matching import Build, Score, SmoothNet, denoising_value, explicit_value, implicit_value, slips
from helpers import Tooth, normal, perturb, rng
from torch import Tensor, nn
from wrong import FirstColumn, TamperedDivergence

from cflows import (
    ExplicitScoreMatching,
    FiniteDifferenceScoreMatching,
    FixedNoiseDenoising,
    GradientScore,
    ImplicitScoreMatching,
    LadderDenoising,
    SlicedScoreMatching,
)
from core import ExactDivergence, GaussianMixture, Hutchinson
from core.divergence import Divergence

MIXTURE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)


def smooth(conditions: int = 0) -> SmoothNet:
    torch.manual_seed(0)
    return perturb(SmoothNet(conditions), rng(0))


class Loss(nn.Module):
    """A function (score, batch, generator) as a loss of its score."""

    def __init__(self, score: Score, function: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        self.score, self.function, self.options = score, function, options

    def forward(self, batch: Tensor, context: Tensor | None = None, *, generator: Any = None) -> Tensor:
        score = self.score if context is None else lambda *given: self.score(*given, context)
        return self.function(score, batch, generator, **self.options)


def loss(function: Callable[..., Tensor], **options: Any) -> Build:
    return partial(Loss, function=function, **options)


def implicit(score: Score, x: Tensor, _: Any, *, half: float = 0.5, trace: float = 1.0) -> Tensor:
    """½ ‖s‖² + tr ∇s, with a factor on each."""
    s, divergence = ExactDivergence()(score, x, ExactDivergence().draw(x, None))
    return (half * s.square().sum(1) + trace * divergence[:, 0]).mean()


def sliced(score: Score, x: Tensor, generator: Any, *, radius: float = 1.0, **factors: float) -> Tensor:
    """Along one direction, of a length of its own."""
    v = radius * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    s, curvature = Hutchinson()(score, x, v[None])
    half, trace = factors.get("half", 0.5), factors.get("trace", 1.0)
    return (half * (v * s).sum(1).square() + trace * curvature[:, 0]).mean()


def differences(
    score: Score, x: Tensor, generator: Any, *, delta: float, reach: float = 1.0, width: float = 2.0
) -> Tensor:
    """Ends at x ± reach δv, divided by width δ."""
    v = Hutchinson().draw(x, generator)[0]
    ahead, behind = ((v * score(x + sign * reach * delta * v)).sum(1) for sign in (1, -1))
    return ((ahead - behind) / (width * delta) + 0.5 * ((ahead + behind) / 2).square()).mean()


def denoising(
    score: Score,
    x: Tensor,
    generator: Any,
    *,
    sigma: float = 0.6,
    noise: Callable[[float], float] = lambda sigma: sigma,
    target: Callable[[float], float] = lambda sigma: 1 / sigma,
    half: float = 0.5,
) -> Tensor:
    """½ ‖s(x + noise ε) + target ε‖²."""
    eps = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return half * (score(x + noise(sigma) * eps) + target(sigma) * eps).square().sum(1).mean()


def bites(contract: Callable[[Build], None], right: Build, wrong: Build) -> None:
    Tooth(contract, lambda: right, lambda: wrong).bites()


def gradient(build: Build) -> None:
    score_matching.gradient_is_that_of_explicit(build, smooth(), MIXTURE, {0.0: 1.0}, batches=20)


def noisy_gradient(build: Build) -> None:
    score_matching.gradient_is_that_of_explicit(build, smooth(), MIXTURE, {0.6: 1.0}, batches=20)


def near(build: Build) -> None:
    score_matching.value_is_near(build, implicit_value, slips(score_matching.A))


def noisy_near(build: Build) -> None:
    score_matching.value_is_near(build, partial(denoising_value, sigma=0.6))


FAULTS = {"trace subtracted": {"trace": -1.0}, "½ missing": {"half": 1.0}, "trace missing": {"trace": 0.0}}
EXACT = [partial(score_matching.value_is, expected=implicit_value), score_matching.minimum_is_the_precision, gradient]


@pytest.mark.parametrize("contract", EXACT, ids=["value", "minimum", "gradient"])
@pytest.mark.parametrize("fault", FAULTS)
def test_implicit(fault: str, contract: Callable[[Build], None]) -> None:
    bites(contract, loss(implicit), loss(implicit, **FAULTS[fault]))


@pytest.mark.parametrize("contract", EXACT, ids=["value", "minimum", "gradient"])
def test_first_column_for_the_diagonal(contract: Callable[[Build], None]) -> None:
    bites(contract, ImplicitScoreMatching, partial(ImplicitScoreMatching, divergence=FirstColumn()))


@pytest.mark.parametrize("contract", [near, gradient], ids=["value", "gradient"])
@pytest.mark.parametrize("fault", [*FAULTS, "directions of unit length"])
def test_sliced(fault: str, contract: Callable[[Build], None]) -> None:
    size = 3 if contract is near else 2
    options = FAULTS.get(fault, {"radius": size**-0.5})
    bites(contract, loss(sliced), loss(sliced, **options))


def test_one_half_missing_from_explicit() -> None:
    target = score_matching.linear_score(score_matching.PRECISION)

    def explicit(score: Score, x: Tensor, _: Any, half: float = 0.5) -> Tensor:
        return half * (score(x) - target(x)).square().sum(1).mean()

    contract = partial(score_matching.value_is, expected=explicit_value)
    bites(contract, loss(explicit), loss(explicit, half=1.0))
    bites(contract, partial(ExplicitScoreMatching, target=target), partial(ExplicitScoreMatching, target=torch.neg))


@pytest.mark.parametrize("fault", [{"reach": 2.0}, {"width": 1.0}], ids=["2δ for δ", "δ for 2δ"])
def test_finite_differences(fault: dict[str, float]) -> None:
    net, batch = smooth(), normal(50, (2,), rng(1))
    limit = SlicedScoreMatching(net, variance_reduced=False)

    def order(function: Callable[..., Tensor]) -> None:
        score_matching.converges_to(lambda delta: Loss(net, function, delta=delta), limit, batch)

    Tooth(order, lambda: differences, lambda: partial(differences, **fault)).bites()
    bites(near, loss(differences, delta=0.01), loss(differences, delta=0.01, **fault))
    bites(gradient, loss(differences, delta=0.01), loss(differences, delta=0.01, **fault))


def log_differences(score: GradientScore, x: Tensor, generator: Any, *, delta: float, **faults: float) -> Tensor:
    """From three values of the log-density, each term with a factor."""
    v = Hutchinson().draw(x, generator)[0]
    ahead, here, behind = (score.log_density(x + sign * delta * v) for sign in (1, 0, -1))
    curvature = (ahead - faults.get("middle", 2.0) * here + behind) / delta**2
    slope = (ahead - behind) / (2 * delta)
    return (faults.get("curvature", 1.0) * curvature + 0.5 * faults.get("slope", 1.0) * slope.square()).mean()


@pytest.mark.parametrize("fault", [{"middle": 1.0}, {"curvature": 0.5}, {"curvature": -1.0}, {"slope": 4.0}], ids=str)
def test_finite_differences_of_a_log_density(fault: dict[str, float]) -> None:
    score, batch = GradientScore(lambda x: -x.pow(4).sum(1) + torch.sin(x).prod(1)), normal(50, (2,), rng(1))
    limit = SlicedScoreMatching(score, variance_reduced=False)

    def order(function: Callable[..., Tensor]) -> None:
        score_matching.converges_to(lambda delta: Loss(score, function, delta=delta), limit, batch)

    Tooth(order, lambda: log_differences, lambda: partial(log_differences, **fault)).bites()


def test_differences_to_one_side_are_of_first_order() -> None:
    net, batch = smooth(), normal(50, (2,), rng(1))
    limit = SlicedScoreMatching(net, variance_reduced=False)

    def one_sided(score: Score, x: Tensor, generator: Any, *, delta: float) -> Tensor:
        v = Hutchinson().draw(x, generator)[0]
        here, ahead = ((v * score(y)).sum(1) for y in (x, x + delta * v))
        return ((ahead - here) / delta + 0.5 * here.square()).mean()

    Tooth(
        lambda build: score_matching.converges_to(lambda delta: build(net, delta=delta), limit, batch) and None,
        lambda: FiniteDifferenceScoreMatching,
        lambda: loss(one_sided),
    ).bites()


NOISE_FAULTS: dict[str, dict[str, Any]] = {
    "σ² for σ in the target": {"target": lambda sigma: sigma**-2},
    "σ² for σ in the noise": {"noise": lambda sigma: sigma**2},
    "wrong sign": {"target": lambda sigma: -1 / sigma},
    "no 1/σ": {"target": lambda sigma: 1.0},
    "½ missing": {"half": 1.0},
}


@pytest.mark.parametrize("contract", [noisy_near, noisy_gradient], ids=["value", "gradient"])
@pytest.mark.parametrize("fault", NOISE_FAULTS)
def test_denoising(fault: str, contract: Callable[[Build], None]) -> None:
    bites(contract, partial(FixedNoiseDenoising, sigma=0.6), loss(denoising, **NOISE_FAULTS[fault]))


@pytest.mark.parametrize("contract", [noisy_near, noisy_gradient], ids=["value", "gradient"])
def test_denoising_at_another_level(contract: Callable[[Build], None]) -> None:
    bites(contract, loss(denoising), partial(FixedNoiseDenoising, sigma=0.7))


def ladder(**options: Any) -> Build:
    return partial(LadderDenoising, sigmas=LADDER, **options)


OTHER_LADDERS = {
    "λ = 1 sold as σ²": ladder(weighting="uniform"),
    "λ = σ sold as σ²": ladder(weighting=lambda sigma: sigma),
    "sum over levels": ladder(weighting=lambda sigma: len(LADDER) * sigma.square()),
    "levels left out": partial(LadderDenoising, sigmas=LADDER[:2]),
}


@pytest.mark.parametrize("fault", OTHER_LADDERS)
def test_ladder(fault: str) -> None:
    levels = {sigma: sigma**2 / len(LADDER) for sigma in LADDER}

    def value(build: Build) -> None:
        score_matching.value_is_near(
            build, lambda a: sum(weight * denoising_value(a, sigma) for sigma, weight in levels.items())
        )

    def slope(build: Build) -> None:
        score_matching.gradient_is_that_of_explicit(build, smooth(1), MIXTURE, levels, batches=20)

    for contract in (value, slope):
        bites(contract, ladder(), OTHER_LADDERS[fault])


class LeakyExplicit(nn.Module):
    """Explicit score matching that trains its target as well, or lists it among its parameters."""

    def __init__(self, score: Score, target: nn.Module, *, hidden: bool = False, detached: bool = False) -> None:
        super().__init__()
        self.score, self.detached = score, detached
        self.target = (target,) if hidden else nn.ModuleList([target])

    def forward(self, batch: Tensor) -> Tensor:
        truth = self.target[0](batch)
        return 0.5 * (self.score(batch) - (truth.detach() if self.detached else truth)).square().sum(1).mean()


@pytest.mark.parametrize("fault", [{"hidden": True}, {"detached": True}], ids=["gradient leaks", "parameters leak"])
def test_target_that_is_trained(fault: dict[str, bool]) -> None:
    right, wrong = ExplicitScoreMatching, partial(LeakyExplicit, **fault)
    Tooth(score_matching.target_gets_no_gradient, lambda: right, lambda: wrong).bites()


def cleanliness(build: Build) -> None:
    score_matching.is_clean(build, lambda: smooth(1), normal(6, (2,), rng(1)), normal(6, (1,), rng(2)))


def unseeded(score: Score, x: Tensor, _: Any) -> Tensor:
    return denoising(score, x, None)


def in_place(score: Score, x: Tensor, generator: Any) -> Tensor:
    return denoising(score, x.mul_(1.5), generator)


def per_row(score: Score, x: Tensor, generator: Any) -> Tensor:
    return denoising(score, x, generator).expand(len(x))


def detached(score: Score, x: Tensor, generator: Any) -> Tensor:
    return denoising(lambda y: score(y).detach().requires_grad_(), x, generator)


@pytest.mark.parametrize("wrong", [unseeded, in_place, per_row, detached])
def test_cleanliness(wrong: Callable[..., Tensor]) -> None:
    def contract(build: Build) -> None:
        try:
            cleanliness(build)
        except RuntimeError as error:
            raise AssertionError(str(error)) from error

    bites(contract, loss(denoising), loss(wrong))


def test_context_that_is_dropped() -> None:
    class Deaf(Loss):
        def forward(self, batch: Tensor, context: Tensor | None = None, *, generator: Any = None) -> Tensor:
            return super().forward(batch, None if context is None else 0 * context, generator=generator)

    def contract(build: Build) -> None:
        score_matching.hands_its_context_on(build, normal(6, (2,), rng(1)), normal(6, (1,), rng(2)))

    bites(contract, loss(denoising), partial(Deaf, function=denoising))


def test_mean_over_pixels_for_their_sum() -> None:
    def by_channel(score: Score, x: Tensor, generator: Any, *, first: bool = False) -> Tensor:
        eps = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        error = (score(x + eps) + eps).square()
        return 0.5 * (error.sum(1).reshape(len(x), -1).mean(1) if first else error.flatten(1).sum(1)).mean()

    def contract(build: Build) -> None:
        score_matching.shape_of_the_event_does_not_matter(build, normal(6, (12,), rng(3)), (3, 2, 2))

    bites(contract, loss(by_channel), loss(by_channel, first=True))


SPHERE_FAULTS = {"of radius 1": 3**-0.5, "of radius D": 3**0.5}


@pytest.mark.parametrize("fault", SPHERE_FAULTS)
def test_sphere(fault: str) -> None:
    """Probes on a sphere of another radius; the unit of the trace and that of its variance tell."""
    right = Hutchinson(distribution="sphere")
    wrong = TamperedDivergence(right, probes=lambda v: SPHERE_FAULTS[fault] * v)
    variance = partial(divergences.variance_is, generator=rng(3), expected=SPHERE_VARIANCE)

    def unbiased(divergence: Divergence) -> None:
        divergences.is_unbiased(divergence, rng(0))

    for contract in (unbiased, variance):
        Tooth(contract, lambda: right, lambda: wrong).bites()


def test_normal_draws_sold_as_the_sphere() -> None:
    contract = partial(divergences.variance_is, generator=rng(3), expected=SPHERE_VARIANCE)
    law = partial(Hutchinson, distribution="gaussian")
    Tooth(contract, partial(Hutchinson, distribution="sphere"), law).bites()
