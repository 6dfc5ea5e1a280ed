"""FFJORD, and what both continuous flows share: density, both directions, contexts and rows."""

import pytest
import torch
from contracts import continuous_flows as contracts
from contracts import densities, modules
from helpers import normal, perturb, rng, seeded
from torch import Tensor, nn

from cflows import FFJORD, FlowMatching, ODESolver
from cflows.models.continuous_flow import ContinuousFlow
from core import DiagonalNormal, ExactDivergence, Hutchinson, RowGenerators, StandardLogistic, StandardNormal
from core.nets import ConcatSquashMLP

TIGHT = ODESolver(method="dopri5_per_sample", rtol=1e-8, atol=1e-8)
SOLVERS = [
    TIGHT,
    ODESolver(rtol=1e-8, atol=1e-8),
    ODESolver(method="rk4", steps=50),
    ODESolver(method="adams", steps=200),
]


def of_field(velocity: contracts.Velocity, solver: ODESolver = TIGHT) -> FFJORD:
    """The flow of a field in closed form."""
    return FFJORD(3, net=lambda x, u, context: velocity(x, (u + 1) / 2), solver=solver).double()


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.method)
def test_an_affine_field_in_closed_form(solver: ODESolver) -> None:
    contracts.log_prob_is_that_of_the_affine_field(lambda velocity, x: of_field(velocity, solver).log_prob(x))
    contracts.encode_follows_the_affine_field(
        lambda velocity, x: of_field(velocity, solver).encode(x),
        lambda velocity, z: of_field(velocity, solver).decode(z),
    )


def test_the_estimate_says_what_it_is() -> None:
    x = normal(4, (3,), rng(0))
    estimate = of_field(contracts.affine_field, ODESolver(method="rk4", steps=10)).estimate_log_prob(x)
    assert (estimate.log_prob - contracts.affine_log_prob(x)).abs().max() <= 3 * estimate.solver_error.max()
    assert estimate.kind == "exact"
    assert (estimate.nfe == 40).all()
    assert (estimate.truncation == 0).all()
    model = FFJORD(3, divergence=Hutchinson(probes=4), net=lambda x, u, c: contracts.affine_field(x, u)).double()
    estimate = model.estimate_log_prob(x, generator=rng(1))
    assert estimate.kind == "estimate"
    assert (estimate.std_error > 0).all()


@pytest.mark.parametrize("base", [None, DiagonalNormal(2, loc=1.0, scale=3.0), StandardLogistic(2)])
def test_untrained_is_the_base(base: object) -> None:
    model = FFJORD(2, base=base).double()
    x = normal(5, (2,), rng(2))
    torch.testing.assert_close(model.log_prob(x), (base or StandardNormal(2)).double().log_prob(x))
    assert torch.equal(model.encode(x), x)


def flow(cls: type, **keywords: object) -> ContinuousFlow:
    """Small and away from where it starts."""
    return perturb(
        seeded(lambda: cls(2, hidden=(8,), frequencies=2, **keywords)), rng(3), std=0.3 if cls is FFJORD else 0.05
    )


MODELS = pytest.mark.parametrize("cls", [FFJORD, FlowMatching])


@MODELS
def test_draws_come_with_their_density(cls: type) -> None:
    """One solve downwards gives x and log p(x) as the likelihood has it, with its gradients."""
    model = flow(cls, context_features=1, solver=ODESolver(method="rk4", steps=30))
    context = normal(3, (1,), rng(4))
    x, log_q = model.rsample_and_log_prob((2, 3), context=context, generator=rng(5))
    assert torch.equal(x.detach(), model.sample((2, 3), context=context, generator=rng(5)))
    log_p = model.log_prob(x, context)
    torch.testing.assert_close(log_q, log_p, rtol=0, atol=1e-5)
    ours, theirs = (torch.autograd.grad(v.sum(), list(model.parameters()), retain_graph=True) for v in (log_q, log_p))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=5e-5)  # within the solver error
    assert model.rsample_and_log_prob((), context=context[0], generator=rng(5))[1].shape == ()


@MODELS
def test_draws_follow_the_density(cls: type) -> None:
    model = flow(cls, solver=ODESolver(method="rk4", steps=10))
    densities.samples_follow_the_density(model, points=81, count=10_000, generator=rng(6), box=(-9, 9))


@MODELS
def test_encode_and_decode_are_a_round_trip_of_any_batch(cls: type) -> None:
    model = flow(cls, context_features=1, solver=ODESolver(method="rk4", steps=40))
    context = normal(3, (1,), rng(7))
    for batch in ((), (0,), (2, 3)):
        x, c = normal(1, (*batch, 2), rng(8))[0], context if batch == (2, 3) else context[0]
        z = model.encode(x, c)
        assert z.shape == x.shape
        torch.testing.assert_close(model.decode(z, c), x, rtol=0, atol=1e-5)


@MODELS
def test_gradients_reach_the_latent(cls: type) -> None:
    """∂z/∂x is the Jacobian whose log-determinant the density has."""
    model = flow(cls, solver=ODESolver(method="rk4", steps=40))
    x = normal(1, (2,), rng(9))
    jacobian = torch.autograd.functional.jacobian(lambda x: model.encode(x[None])[0], x[0])
    expected = model.base.log_prob(model.encode(x)) + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(model.log_prob(x), expected, rtol=0, atol=1e-6)


@MODELS
def test_a_row_with_its_context_is_what_it_is_alone(cls: type) -> None:
    """With steps of its own for each row, which arrive one by one."""
    assert cls(2, hidden=(8,)).solver.method == "dopri5_per_sample"
    tolerance = 1e-8 if cls is FFJORD else 1e-5  # where its rows differ in their steps
    solver = ODESolver(method="dopri5_per_sample", rtol=tolerance, atol=tolerance)
    model = flow(cls, context_features=1, solver=solver)
    x, context = normal(3, (2,), rng(10)), torch.tensor([[-3.0], [0.0], [9.0]], dtype=torch.float64)
    together = model.estimate_log_prob(x, context)
    assert len(set(together.nfe.tolist())) > 1, "all rows take as many steps"
    draws = model.sample((3,), context=context, generator=RowGenerators([0, 1, 2]))
    for i in range(3):
        alone = model.estimate_log_prob(x[i], context[i])
        torch.testing.assert_close(alone.log_prob, together.log_prob[i], rtol=0, atol=1e-9)
        assert alone.nfe == together.nfe[i]
        one = model.sample((1,), context=context[i], generator=RowGenerators([i]))
        torch.testing.assert_close(one[0], draws[i], rtol=0, atol=1e-9)


@MODELS
@pytest.mark.parametrize("network", ["mlp", "unet"])
def test_images(cls: type, network: str) -> None:
    """Time and context reach the velocity of images, and its gradients every parameter."""
    build = lambda: cls((1, 4, 4), network=network, hidden=(4, 4), depth=1, frequencies=2, context_features=2)  # noqa: E731
    model = perturb(seeded(build), rng(11))
    x, context = normal(3, (1, 4, 4), rng(12)), normal(3, (2,), rng(13))
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    v = model.velocity(x, t, context)
    assert v.shape == x.shape
    assert (model.velocity(x, t.flip(0), context)[[0, 2]] - v[[0, 2]]).abs().min() > 1e-9
    assert (model.velocity(x, t, context + 1) - v).abs().min() > 1e-9
    modules.gradients_reach_every_parameter(lambda m, x, c: (m(x, t, c),), model, x, context)
    torch.testing.assert_close(model.velocity(x[:1], t[0], context[:1]), v[:1])


@MODELS
def test_default_divergence_is_exact_in_few_dimensions(cls: type) -> None:
    assert cls(7, hidden=(8,)).divergence == ExactDivergence()
    assert cls((1, 2, 4), hidden=(8,)).divergence == Hutchinson(probes=8)


@MODELS
def test_runs_on_meta(cls: type) -> None:
    model = cls(3, hidden=(8,), solver=ODESolver(method="rk4", steps=2)).to("meta")
    with torch.random.fork_rng():
        assert model.sample((2,)).device.type == "meta"
    assert model.log_prob(torch.zeros(2, 3, device="meta")).device.type == "meta"
    assert model.encode(torch.zeros(2, 3, device="meta")).device.type == "meta"


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"heads": 2}, "are of 'unet', but concat_squash has heads=2"),
        ({"network": "mlp", "patch": 2}, "are of 'unet', but mlp has"),
        ({"base": StandardNormal(3)}, r"over \(2,\) needs a base over the same events, but it is over \(3,\)"),
    ],
)
def test_settings_that_do_not_fit(keywords: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FFJORD(2, **keywords)


def test_a_context_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="built for context_features=1, but context has 0"):
        FFJORD(2, context_features=1).log_prob(torch.zeros(3, 2))


class TestConcatSquash:
    """The network on its own."""

    @staticmethod
    def net(**keywords: object) -> nn.Module:
        return perturb(seeded(lambda: ConcatSquashMLP(2, 3, embedding_features=2, hidden=(5,), **keywords)), rng(14))

    def test_is_the_formula(self) -> None:
        net, x, e = self.net(), normal(4, (2,), rng(15)), normal(4, (2,), rng(16))
        h = x
        for i, layer in enumerate(net.layers):
            gate = 1 / (1 + torch.exp(-(e @ layer.gate.weight.T + layer.gate.bias)))
            h = (h @ layer.linear.weight.T + layer.linear.bias) * gate + e @ layer.shift.weight.T
            h = h.tanh() if i == 0 else h
        torch.testing.assert_close(net(x, e), h)

    def test_rows_and_gradients(self) -> None:
        net, x, e = self.net(), normal(4, (2,), rng(17)), normal(4, (2,), rng(18))
        call = lambda m, x, e: (m(x, e),)  # noqa: E731
        modules.rows_are_independent(call, net, x, e)
        modules.gradients_reach_every_parameter(call, net, x, e)
        assert (net(x, e + 1) - net(x, e)).abs().min() > 1e-6

    def test_a_fresh_one_is_zero(self) -> None:
        fresh = ConcatSquashMLP(2, 3, embedding_features=2, hidden=(5, 6))
        assert torch.count_nonzero(fresh(torch.randn(4, 2), torch.randn(4, 2))) == 0
        assert [layer.linear.out_features for layer in fresh.layers] == [5, 6, 3]

    @pytest.mark.parametrize(
        ("keywords", "sentence"),
        [({"hidden": ()}, "at least one hidden width"), ({"activation": "relu"}, "continuous derivative")],
    )
    def test_refuses(self, keywords: dict, sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            ConcatSquashMLP(2, 3, embedding_features=1, **keywords)


def test_input_of_a_flow_is_left_alone() -> None:
    def call(model: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        return model.encode(x), model.decode(x)

    modules.input_is_left_alone(call, flow(FFJORD), normal(3, (2,), rng(19)))
