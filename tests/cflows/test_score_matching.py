import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cases import COVARIANCES, LADDER, LADDER_OBJECTIVES, MEANS, SCORE_OBJECTIVES, WEIGHTS
from contracts import score_matching
from contracts.score_matching import Build, Score, SmoothNet, denoising_value, explicit_value, implicit_value, slips
from helpers import normal, perturb, rng
from torch import Tensor, nn

from cflows import (
    ExplicitScoreMatching,
    FiniteDifferenceScoreMatching,
    FixedNoiseDenoising,
    GradientScore,
    ImplicitScoreMatching,
    LadderDenoising,
    SlicedScoreMatching,
)
from cflows.score import Conservative
from core import ExactDivergence, GaussianMixture, Hutchinson

MIXTURE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)
LAWS = ["rademacher", "gaussian", "sphere"]
WEIGHTINGS: dict[Any, Callable[[float], float]] = {
    "variance": lambda sigma: sigma**2,
    "uniform": lambda sigma: 1.0,
    torch.sqrt: math.sqrt,
}


class QuadraticNet(nn.Module):
    """A log-density -½ ‖x‖² + w tanh(V x), smooth and not a polynomial."""

    def __init__(self, features: int = 2) -> None:
        super().__init__()
        self.v, self.w = nn.Linear(features, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return self.w(torch.tanh(self.v(x)))[:, 0] - 0.5 * x.square().sum(1)


def smooth(conditions: int = 0) -> SmoothNet:
    torch.manual_seed(0)
    return perturb(SmoothNet(conditions), rng(0))


def explicit(score: Score) -> nn.Module:
    return ExplicitScoreMatching(score, score_matching.linear_score(score_matching.PRECISION))


def test_explicit_value() -> None:
    score_matching.value_is(explicit, explicit_value)


@pytest.mark.parametrize("divergence", [None, ExactDivergence(chunk=2)])
def test_implicit_value(divergence: ExactDivergence | None) -> None:
    score_matching.value_is(partial(ImplicitScoreMatching, divergence=divergence), implicit_value)


def test_implicit_is_explicit_up_to_the_half_fisher_information() -> None:
    for a in (score_matching.A, 2 * score_matching.A.T):
        assert explicit_value(a) == pytest.approx(implicit_value(a) + score_matching.HALF_FISHER, abs=1e-12)
        batch, score = score_matching.gaussian_batch(200, rng(0)), score_matching.linear_score(a)
        difference = explicit(score)(batch) - ImplicitScoreMatching(score)(batch)
        assert difference.item() == pytest.approx(score_matching.HALF_FISHER, abs=1e-10)


def test_implicit_minimum() -> None:
    score_matching.minimum_is_the_precision(ImplicitScoreMatching)


@pytest.mark.parametrize("variance_reduced", [True, False])
@pytest.mark.parametrize("projections", [1, 3])
@pytest.mark.parametrize("law", LAWS)
def test_sliced_value(law: str, projections: int, variance_reduced: bool) -> None:
    build = partial(SlicedScoreMatching, distribution=law, projections=projections, variance_reduced=variance_reduced)
    score_matching.value_is_near(build, implicit_value, slips(score_matching.A))


@pytest.mark.parametrize("projections", [1, 3])
@pytest.mark.parametrize("law", LAWS)
def test_finite_difference_value(law: str, projections: int) -> None:
    """On a linear score differences are exact whatever the step."""
    for delta in (0.01, 0.5):
        build = partial(FiniteDifferenceScoreMatching, delta=delta, distribution=law, projections=projections)
        score_matching.value_is_near(build, implicit_value, slips(score_matching.A))


def test_finite_difference_value_of_a_log_density() -> None:
    """The same for a Gaussian's log-density, whose score has a symmetric matrix."""
    a = score_matching.A @ score_matching.A.T

    def build(_: Score) -> nn.Module:
        def log_density(x: Tensor) -> Tensor:
            return -0.5 * torch.einsum("ri,ij,rj->r", x - score_matching.MEAN, a, x - score_matching.MEAN)

        return FiniteDifferenceScoreMatching(GradientScore(log_density), delta=0.3, projections=2)

    score_matching.value_is_near(build, lambda _: implicit_value(a), slips(a))


@pytest.mark.parametrize("sigma", [0.3, 1.5])
def test_denoising_value(sigma: float) -> None:
    build, expected = partial(FixedNoiseDenoising, sigma=sigma), partial(denoising_value, sigma=sigma)
    score_matching.value_is_near(build, expected, [2 * expected(score_matching.A)])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_ladder_value(weighting: Any) -> None:
    """The mean over levels of λ(σ) times the loss at that level."""

    def expected(a: Tensor, law: Callable[[float], float] = WEIGHTINGS[weighting]) -> float:
        return sum(law(sigma) * denoising_value(a, sigma) for sigma in LADDER) / len(LADDER)

    others = [expected(score_matching.A, law) for name, law in WEIGHTINGS.items() if name != weighting]
    build = partial(LadderDenoising, sigmas=LADDER, weighting=weighting)
    score_matching.value_is_near(build, expected, others, rows=120_000)


STATIC: dict[str, Build] = {
    "implicit": ImplicitScoreMatching,
    "implicit-hutchinson": partial(ImplicitScoreMatching, divergence=Hutchinson(distribution="gaussian")),
    "sliced": SlicedScoreMatching,
    "sliced-plain": partial(SlicedScoreMatching, variance_reduced=False, projections=2),
    "sliced-gaussian": partial(SlicedScoreMatching, distribution="gaussian", variance_reduced=False),
    "sliced-sphere": partial(SlicedScoreMatching, distribution="sphere", variance_reduced=False),
    "finite-difference": partial(FiniteDifferenceScoreMatching, delta=0.003),
}


@pytest.mark.parametrize("name", STATIC)
def test_gradient_is_that_of_explicit(name: str) -> None:
    def build(score: Score) -> nn.Module:
        return STATIC[name](score)

    score_matching.gradient_is_that_of_explicit(build, smooth(), MIXTURE, {0.0: 1.0})


def test_gradient_of_a_log_density_is_that_of_explicit() -> None:
    """By values of the log-density alone; its score is the same module."""
    torch.manual_seed(0)
    net = GradientScore(perturb(QuadraticNet(), rng(0)))
    # The last bias moves the log-density by a constant: no score depends on it.
    net.density.w.bias = None
    build = partial(FiniteDifferenceScoreMatching, delta=0.003)
    score_matching.gradient_is_that_of_explicit(build, net, MIXTURE, {0.0: 1.0})


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_gradient_of_denoising_is_that_of_explicit_on_the_noisy_law(sigma: float) -> None:
    build = partial(FixedNoiseDenoising, sigma=sigma)
    score_matching.gradient_is_that_of_explicit(build, smooth(), MIXTURE, {sigma: 1.0}, rows=1500)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_gradient_of_a_ladder_is_that_of_explicit_over_its_levels(weighting: Any) -> None:
    levels = {sigma: WEIGHTINGS[weighting](sigma) / len(LADDER) for sigma in LADDER}
    build = partial(LadderDenoising, sigmas=LADDER, weighting=weighting)
    score_matching.gradient_is_that_of_explicit(build, smooth(1), MIXTURE, levels, rows=1500)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("projections", [1, 3])
@pytest.mark.parametrize("kind", ["network", "log-density"])
def test_finite_differences_are_of_second_order(kind: str, projections: int, law: str) -> None:
    torch.manual_seed(0)
    score = smooth() if kind == "network" else GradientScore(perturb(QuadraticNet(), rng(0)))
    assert isinstance(score, Conservative) == (kind == "log-density")
    options = {"projections": projections, "distribution": law}

    def build(delta: float, score: Score = score) -> nn.Module:
        return FiniteDifferenceScoreMatching(score, delta=delta, **options)

    sliced = SlicedScoreMatching(score, variance_reduced=False, **options)
    batch = MIXTURE.sample((200,), generator=rng(1))
    errors = score_matching.converges_to(build, sliced, batch)
    assert errors[-1] < 1e-3
    # Without its log-density the same score takes the other way, to the same limit.
    score_matching.converges_to(partial(build, score=lambda x: score(x)), sliced, batch)


def test_finite_differences_take_three_values_of_a_log_density_and_no_derivative(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Tensor] = []
    net = perturb(QuadraticNet(), rng(0))

    def log_density(x: Tensor, *_: Tensor) -> Tensor:
        calls.append(x)
        return net(x)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a derivative of the network is taken")

    loss = FiniteDifferenceScoreMatching(GradientScore(log_density), projections=4)
    monkeypatch.setattr(torch.autograd, "grad", forbidden)
    value = loss(normal(5, (2,), rng(1)), generator=rng(2))
    assert len(calls) == 9  # the directions share the value in the middle
    value.backward()
    assert net.v.weight.grad.isfinite().all()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("probes", [1, 3])
def test_implicit_by_hutchinson_is_sliced_with_its_variance_reduced(probes: int, law: str) -> None:
    net, batch = smooth(), normal(6, (2,), rng(1))
    implicit = ImplicitScoreMatching(net, divergence=Hutchinson(probes=probes, distribution=law))
    sliced = SlicedScoreMatching(net, projections=probes, distribution=law)
    found, expected = implicit(batch, generator=rng(2)), sliced(batch, generator=rng(2))
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


def test_one_dimension_and_signs_leave_no_variance() -> None:
    """(vᵀs)² = ‖s‖² and vᵀ∇s v = tr ∇s: both forms are implicit score matching itself."""
    batch = normal(6, (1,), rng(0))
    expected = ImplicitScoreMatching(torch.tanh)(batch).item()
    for law in ("rademacher", "sphere"):
        for reduced in (True, False):
            loss = SlicedScoreMatching(torch.tanh, distribution=law, variance_reduced=reduced)
            assert loss(batch, generator=rng(1)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", SCORE_OBJECTIVES)
def test_static_objective_is_clean(name: str) -> None:
    build, batch, context = SCORE_OBJECTIVES[name], normal(6, (2,), rng(1)), normal(6, (1,), rng(2))
    score_matching.is_clean(build, lambda: smooth(1), batch, context)
    score_matching.hands_its_context_on(build, batch, context)
    score_matching.shape_of_the_event_does_not_matter(build, normal(6, (12,), rng(3)), (3, 2, 2))


@pytest.mark.parametrize("name", LADDER_OBJECTIVES)
def test_ladder_objective_is_clean(name: str) -> None:
    build, batch, context = LADDER_OBJECTIVES[name], normal(6, (2,), rng(1)), normal(6, (1,), rng(2))
    score_matching.is_clean(build, lambda: smooth(2), batch, context)
    score_matching.hands_its_context_on(build, batch, context)
    score_matching.shape_of_the_event_does_not_matter(build, normal(6, (12,), rng(3)), (3, 2, 2))


EVERY = {**SCORE_OBJECTIVES, **LADDER_OBJECTIVES}
RANDOM = [name for name in EVERY if name not in ("explicit", "implicit")]


@pytest.mark.parametrize("name", RANDOM)
def test_generator_decides(name: str) -> None:
    loss, batch = EVERY[name](lambda x, *_: torch.tanh(x) - x[:, [1, 0]] ** 2), normal(6, (2,), rng(1))
    assert not torch.equal(loss(batch, generator=rng(2)), loss(batch, generator=rng(3)))


@pytest.mark.parametrize("name", EVERY)
def test_an_empty_batch_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="needs at least one row"):
        EVERY[name](lambda x, *_: -x)(torch.zeros(0, 2))


@pytest.mark.parametrize("name", EVERY)
def test_float32(name: str) -> None:
    """Within the spread of the draws, which are others than in float64, and a relative 1e-3."""
    loss, batch = EVERY[name](lambda x, *_: torch.tanh(x) - x), normal(20_000, (2,), rng(1))
    expected, found = loss(batch, generator=rng(2)), loss(batch.float(), generator=rng(2))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=0.03)


@pytest.mark.parametrize("name", EVERY)
def test_objective_runs_on_meta(name: str) -> None:
    loss = EVERY[name](SmoothNet(int(name in LADDER_OBJECTIVES))).to("meta")
    value = loss(torch.zeros(4, 2, device="meta"))
    assert value.device.type == "meta"
    assert value.shape == ()


def test_target_of_explicit_gets_no_gradient() -> None:
    score_matching.target_gets_no_gradient(ExplicitScoreMatching)


def test_target_of_explicit_may_be_a_density() -> None:
    batch, net = MIXTURE.sample((50,), generator=rng(0)), smooth()
    by_autograd, closed = ExplicitScoreMatching(net, GradientScore(MIXTURE)), ExplicitScoreMatching(net, MIXTURE.score)
    torch.testing.assert_close(by_autograd(batch), closed(batch), rtol=1e-12, atol=1e-12)


def test_levels_are_spread_evenly_over_the_batch() -> None:
    """Each level takes the same number of rows, whichever the offset."""
    seen: list[Tensor] = []

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        return -x

    loss = LadderDenoising(score, (4.0, 2.0, 1.0))
    for seed in range(5):
        loss(torch.zeros(12, 2, dtype=torch.float64), generator=rng(seed))
        assert seen[-1].shape == (12,)
        assert [(seen[-1] == level).sum().item() for level in (4.0, 2.0, 1.0)] == [4, 4, 4]
    # Rows are drawn alike: over many offsets a single row meets every level as often.
    single = torch.stack([seen[-1] for seed in range(600) if loss(torch.zeros(1, 2), generator=rng(seed)) is not None])
    assert abs((single == 2.0).double().mean().item() - 1 / 3) < 5 * (2 / 9 / 600) ** 0.5


def test_training_finds_the_precision() -> None:
    """Implicit score matching of a linear score is a parabola in A whose bottom is Σ⁻¹ of the batch."""
    batch = MIXTURE.sample((500,), generator=rng(0))
    batch = batch - batch.mean(0)
    a = nn.Parameter(torch.eye(2, dtype=torch.float64))
    loss = ImplicitScoreMatching(lambda x: -x @ a.T)
    optimizer = torch.optim.LBFGS([a], max_iter=50, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(batch)
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(a.detach(), torch.linalg.inv(batch.T @ batch / 500), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FiniteDifferenceScoreMatching(torch.tanh, delta=0.0), "delta > 0"),
        (lambda: FiniteDifferenceScoreMatching(torch.tanh, delta=math.nan), "delta > 0"),
        (lambda: FiniteDifferenceScoreMatching(torch.tanh, projections=0), "projection|probe"),
        (lambda: SlicedScoreMatching(torch.tanh, projections=0), "projection|probe"),
        (lambda: FixedNoiseDenoising(torch.tanh, sigma=0.0), "sigma > 0"),
        (lambda: FixedNoiseDenoising(torch.tanh, sigma=math.nan), "sigma > 0"),
        (lambda: LadderDenoising(torch.tanh, (1.0, 1.0)), "fall strictly"),
        (lambda: LadderDenoising(torch.tanh, (1.0, -1.0)), "must be positive"),
        (lambda: LadderDenoising(torch.tanh, ()), "noise levels"),
    ],
)
def test_settings_that_make_no_sense_are_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.usefixtures("unannotated")
def test_unknown_names_are_refused_where_types_are_not_checked() -> None:
    """Without beartype a wrong name must not pass for the last of the choices."""
    for build in (FiniteDifferenceScoreMatching, SlicedScoreMatching):
        with pytest.raises(ValueError, match="rademacher, gaussian or sphere"):
            build(torch.tanh, distribution="normal")
    with pytest.raises(ValueError, match="weighting must be"):
        LadderDenoising(torch.tanh, LADDER, weighting="likelihood")
