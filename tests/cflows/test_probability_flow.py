import math
from functools import partial

import pytest
import torch
from cases import COVARIANCES, MEANS, SDES, WEIGHTS
from contracts import solvers
from helpers import normal, rng
from torch import Tensor

from cflows import SDE, VPSDE, ode_log_prob, probability_flow_log_prob
from cflows.ode.solver import ADAPTIVE, PER_SAMPLE, ODESolver
from cflows.sde import Score, probability_flow
from core import ExactDivergence, GaussianMixture, Hutchinson, StandardNormal
from core.density import DensityModel

PLANE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)


def space() -> GaussianMixture:
    """Three correlated components in 16 dimensions."""
    root = normal(3, (16, 16), rng(0)) / 5
    covariances = root @ root.mT + 0.3 * torch.eye(16, dtype=torch.float64)
    return GaussianMixture(normal(3, (16,), rng(1)), covariances, torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64))


MIXTURES = {2: PLANE, 16: space()}


solve = partial(solvers.by_exact_trace, error_factor=None)


@pytest.mark.parametrize(
    ("name", "dimensions"), [*((name, 2) for name in SDES), ("vp", 16), ("sub-vp", 16), ("ve", 16)]
)
def test_mixture_likelihood(name: str, dimensions: int) -> None:
    mixture = MIXTURES[dimensions]
    x = mixture.sample((6,), generator=rng(2))
    solvers.mixture_likelihood(solve, SDES[name][0], mixture, x)


@pytest.mark.parametrize("name", [name for name in SDES if SDES[name][1] == 0])
def test_truncation(name: str) -> None:
    x = PLANE.sample((9,), generator=rng(3))
    solvers.truncation_is_first_order(partial(solve, tolerance=1e-3), SDES[name][0], PLANE, x)


def test_gold_mixture_of_eight() -> None:
    """Eight narrow Gaussians on the circle under VP, values computed apart from this code."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = torch.stack([angle.cos(), angle.sin()], 1)
    covariances = (0.05**2 * torch.eye(2, dtype=torch.float64)).expand(8, 2, 2)
    mixture = GaussianMixture(means, covariances, torch.ones(8, dtype=torch.float64))
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.3, 0.02], [1.05, 0.03]], dtype=torch.float64)
    sde = VPSDE()
    base = solvers.exact_base(mixture, sde)
    found = solve(solvers.exact_score(mixture, sde), sde, base, x, 1e-5, tolerance=1e-7)
    gold = torch.tensor([2.0737466219, -195.7667642472, -95.9669560954, 1.3940080973], dtype=torch.float64)
    torch.testing.assert_close(found.log_prob, gold, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("method", "tolerance"), [("rk4", 1e-5), ("dopri5", 1e-4), ("dopri5", 1e-6)])
def test_solver_error_on_a_mixture(method: str, tolerance: float) -> None:
    sde, x, score = VPSDE(), PLANE.sample((20,), generator=rng(4)), solvers.exact_score(PLANE, VPSDE())
    options = {"method": method, "steps": 40, "rtol": tolerance, "atol": tolerance, "t_min": 1e-3}
    estimate = probability_flow_log_prob(score, sde, x, base=solvers.exact_base(PLANE, sde), **options)
    exact = PLANE.perturbed_log_prob(x, *sde.marginal(x.new_tensor(1e-3)))
    solvers.solver_error_is_not_small(estimate, exact)
    assert estimate.solver_error.max() < 1000 * tolerance


def correlated() -> tuple[SDE, Score, DensityModel, Tensor]:
    """A Gaussian of correlation 0.8 under VP: the Jacobian integrated along the flow is a fixed matrix M."""
    covariance = torch.tensor([[[1.0, 0.8], [0.8, 1.0]]], dtype=torch.float64)
    mixture = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), covariance, torch.ones(1, dtype=torch.float64))
    sde = VPSDE()
    return sde, solvers.exact_score(mixture, sde), solvers.exact_base(mixture, sde), torch.tensor([[0.4, -0.9]])


GOLD_M = torch.tensor([[0.2554119218, -0.5492877578], [-0.5492877578, 0.2554119218]], dtype=torch.float64)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_gold_hutchinson(distribution: str) -> None:
    """Each estimate is log p_1 + vᵀ M v with M known: variances 1.206868164 and 1.467809163."""
    sde, score, base, point = correlated()
    x = point.double().expand(16, 2)
    divergence = Hutchinson(distribution=distribution)
    arguments = {"base": base, "rtol": 1e-8, "atol": 1e-8, "error_factor": None}
    found = probability_flow_log_prob(score, sde, x, divergence=divergence, generator=rng(5), **arguments)
    exact = probability_flow_log_prob(score, sde, x, divergence=ExactDivergence(), **arguments)
    (v,) = divergence.draw(x, rng(5))
    expected = torch.einsum("ri,ij,rj->r", v, GOLD_M, v) - 0.5108238436
    torch.testing.assert_close(found.log_prob - exact.log_prob, expected, rtol=0, atol=1e-6)
    offdiagonal, frobenius = 2 * 2 * GOLD_M[0, 1] ** 2, 2 * GOLD_M.square().sum()
    gold = {"rademacher": (offdiagonal, 1.206868164), "gaussian": (frobenius, 1.467809163)}[distribution]
    assert gold[0].item() == pytest.approx(gold[1], rel=1e-8)
    assert found.std_error.isnan().all(), "one probe cannot tell its own error"
    assert (exact.std_error == 0).all()
    assert (found.kind, exact.kind) == ("estimate", "exact")


def test_std_error_covers() -> None:
    """dx/dt = A x with A full, not symmetric, tr A = -0.3: log p(x) = log N(exp(A) x) + tr A."""
    a = normal(1, (4, 4), rng(6))[0]
    a = a - torch.eye(4, dtype=a.dtype) * (a.trace() + 0.3) / 4
    x, base = normal(1, (4,), rng(7)), StandardNormal(4).double()
    estimate = ode_log_prob(
        lambda x, t: x @ a.T,
        base,
        x.expand(1000, 4),
        divergence=Hutchinson(probes=8),
        method="rk4",
        steps=20,
        generator=rng(8),
    )
    solvers.std_error_covers(estimate, base.log_prob(x @ torch.linalg.matrix_exp(a).T).item() - 0.3)


def test_velocity_has_half_the_squared_diffusion() -> None:
    """Under VP with s = -x the two terms cancel: f - ½ g² s = -½ β x + ½ β x = 0."""
    x, t = normal(3, (2,), rng(8)), torch.tensor(0.3, dtype=torch.float64)
    velocity = probability_flow(lambda x, t: -x, VPSDE())
    torch.testing.assert_close(velocity(x, t), torch.zeros_like(x))
    torch.testing.assert_close(probability_flow(lambda x, t: -3 * x, VPSDE())(x, t), (0.1 + 0.3 * 19.9) * x)


def test_gradient_in_x_is_the_score() -> None:
    sde, x = VPSDE(), PLANE.sample((5,), generator=rng(9)).requires_grad_()
    estimate = solve(solvers.exact_score(PLANE, sde), sde, solvers.exact_base(PLANE, sde), x, 1e-3)
    (gradient,) = torch.autograd.grad(estimate.log_prob.sum(), x)
    expected = PLANE.perturbed_score(x.detach(), *sde.marginal(torch.tensor(1e-3, dtype=torch.float64)))
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("divergence", [ExactDivergence(), Hutchinson(probes=2)])
def test_gradient_in_the_parameters(divergence: ExactDivergence | Hutchinson) -> None:
    """dx/dt = -a x: log p = log N(e^-a x) - a D, so d/da = e^-2a |x|² - D; Rademacher is exact on a diagonal."""
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = normal(4, (3,), rng(10))
    estimate = ode_log_prob(
        lambda x, t: -a * x,
        StandardNormal(3).double(),
        x,
        divergence=divergence,
        rtol=1e-8,
        atol=1e-8,
        generator=rng(11),
    )
    (gradient,) = torch.autograd.grad(estimate.log_prob.sum(), a)
    expected = (math.exp(-1.4) * x.square().sum() - 12).item()
    assert gradient.item() == pytest.approx(expected, abs=1e-6)


def test_errors_carry_no_graph() -> None:
    """Errors are reported, not trained on: the second solve must not hold a graph of its own."""
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x, divergence = normal(4, (3,), rng(10)), Hutchinson(probes=2)
    base = StandardNormal(3).double()
    estimate = ode_log_prob(lambda x, t: -a * x.sin(), base, x, divergence=divergence, generator=rng(11))
    assert estimate.log_prob.requires_grad
    assert not estimate.std_error.requires_grad
    assert not estimate.solver_error.requires_grad


@pytest.mark.parametrize("divergence", [ExactDivergence(), Hutchinson(probes=2), None])
def test_shapes_of_batches_and_events(divergence: ExactDivergence | Hutchinson | None) -> None:
    """An image event, batches (2, 3) and (0,), all errors of the batch's shape, no graph without gradient."""
    base = StandardNormal((1, 2, 2)).double()
    for batch in ((2, 3), (0,), ()):
        x = normal(math.prod(batch), (1, 2, 2), rng(13)).reshape(*batch, 1, 2, 2)
        with torch.no_grad():
            estimate = ode_log_prob(lambda x, t: -t * x, base, x, divergence=divergence, generator=rng(14))
        for part in (estimate.log_prob, estimate.std_error, estimate.solver_error, estimate.nfe):
            assert part.shape == batch
            assert not part.requires_grad
        exact = base.log_prob(x * math.exp(-0.5)) - 2.0
        torch.testing.assert_close(estimate.log_prob, exact, rtol=0, atol=1e-3)


def test_prior_is_the_base_where_none_is_given() -> None:
    """N(0, 1) under VP stays what it is; float32 in, float32 out."""
    x = normal(4, (3,), rng(15)).float()
    estimate = probability_flow_log_prob(lambda x, t: -x, VPSDE(), x, t_min=0.0)
    torch.testing.assert_close(estimate.log_prob, StandardNormal(3).log_prob(x), rtol=0, atol=1e-4)
    assert (estimate.truncation == 0).all()


def test_a_fixed_grid_leaves_rows_alone() -> None:
    sde, x = VPSDE(), PLANE.sample((3,), generator=rng(16))
    base = solvers.exact_base(PLANE, sde)
    options = {"base": base, "method": "rk4", "steps": 5, "t_min": 1e-2}
    together = probability_flow_log_prob(solvers.exact_score(PLANE, sde), sde, x, **options).log_prob
    alone = [
        probability_flow_log_prob(solvers.exact_score(PLANE, sde), sde, row[None], **options).log_prob for row in x
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)


def wide() -> GaussianMixture:
    """Two modes in 64 dimensions, apart and narrow in some directions."""
    root = normal(2, (64, 64), rng(20)) / 10
    covariances = root @ root.mT + torch.diag(torch.logspace(-2, 0, 64, dtype=torch.float64))
    return GaussianMixture(normal(2, (64,), rng(21)), covariances, torch.tensor([0.4, 0.6], dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve"])
@pytest.mark.parametrize("method", ["dopri8", "dopri5_per_sample"])
def test_likelihood_in_64_dimensions(method: str, name: str) -> None:
    """A mixture within 1e-4 nats."""
    mixture, tolerance = wide(), 1e-7
    options = {"divergence": ExactDivergence(chunk=64), "method": method, "atol": tolerance / 64}
    likelihood = partial(solve, tolerance=tolerance, **options)
    with torch.no_grad():
        solvers.mixture_likelihood(likelihood, SDES[name][0], mixture, mixture.sample((2,), generator=rng(22)))


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve"])
@pytest.mark.parametrize("method", [*ADAPTIVE[:2], PER_SAMPLE, "heun2", "heun3", "rk4", "adams", "adams_sparse"])
def test_error_is_within_three_times_the_one_reported(method: str, name: str) -> None:
    """For every row of a mixture, whatever the tolerance, in 1, 2 and 16 dimensions."""
    sde = SDES[name][0]
    line = GaussianMixture(MEANS[:, :1], COVARIANCES[:, :1, :1], WEIGHTS)
    for mixture, rows in ((line, 40), (PLANE, 40), (MIXTURES[16], 4)):
        x = mixture.sample((rows,), generator=rng(23))
        exact = mixture.perturbed_log_prob(x, *sde.marginal(x.new_tensor(1e-3)))
        for tolerance, steps in ((1e-2, max(12, ODESolver(method=method).fewest_steps)), (1e-4, 40)):
            options = {"method": method, "rtol": tolerance, "atol": tolerance, "steps": steps, "t_min": 1e-3}
            with torch.no_grad():
                estimate = probability_flow_log_prob(
                    solvers.exact_score(mixture, sde),
                    sde,
                    x,
                    base=solvers.exact_base(mixture, sde),
                    divergence=ExactDivergence(),
                    **options,
                )
            error = (estimate.log_prob - exact).abs()
            assert (error <= 3 * estimate.solver_error).all(), f"{error} for {estimate.solver_error}"


@pytest.mark.parametrize("method", [PER_SAMPLE, "adams", "adams_sparse", "rk4"])
def test_probability_flow_of_a_row_is_what_it_is_alone(method: str) -> None:
    """To 1e-6 nats and far below."""
    sde, x = VPSDE(), PLANE.sample((3,), generator=rng(24))
    options = {"base": solvers.exact_base(PLANE, sde), "method": method, "steps": 24, "t_min": 1e-3}
    log_prob = torch.no_grad()(partial(probability_flow_log_prob, solvers.exact_score(PLANE, sde), sde, **options))
    together = log_prob(x)
    for i in range(3):
        alone = log_prob(x[i : i + 1])
        torch.testing.assert_close(alone.log_prob, together.log_prob[i : i + 1], rtol=0, atol=1e-10)
        torch.testing.assert_close(alone.solver_error, together.solver_error[i : i + 1], rtol=0, atol=1e-10)


def test_model_calls_are_nfe() -> None:
    """Value and divergence come from one call; the truncation takes one more."""
    sde, x, rows = VPSDE(), PLANE.sample((5,), generator=rng(25)), 0
    exact = solvers.exact_score(PLANE, sde)

    def score(x: Tensor, t: Tensor) -> Tensor:
        nonlocal rows
        rows += len(x)
        return exact(x, t)

    for method in ("dopri5", PER_SAMPLE, "rk4", "adams", "adams_sparse"):
        rows = 0
        estimate = probability_flow_log_prob(score, sde, x, method=method, steps=10, t_min=1e-3, error_factor=None)
        assert rows == estimate.nfe.sum() + 5
