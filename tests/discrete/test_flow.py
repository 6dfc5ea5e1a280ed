import pytest
import torch
from helpers import normal, perturb, rng, seeded
from torch import Tensor

from cflows import ScoreSDE
from cflows.ode.solver import ODESolver
from core import DiagonalNormal, StandardLogistic, StandardNormal, StandardUniform
from discrete import NICE, AffineCoupling, Compose, Diagonal, Flow, Inverse, Logit, Permutation, RealNVP
from discrete.bijections.partition import alternating_mask
from discrete.bijections.preprocessing import Scaling


def coupling_flow(context_features: int = 0) -> Flow:
    build = lambda: Flow(AffineCoupling(2, hidden=(8,), context_features=context_features), StandardNormal(2))  # noqa: E731
    return perturb(seeded(build), rng(0))


def test_linear_flow_is_a_normal() -> None:
    """z = (x - μ)/σ under N(0, I) is N(μ, σ²)."""
    loc, scale = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double()
    flow = Flow(Scaling(2, loc=loc, scale=scale), StandardNormal(2)).double()
    x = normal(5, (2,), rng(1)) * 3
    expected = torch.distributions.Normal(loc, scale).log_prob(x).sum(1)
    torch.testing.assert_close(flow.log_prob(x), expected)


def test_density_scales_by_the_determinant() -> None:
    """A = diag(2, 3) maps the unit square to a density of 1/6; stretching by 8, one of 1/8."""
    square = Flow(Diagonal(2, scale=torch.tensor([1 / 2, 1 / 3])), StandardUniform(2))
    assert square.log_prob(torch.tensor([1.5, 2.5])).exp().item() == pytest.approx(1 / 6, rel=1e-6)
    assert Flow(Diagonal(1, scale=1 / 8), StandardUniform(1)).log_prob(torch.tensor([4.0])).exp().item() == 0.125


def test_nice_has_a_constant_log_det() -> None:
    flow = perturb(seeded(lambda: NICE(5, hidden=(8,))), rng(2))
    _, log_det = flow.bijection(normal(7, (5,), rng(3)))
    log_scale = flow.bijection.bijections[-1].log_scale
    torch.testing.assert_close(log_det, log_scale.sum().expand(7))


@pytest.mark.parametrize("build", [NICE, RealNVP])
def test_a_fresh_model_is_its_base(build: type) -> None:
    flow = seeded(lambda: build(4, hidden=(8,))).double().eval()
    x = normal(6, (4,), rng(4))
    torch.testing.assert_close(flow.log_prob(x), flow.base.log_prob(x))


@pytest.mark.parametrize("build", [NICE, RealNVP])
def test_every_coordinate_moves_and_steers(build: type) -> None:
    """The Jacobian of the whole map has no zero: alternating masks mix everything."""
    flow = perturb(seeded(lambda: build(4, layers=4, hidden=(16,), dropout=0.1)), rng(5))
    x = normal(20, (4,), rng(6))
    jacobians = torch.stack(
        [torch.autograd.functional.jacobian(lambda y: flow.bijection(y[None])[0][0], row) for row in x]
    )
    assert (jacobians.abs().amax(0) > 0).all()


def test_real_nvp_alternates_in_strides() -> None:
    """On a 2 × 4 image, flattened: columns, and after them rows; each partition once either way."""
    flow = RealNVP(8, layers=4, hidden=(8,), strides=(1, 4), normalization="none")
    passing = [layer.partition.passing.tolist() for layer in flow.bijection.bijections]
    assert passing == [[0, 2, 4, 6], [1, 3, 5, 7], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert alternating_mask(6, 2, flipped=True).tolist() == [False, False, True, True, False, False]
    for stride in (0, 8):
        with pytest.raises(ValueError, match=r"the stride is 0|passes 8 of 8"):
            RealNVP(8, strides=(stride,))


def test_a_base_of_ones_own() -> None:
    for build in (NICE, RealNVP):
        flow = seeded(lambda b=build: b(2, hidden=(8,), base=DiagonalNormal(2, loc=5.0, scale=0.1))).eval()
        assert flow.sample((100,), generator=rng(7)).mean().item() == pytest.approx(5.0, abs=0.1)
        with pytest.raises(ValueError, match=r"its base is a density over \(3,\)"):
            build(2, hidden=(8,), base=StandardNormal(3))


def test_permuting_the_data_permutes_nothing_in_the_likelihood() -> None:
    flow, x = coupling_flow(), normal(5, (2,), rng(8))
    swapped = Flow(Compose(Permutation(2).double(), flow.bijection), flow.base)
    torch.testing.assert_close(swapped.log_prob(x.flip(1)), flow.log_prob(x))


def test_directions_add_up_and_swap() -> None:
    bijection = Compose(Logit(2), AffineCoupling(2), AffineCoupling(2))
    flow = Flow(bijection, StandardNormal(2))
    assert (flow.log_prob_direction.passes, flow.sample_direction.passes) == (2, 2)
    assert Inverse(bijection).forward_direction == bijection.inverse_direction


def test_errors_of_a_solved_base_pass_through() -> None:
    """A flow around a continuous model keeps standard error, solver error, truncation, kind and nfe."""
    solver = ODESolver(method="rk4", steps=5)
    base = perturb(seeded(lambda: ScoreSDE(2, hidden=(8,), t_min=0.05, solver=solver)), rng(9), std=0.1)
    flow = Flow(Scaling(2, loc=1.0, scale=2.0), base).double()
    x = normal(3, (2,), rng(10))
    inner, outer = base.estimate_log_prob((x - 1) / 2), flow.estimate_log_prob(x)
    for name in ("std_error", "solver_error", "truncation", "nfe"):
        assert torch.equal(getattr(inner, name), getattr(outer, name))
    assert inner.kind == outer.kind == "exact"
    assert (outer.nfe == 20).all()
    torch.testing.assert_close(outer.log_prob, inner.log_prob - 2 * torch.log(torch.tensor(2.0)))
    torch.testing.assert_close(flow.log_prob(x), outer.log_prob)
    with pytest.raises(TypeError, match="ScoreSDE"):
        flow.rsample_and_log_prob((2,))


def test_distribution_batches_by_context() -> None:
    flow, context = coupling_flow(context_features=1), normal(3, (1,), rng(11))
    law = flow.distribution(context)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert law.sample((4,)).shape == (4, 3, 2)
    x = normal(5, (2,), rng(12))
    table = law.log_prob(x[:, None])
    assert table.shape == (5, 3)
    for j in range(3):
        torch.testing.assert_close(table[:, j], flow.log_prob(x, context[j]))
    wide = law.expand((7, 3))
    assert (wide.batch_shape, wide.event_shape) == ((7, 3), (2,))
    torch.testing.assert_close(wide.log_prob(x[0]), table[:1].expand(7, 3))
    outer = torch.distributions.Independent(law, 1)
    torch.testing.assert_close(outer.log_prob(x[0]), table[0].sum())


def test_distribution_without_context_expands() -> None:
    """As every torch distribution: independent copies."""
    flow = coupling_flow()
    law = flow.distribution().expand((4,))
    assert (law.batch_shape, law.event_shape) == ((4,), (2,))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = law.sample((3,))
    assert x.shape == (3, 4, 2)
    torch.testing.assert_close(law.log_prob(x), flow.log_prob(x))


def test_pathwise_gradient_fits_a_target() -> None:
    """Reverse KL by rsample_and_log_prob: its gradient at the optimum vanishes, away from it points back."""
    flow = Flow(Inverse(Diagonal(1, scale=2.0)), StandardNormal(1)).double()  # N(0, 2²)
    for std, sign in ((2.0, 0.0), (1.0, 1.0), (4.0, -1.0)):
        target = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), std)
        x, log_q = flow.rsample_and_log_prob((20_000,), generator=rng(13))
        loss = (log_q - target.log_prob(x[:, 0])).mean()
        (gradient,) = torch.autograd.grad(loss, flow.bijection.bijection.log_scale)
        slope = 4 / std**2 - 1  # d/ds KL(N(0, e^{2s}) ‖ N(0, std²)) at e^s = 2
        assert gradient.item() == pytest.approx(slope, abs=0.1)
        assert sign == 0 or gradient.sign().item() == sign


@pytest.mark.parametrize("context", [None, torch.zeros(4, 3), torch.zeros(5, 1)])
def test_context_that_does_not_fit_is_refused(context: Tensor | None) -> None:
    flow = coupling_flow(context_features=1)
    with pytest.raises(ValueError, match=r"context_features=1|does not broadcast"):
        flow.log_prob(torch.zeros(4, 2, dtype=torch.float64), None if context is None else context.double())


def test_base_and_bijection_must_fit() -> None:
    with pytest.raises(ValueError, match=r"gives events of shape \(2,\), but its base is a density over \(3,\)"):
        Flow(Diagonal(2), StandardLogistic(3))
