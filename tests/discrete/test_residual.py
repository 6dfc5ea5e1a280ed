import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import bijections, modules, residual
from helpers import normal, perturb, rng, seeded
from torch import Tensor, nn

from core import DiagonalNormal, LikelihoodEstimate, RowGenerators, StandardNormal
from core.nets.lipschitz import Jacobian
from core.nets.spectral import SpectralLayer
from discrete import Compose, Dequantization, Diagonal, Flow, Inverse, InvertibleResidual, ResidualFlow
from discrete.bijections.fixed_point import fixed_point, largest_count
from discrete.bijections.residual import (
    _geometric,
    count_for,
    power_series,
    roulette_weights,
    settled_series,
    truncation_bound,
)
from experiment import build, load_config
from experiment.data import digits
from experiment.likelihood.evaluation import measure
from experiment.likelihood.summary import Subject

Q = 0.5
SOME: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}


def contraction(size: int, norm: float, seed: int = 0) -> Tensor:
    A = normal(size, (size,), rng(seed))
    return A * (norm / torch.linalg.matrix_norm(A, 2))


def linear(size: int, **keywords: Any) -> InvertibleResidual:
    """g(x) = A x + b of norm L."""
    return perturb(seeded(partial(InvertibleResidual, size, hidden=(), **keywords)), rng(1), std=3.0)


def layer(size: int | tuple[int, ...] = 10, **keywords: Any) -> InvertibleResidual:
    options = {"hidden": (16,), "log_det": "unbiased"} | keywords
    return perturb(seeded(partial(InvertibleResidual, size, **options)), rng(1), std=1.0)


def flow(size: int = 12, *, log_det: str = "unbiased", draws: int = 8, **keywords: Any) -> Flow:
    build = partial(ResidualFlow, size, layers=2, hidden=(16,), log_det=log_det, draws=draws, **keywords)
    return perturb(seeded(build), rng(1), std=0.5)


@pytest.mark.parametrize("lipschitz", [0.5, 0.97])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_linear_layer(size: int, lipschitz: float) -> None:
    """z = (I + A) x + b: log-det by slogdet, x by a solve, ‖A‖₂ = L."""
    f, x = linear(size, lipschitz=lipschitz), normal(5, (size,), rng(2))
    g = f.network.bind()
    A, b = (t.detach() for t in g.layers[0][:2])
    assert torch.linalg.matrix_norm(A, 2).item() == pytest.approx(lipschitz)
    identity = torch.eye(size, dtype=torch.float64)
    z, log_det = f(x)
    torch.testing.assert_close(z.detach(), x + x @ A.T + b)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(identity + A).logabsdet.expand(5))
    back, opposite = f.inverse(x)
    torch.testing.assert_close(back.detach(), torch.linalg.solve(identity + A, (x - b).T).T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(opposite, -log_det)


@pytest.mark.parametrize("terms", [1, 2, 6])
def test_roulette_is_unbiased(terms: int) -> None:
    """Value and gradient, with the expectation over probes and over the number of terms taken in full."""

    def estimator(J: Jacobian, v: Tensor, further: int) -> tuple[Tensor, Tensor]:
        return power_series(J, v, roulette_weights(terms, further, Q))

    residual.is_unbiased(estimator, contraction(9, 0.6), q=Q)


def test_number_of_terms_has_its_law() -> None:
    """P(N ≥ j) = q^j within four standard errors."""
    generator, count = rng(3), 20_000
    drawn = torch.tensor([_geometric(0.7, generator, torch.device("cpu")) for _ in range(count)])
    for j in (1, 2, 5, 9):
        p = 0.7**j
        assert abs((drawn >= j).double().mean().item() - p) <= 4 * math.sqrt(p * (1 - p) / count)


def test_truncation_bound() -> None:
    residual.truncates_within_its_bound(truncation_bound)


@pytest.mark.parametrize("norm", [0.3, 0.9, 0.99])
def test_power_series_misses_no_more_than_its_bound(norm: float) -> None:
    """Of random matrices, with exact traces; the fewest terms that keep a bound are found."""
    n = 6
    v, A = math.sqrt(n) * torch.eye(n, dtype=torch.float64)[:, None], contraction(n, norm)
    exact = torch.linalg.slogdet(torch.eye(n, dtype=torch.float64) + A).logabsdet
    for terms in (1, 3, 10, 100):
        found, _ = power_series(Jacobian((A,), ()), v, [1.0] * terms)
        assert (found[0] - exact).abs() <= truncation_bound(terms, norm, n) + 1e-12
    for allowed in (1.0, 1e-2, 1e-6):
        count = count_for(allowed, norm, n)
        assert truncation_bound(count, norm, n) <= allowed
        assert count == 1 or truncation_bound(count - 1, norm, n) > allowed


@pytest.mark.parametrize("truncation", [1.0, 1e-2, 1e-5])
def test_settled_series_misses_no_more_than_it_may(truncation: float) -> None:
    """A = ∓L I, where one probe gives the trace; and a row takes the terms that it needs, whatever the others do."""
    n, v = 5, torch.ones(1, 3, 5, dtype=torch.float64)
    for L in (-0.9, 0.9, 0.4):
        J = Jacobian((L * torch.eye(n, dtype=torch.float64),), ())
        found, w = settled_series(J, v, lipschitz=abs(L), truncation=truncation)
        assert (found - n * math.log1p(L)).abs().max() <= truncation
        assert (w - v / (1 + L)).abs().max() <= truncation * 60
    hidden = torch.tensor([1.0, 0.05, 0.3], dtype=torch.float64)[:, None]  # a slope for each row
    identity = torch.eye(n, dtype=torch.float64)
    rows = Jacobian((identity, 0.9 * identity), (hidden.expand(3, n),))
    together, _ = settled_series(rows, v, lipschitz=0.9, truncation=truncation)
    for i in range(3):
        alone, _ = settled_series(
            Jacobian(rows.weights, (hidden[i : i + 1].expand(1, n),)), v[:, :1], lipschitz=0.9, truncation=truncation
        )
        assert torch.equal(alone[0], together[i])
        assert abs(alone.item() - n * math.log1p(0.9 * hidden[i].item())) <= truncation


def exact_twin(f: nn.Module) -> nn.Module:
    twin = copy.deepcopy(f)
    for part in twin.modules():
        if isinstance(part, InvertibleResidual):
            part.log_det = "exact"
            part.forward_direction = part.inverse_direction = InvertibleResidual(1).forward_direction
    return twin


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [10, (2, 2, 2)])
def test_estimates_average_to_the_exact_value_and_gradient(shape: int | tuple[int, ...], training: bool) -> None:
    """In training, where chance ends the series, and in evaluation: the means of 60 calls within their errors."""
    f = layer(shape, hidden=(8, 8) if isinstance(shape, tuple) else (16,), stop=0.3, lipschitz=0.8).train(training)
    x, generator, calls = normal(1, f.event_shape, rng(4)), rng(5), 60
    for _ in range(50 if training else 0):  # power steps settle
        f.network.bind()
    twin = exact_twin(f).eval()
    exact = twin(x)[1].sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(exact, list(twin.parameters()), **SOME)])
    values, gradients = [], []
    for _ in range(calls):
        value = f(x.expand(60, *x.shape[1:]), generator=generator)[1].mean()
        values.append(value.detach())
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(f.parameters()), **SOME)]))
    value, gradient = torch.stack(values), torch.stack(gradients)
    assert abs(value.mean() - exact) < 4 * value.std() / math.sqrt(calls)
    z = (gradient.mean(0) - expected) / (gradient.std(0) / math.sqrt(calls) + 1e-6)
    assert z.abs().max() < 5
    assert z.square().mean() < 2
    assert (gradient.std(0) / math.sqrt(calls)).max() < 0.1 * expected.abs().max()


def test_standard_error() -> None:
    x = normal(1500, (12,), rng(6))
    f = flow()
    residual.errors_are_honest(f, exact_twin(f), x, draws=8, generator=rng(7))


def test_one_draw_cannot_tell_its_error() -> None:
    x = normal(5, (12,), rng(6))
    for f in (flow(draws=1), flow(draws=8).train()):
        estimate = f.estimate_log_prob(x, generator=rng(7))
        assert estimate.kind == "estimate"
        assert estimate.std_error.isnan().all()
        assert estimate.log_prob.isfinite().all()


def test_log_prob_is_the_first_field() -> None:
    """With the same generator, in any batch shape; every draw counts."""
    f, x = flow(draws=3), normal(6, (12,), rng(6)).reshape(2, 3, 12)
    estimate = f.estimate_log_prob(x, generator=rng(7))
    assert estimate.log_prob.shape == estimate.std_error.shape == (2, 3)
    assert torch.equal(f.log_prob(x, generator=rng(7)), estimate.log_prob)
    other = f.log_prob(x, generator=rng(8))
    assert (other != estimate.log_prob).all()


def test_errors_of_two_flows_add_in_quadrature() -> None:
    inner, x = flow(), normal(4, (12,), rng(6))
    outer = Flow(Diagonal(12), inner)
    torch.testing.assert_close(
        outer.double().eval().estimate_log_prob(x, generator=rng(7)).std_error,
        inner.estimate_log_prob(x, generator=rng(7)).std_error,
    )
    both = LikelihoodEstimate(torch.zeros(1), std_error=torch.tensor([3.0]))
    assert both.shifted(torch.ones(1), std_error=torch.tensor([4.0])).std_error.item() == 5.0
    assert both.shifted(torch.ones(1)).std_error.item() == 3.0


def test_exact_flow_has_no_error() -> None:
    f = ResidualFlow(3, layers=1, hidden=(8,)).eval()
    estimate = f.estimate_log_prob(torch.zeros(2, 3))
    assert estimate.kind == "exact"
    assert torch.count_nonzero(estimate.std_error) == 0


def test_beside_a_surjection_the_error_is_unknown() -> None:
    """Its noise and that of the probes cannot be told apart: NaN, not 0; around the flow it can."""
    x = torch.randint(0, 4, (5, 12), generator=rng())
    f = flow()
    mixed = Flow(Compose(Dequantization(12, bins=4), *f.bijection.bijections), StandardNormal(12)).double().eval()
    estimate = mixed.estimate_log_prob(x, generator=rng(1))
    assert estimate.kind == "bound"
    assert estimate.std_error.isnan().all()
    around = Flow(Dequantization(12, bins=4), f).double().eval().estimate_log_prob(x, generator=rng(1))
    assert around.kind == "bound"
    assert (around.std_error > 0).all()


def test_a_generator_for_each_row() -> None:
    """Draws and estimates of a row follow from its seed alone."""
    f, x = flow(draws=3), normal(3, (12,), rng(2))
    both = f.estimate_log_prob(x, generator=RowGenerators([5, 6, 7]))
    alone = f.estimate_log_prob(x[1:2], generator=RowGenerators([6]))
    torch.testing.assert_close(both.log_prob[1:2], alone.log_prob)
    torch.testing.assert_close(both.std_error[1:2], alone.std_error)
    drawn = [f.sample((n,), generator=RowGenerators(seeds)) for n, seeds in ((2, [8, 9]), (1, [9]))]
    torch.testing.assert_close(drawn[0][1:], drawn[1])


def test_draws_of_a_context() -> None:
    """Each copy of a row comes with the context of that row."""
    f = perturb(seeded(partial(ResidualFlow, 9, layers=1, hidden=(8,), context_features=2, draws=50)), rng(1))
    x, context = normal(4, (9,), rng(2)), 20 * normal(4, (2,), rng(3))
    estimate = f.estimate_log_prob(x, context, generator=rng(4))
    exact = exact_twin(f).log_prob(x, context)
    assert ((estimate.log_prob - exact).abs() <= 5 * estimate.std_error).all()
    others = exact_twin(f).log_prob(x, context.roll(1, 0))
    assert ((others - exact).abs() > 5 * estimate.std_error).all()


def test_evaluation_carries_the_trace_error(tmp_path: Path) -> None:
    """The error budget has a trace column, the audit is within a few standard errors, and the trip goes round."""
    torch.manual_seed(0)
    inner = ResidualFlow(64, layers=1, hidden=(32,), lipschitz=0.7)
    model = Flow(Compose(Dequantization(64, bins=17), Diagonal(64, scale=4.0)), inner).eval()
    subject = Subject(run="r", model="residual", parameters=1)
    summary = measure(model, digits(layout="flat"), subject, tmp_path, draws=2, device=torch.device("cpu"))
    assert summary.kind == "bound"
    assert summary.trace_error_nats is not None
    assert 0 < summary.trace_error_nats < summary.sampling_error_nats
    assert summary.bits_per_dim_log_mean_exp is None
    assert summary.audit_rows > 0
    assert summary.audit_max_std_errors < 25  # Student's t with 3 degrees of freedom, four rows
    assert summary.round_trip_max < 1e-5


@pytest.mark.parametrize("log_det", ["exact", "power_series", "unbiased"])
@pytest.mark.parametrize("training", [False, True])
def test_log_det_trains_every_weight(log_det: str, training: bool) -> None:
    f = layer(3, log_det=log_det, hidden=(16, 8), activation="clipswish").train(training)
    residual.log_det_trains(f, normal(9, (3,), rng(2)), generator=rng(3))


@pytest.mark.parametrize("log_det", ["power_series", "unbiased"])
def test_module_contracts_of_estimates(log_det: str) -> None:
    def call(module: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        return module(x, context, generator=None if x.is_meta else rng(4))

    def inverse(module: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        return module.inverse(x, context, generator=None if x.is_meta else rng(4))

    build = partial(layer, (1, 2, 3), hidden=(4, 4), log_det=log_det, context_features=2)
    f, x, context = build(), normal(5, (1, 2, 3), rng(2)), normal(5, (2,), rng(3))
    for direction in (call, inverse):
        modules.gradients_reach_every_parameter(direction, f, x, context)
        modules.input_is_left_alone(direction, f, x, context)
        modules.runs_on_meta(direction, f, x, context)
        modules.runs_on_meta(direction, f.train(), x, context)
        modules.copies_are_bit_equal(direction, f.eval(), build(), x, context)
        modules.float32_is_close(direction, f, x, context, tolerance=1e-4)
    bijections.shapes_fit(
        f, lambda n: normal(n, (1, 2, 3), rng(2)), lambda n: normal(n, (1, 2, 3), rng(2)), normal(65, (2,), rng(3))
    )


def test_second_derivative_of_an_estimate_is_refused() -> None:
    f, x = layer(3), normal(2, (3,), rng(2)).requires_grad_()
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(f(x)[1].sum(), x, create_graph=True)


def test_memory_does_not_grow_with_the_terms() -> None:
    """What the forward pass keeps for the backward pass: input, probe and w."""

    def kept(**keywords: Any) -> int:
        sizes: list[int] = []
        f = layer(10, **keywords).train()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            f(normal(500, (10,), rng(2)), generator=rng(3))
        return sum(sizes)

    assert kept(terms=40) == kept(terms=2)
    assert kept(terms=40, log_det="power_series") > 5 * kept(terms=40)


def test_inverse_gradients() -> None:
    """Of x and its log-determinant in z, context and parameters; to second order in z, context and biases."""
    f = layer(2, hidden=(3,), context_features=1, log_det="exact", lipschitz=0.8)
    z, context = (normal(2, (n,), rng(n)).requires_grad_() for n in (2, 1))
    names, values = zip(*f.named_parameters(), strict=True)

    def inverse(z: Tensor, context: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        holder = _Inverted(f)
        return torch.func.functional_call(
            holder, {f"f.{n}": p for n, p in zip(names, parameters, strict=True)}, (z, context)
        )

    assert torch.autograd.gradcheck(inverse, (z, context, *values), atol=1e-6)
    frozen = [p.detach() if "weight" in name else p for name, p in zip(names, values, strict=True)]
    assert torch.autograd.gradgradcheck(inverse, (z, context, *frozen), atol=1e-5)


class _Inverted(nn.Module):
    def __init__(self, f: InvertibleResidual) -> None:
        super().__init__()
        self.f = f

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        return self.f.inverse(z, context)


def test_small_gradients_of_the_inverse_are_as_exact_as_large_ones() -> None:
    f, z = layer(3, log_det="exact"), normal(4, (3,), rng(2)).requires_grad_()
    x, _ = f.inverse(z)
    large, small = (torch.autograd.grad(scale * x.sum(), z, retain_graph=True)[0] for scale in (1.0, 1e-20))
    torch.testing.assert_close(small * 1e20, large, rtol=1e-12, atol=0)


def test_rows_of_the_inverse_rest_on_their_own() -> None:
    """Each after as many iterations as it takes alone; the residual is what it says."""
    slopes = torch.tensor([0.9, 0.1, 0.0, -0.7], dtype=torch.float64)[:, None]
    z = normal(4, (3,), rng(2))
    found = fixed_point(lambda x: slopes * x, z, lipschitz=0.9)
    torch.testing.assert_close(found.x, z / (1 + slopes), rtol=1e-12, atol=1e-12)
    assert (found.residual <= 1e-12).all()
    torch.testing.assert_close(found.residual, ((1 + slopes) * found.x - z).abs().amax(1), rtol=0.2, atol=1e-15)
    assert found.iterations[0] > found.iterations[3] > found.iterations[1] > found.iterations[2]
    assert found.iterations.max() <= largest_count(0.9, 3, torch.float64)
    for i in range(4):
        alone = fixed_point(lambda x, i=i: slopes[i : i + 1] * x, z[i : i + 1], lipschitz=0.9)
        assert torch.equal(alone.x[0], found.x[i])
        assert alone.iterations[0] == found.iterations[i]


def test_tolerance_is_kept() -> None:
    z = normal(4, (3,), rng(2))
    loose = fixed_point(lambda x: 0.9 * x, z, lipschitz=0.9, tolerance=1e-2)
    assert (loose.residual <= 1e-2).all()
    assert loose.residual.max() > 1e-4


@pytest.mark.parametrize("g", [lambda x: 1.5 * x, lambda x: torch.where(x > 1, x, 0.0), lambda x: x * math.nan])
def test_inverse_that_does_not_converge_names_its_row(g: Callable[[Tensor], Tensor]) -> None:
    z = torch.tensor([[0.0], [0.0], [3.0]])
    row = 0 if g(z).isnan().any() else 2
    with pytest.raises(RuntimeError, match=rf"does not converge in row {row}: its residual is"):
        fixed_point(g, z, lipschitz=0.5)


def test_a_latent_that_is_not_finite_is_named() -> None:
    f = layer(3, log_det="exact")
    z = normal(4, (3,), rng(2))
    z[2, 1] = math.nan
    with pytest.raises(RuntimeError, match="row 2"):
        f.inverse(z)


@pytest.mark.parametrize("lipschitz", [0.9, 0.99])
def test_steep_layers_are_inverted_in_single_precision(lipschitz: float) -> None:
    """A layer that is as close to singular as L lets it, z = (1 - L) x."""
    f = InvertibleResidual(4, hidden=(), lipschitz=lipschitz, log_det="exact")
    with torch.no_grad():
        f.network.layers[0].weight.copy_(-50 * torch.eye(4))
    f.eval()
    x = normal(50, (4,), rng(2)).float() * 100
    back, log_det = f.inverse(f(x)[0])
    assert (back - x).abs().max() < 3e-6 / (1 - lipschitz) * x.abs().max()
    torch.testing.assert_close(log_det, torch.full((50,), -4 * math.log(1 - lipschitz)), rtol=1e-4, atol=0)


def test_directions_say_what_they_cost() -> None:
    exact, estimated = InvertibleResidual(3), InvertibleResidual(30)
    assert (exact.log_det, exact.forward_direction.kind, exact.forward_direction.passes) == ("exact", "exact", 4)
    assert (estimated.log_det, estimated.forward_direction.kind) == ("unbiased", "estimate")
    assert Inverse(estimated).forward_direction.kind == "estimate"
    assert ResidualFlow(30, layers=1).log_prob_direction.kind == "estimate"
    assert exact.inverse_direction.steps > 50
    series = InvertibleResidual(30, terms=4, probes=3).forward_direction
    assert (series.passes, series.steps) == (13, 5)  # g, and for each term a product of each probe


def test_flow_of_images() -> None:
    """28×28 goes 14×14 and 7×7; the latent keeps all values."""
    f = seeded(partial(ResidualFlow, (1, 28, 28), layers=1, hidden=(4, 4), draws=2, truncation=0.1)).eval()
    assert f.latent_shape == (16, 7, 7)
    estimate = f.estimate_log_prob(normal(2, (1, 28, 28), rng(1)).float(), generator=rng(2))
    assert estimate.log_prob.isfinite().all()
    assert (estimate.std_error > 0).all()
    assert f.sample((2,), generator=rng(3)).shape == (2, 1, 28, 28)


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*/residual*.toml")), ids=str)
def test_configs_build(path: Path) -> None:
    config = load_config(path)
    shape = (1, 28, 28) if config.data.kind == "mnist" else (2,)
    narrow = config.model_copy(update={"model": config.model.model_copy(update={"hidden": (4,), "layers": 1})})
    built = build(narrow, shape, bins=256 if config.data.kind == "mnist" else None, rows=None)
    assert built.model.event_shape == shape


def test_options_reach_every_layer() -> None:
    options = {"log_det": "power_series", "terms": 3, "stop": 0.3, "probes": 2, "truncation": 0.01, "tolerance": 1e-4}
    flow = ResidualFlow(2, layers=2, hidden=(5,), lipschitz=0.8, context_features=1, steps=3, **options)
    layers = [m for m in flow.modules() if isinstance(m, InvertibleResidual)]
    assert len(layers) == 2
    for layer in layers:
        assert {name: getattr(layer, name) for name in options} == options
        assert (layer.lipschitz, layer.network.context_features) == (0.8, 1)
        assert {m.steps for m in layer.modules() if isinstance(m, SpectralLayer)} == {3}


def test_base_of_ones_own() -> None:
    f = ResidualFlow(2, layers=1, hidden=(4,), base=DiagonalNormal(2, scale=3.0))
    assert isinstance(f.base, DiagonalNormal)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(InvertibleResidual, 2, lipschitz=1.0), r"lie within \(0, 1\).*1.0"),
        (partial(InvertibleResidual, 2, lipschitz=0.0), r"lie within \(0, 1\).*0.0"),
        (partial(InvertibleResidual, 2, stop=0.0), r"lie within \(0, 1\)"),
        (partial(InvertibleResidual, 2, terms=0), "terms=0"),
        (partial(InvertibleResidual, 2, tolerance=0.0), "tolerance=0.0"),
        (partial(ResidualFlow, 2, layers=0), "1 layer or more"),
        (partial(ResidualFlow, 2, levels=2), "levels for images only"),
        (partial(ResidualFlow, 2, draws=0), "1 draw or more"),
        (partial(ResidualFlow, 2, base=StandardNormal(3)), "base is a density"),
    ],
)
def test_what_cannot_be_is_refused(build: partial, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
