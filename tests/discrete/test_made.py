"""MADE and the autoregressive MLP against closed forms."""

import copy
import inspect
import io
import math
from typing import Any

import pytest
import torch
from contracts import densities, made, masses, modules
from helpers import normal, perturb, rng, seeded
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, MixtureSameFamily, MultivariateNormal, Normal

from core import StandardNormal
from discrete import MADE, AutoregressiveMLP, Flow, MaskedAutoregressive
from discrete.bijections.mixture import MixtureTransformer
from discrete.conditionals import GaussianConditional, MixtureConditional
from discrete.models.made import _conditional

ORDER = [2, 0, 3, 1]
B = 7.0


def build(features: int | tuple[int, ...] = 4, **keywords: Any) -> MADE:
    """Smooth, and away from where it starts."""
    settings = {"hidden": (16,), "activation": "tanh", "generator": rng(2), **keywords}
    return perturb(seeded(lambda: MADE(features, **settings)), rng(1))


def ensemble(**keywords: Any) -> MADE:
    return build(**{"order": "random", "hidden_degrees": "random", "hidden": (24,), "masks": 5, **keywords})


def covariance(features: int) -> Tensor:
    A = normal(features, (features,), rng(5))
    return A @ A.T + 0.5 * torch.eye(features, dtype=torch.float64)


def gaussian_by_hand(mean: Tensor, C: Tensor, order: list[int]) -> MADE:
    """Without a hidden layer, set to N(mean, C): z = L⁻¹ (x - mean) in the order, L the Cholesky factor."""
    D = len(order)
    model = MADE(D, hidden=(), order=torch.tensor(order), log_scale_bound=B).double().eval()
    A = torch.linalg.inv(torch.linalg.cholesky(C[order][:, order]))
    linear = model.network.linears[0]
    with torch.no_grad():
        linear.weight.fill_(9.0)  # what the masks must hide
        for i, d in enumerate(order):
            s = A[i, i].log()
            linear.weight[d] = 0.0
            linear.bias[d] = B * torch.atanh(s / B)
            linear.weight[len(mean) + d, order[:i]] = A[i, :i]
            linear.bias[len(mean) + d] = -A[i] @ mean[order]
    return model


@pytest.mark.parametrize("order", [[0, 1], [1, 0], ORDER])
def test_gaussian_is_the_multivariate_normal(order: list[int]) -> None:
    D = len(order)
    mean, C = normal(1, (D,), rng(6))[0], covariance(D)
    model, law = gaussian_by_hand(mean, C, order), MultivariateNormal(mean, C)
    x = 3 * normal(50, (D,), rng(3))
    torch.testing.assert_close(model.log_prob(x), law.log_prob(x), rtol=1e-12, atol=1e-12)
    draws = model.sample((40_000,), generator=rng(4))
    assert ((draws.mean(0) - mean).abs() < 5 * (C.diagonal() / 40_000).sqrt()).all()
    bound = 5 * ((C.diagonal()[:, None] * C.diagonal() + C.square()) / 40_000).sqrt()
    assert ((draws.T.cov() - C).abs() < bound).all(), "draws have another covariance"


def layer_of(model: MADE, transformer: Any, **keywords: Any) -> Flow:
    """The flow of one autoregressive layer with the model's weights onto a standard normal."""
    layer = MaskedAutoregressive(4, transformer=transformer, hidden=(16,), activation="tanh", **keywords).double()
    layer.conditioner.load_state_dict(model.network.state_dict())
    return Flow(layer, StandardNormal(4)).double().eval()


X = 2 * normal(6, (4,), rng(3))


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"order": torch.tensor(ORDER), "direct": True},
        {"conditioner": "resnet", "context_features": 2, "log_scale_bound": 1.5},
    ],
)
def test_gaussian_is_one_affine_autoregressive_layer(keywords: dict[str, Any]) -> None:
    """Densities are equal, and draws are what the layer takes to the normals that they were drawn from."""
    model = build(**{"log_scale_bound": 3.0, **keywords})
    flow = layer_of(model, "affine", **keywords)
    context = normal(6, (2,), rng(7)) if "context_features" in keywords else None
    made.is_the_flow_onto_a_normal(model, flow, X, context)
    z = flow.encode(model.sample((6,), context=context, generator=rng(8)), context).detach()
    source = rng(8)
    for d in model.network.degrees.argsort().tolist():
        noise = torch.randn(6, generator=source, dtype=torch.float64)
        torch.testing.assert_close(z[:, d], noise, rtol=1e-9, atol=1e-9)


def test_mixture_by_hand() -> None:
    """Two features, two components, no hidden layer: each conditional is torch's mixture of normals.

    At θ = 0 the components are N(±1/2, 3/4), the Gauss-Hermite rule of two nodes.
    """
    model = build(2, conditional="mixture", components=2, hidden=(), order="reversed", log_scale_bound=4.0)
    x, linear = 3 * normal(50, (2,), rng(3)), model.network.linears[0]
    W, b = (p.detach().unflatten(0, (6, 2)).transpose(0, 1) for p in (linear.weight, linear.bias))
    start, expected = torch.tensor([-0.5, 0.5], dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    for d, theta in ((1, b[1].expand(50, 6)), (0, b[0] + x[:, 1:] * W[0, :, 1])):
        logits, means, a = theta.split(2, 1)
        law = Normal(start + means, 0.75**0.5 * (4 * torch.tanh(a / 4)).exp())
        expected += MixtureSameFamily(Categorical(logits=logits), law).log_prob(x[:, d])
    torch.testing.assert_close(model.log_prob(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("bound", "keywords"), [(3.0, {}), (1.0, {"context_features": 2, "order": "reversed"})])
def test_mixture_is_one_mixture_autoregressive_layer(bound: float, keywords: dict[str, Any]) -> None:
    model = build(conditional="mixture", components=3, log_scale_bound=bound, **keywords)
    flow = layer_of(model, MixtureTransformer(components=3, log_scale_bound=bound), **keywords)
    context = normal(6, (2,), rng(7)) if "context_features" in keywords else None
    made.is_the_flow_onto_a_normal(model, flow, X, context)


def test_bernoulli_by_hand() -> None:
    """Without a hidden layer it is a fully visible sigmoid belief network over values ±1."""
    model = build(conditional="bernoulli", hidden=(), order=torch.tensor(ORDER))
    x = masses.states((4,), bins=2)
    W, b = (p.detach() for p in model.network.linears[0].parameters())
    expected = torch.zeros(16, dtype=torch.float64)
    for i, d in enumerate(ORDER):
        logit = b[d] + (2 * x[:, ORDER[:i]] - 1) @ W[d, ORDER[:i]]
        expected += Bernoulli(logits=logit).log_prob(x[:, d])
    torch.testing.assert_close(model.log_prob(x), expected, rtol=1e-12, atol=1e-12)


def test_bernoulli_masks() -> None:
    """An ensemble sums to one over all states, each mask of it too; draws follow the ensemble."""
    model = ensemble(conditional="bernoulli")
    masses.sums_to_one(model, bins=2)
    masses.draws_follow_the_masses(model, bins=2, generator=rng(4))
    x = masses.states((4,), bins=2)
    for mask in range(5):
        assert model.conditional_log_prob(x, mask=mask).sum(1).exp().sum().item() == pytest.approx(1, abs=1e-12)
    spoilt = torch.tensor([[0, 1, 0.5, 1], [0, 1, 2, 1], [0, 1, -math.inf, 1], [0, 1, math.nan, 1]]).double()
    found = model.log_prob(spoilt)
    assert found[:3].tolist() == [-math.inf] * 3
    assert found[3].isnan()


@pytest.mark.parametrize("logit", [800.0, -800.0])
def test_bernoulli_far_out(logit: float) -> None:
    """log-masses of 800 nats in float32, where the mass itself is 0."""
    model = MADE(1, conditional="bernoulli", hidden=())
    torch.nn.init.constant_(model.network.linears[0].bias, logit)
    assert sorted(model.log_prob(torch.tensor([[0.0], [1.0]])).tolist()) == [-800.0, 0.0]


def test_ensemble() -> None:
    for keywords in ({}, {"conditional": "mixture", "components": 2}, {"context_features": 2}):
        context = normal(6, (2,), rng(7)) if "context_features" in keywords else None
        made.is_the_mean_of_its_masks(ensemble(**keywords), normal(6, (4,), rng(3)), context)


def test_each_draw_has_a_mask_of_its_own() -> None:
    """Context by context the draws of an ensemble are those of the mask that was drawn for the row."""
    model, context = ensemble(context_features=2), normal(64, (2,), rng(7))
    draws = model.sample((64,), context=context, generator=rng(8))
    source = rng(8)
    each = [torch.empty(64, 4, dtype=torch.float64) for _ in range(5)]
    for mask, x in enumerate(each):
        for d in model.network.value_degrees(mask)[0][:4].argsort().tolist():
            theta = model.network(x.nan_to_num(), context, mask=mask)[:, d].detach()
            x[:, d] = model.likelihood.sample(theta[:, None], generator=source)[:, 0]
    chosen = torch.stack([(draws - x).abs().amax(1) < 1e-9 for x in each])
    assert (chosen.sum(0) == 1).all(), "a row is that of no mask, or of several"
    assert (chosen.sum(1) > 3).all(), f"draws of each mask, of 64: {chosen.sum(1).tolist()}"


def test_masks_come_in_turn_and_a_resumed_run_goes_on() -> None:
    made.takes_its_masks_in_turn(ensemble(), normal(6, (4,), rng(3)))
    model, x = ensemble().train(), normal(6, (4,), rng(3))
    for _ in range(2):
        model.log_prob(x)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    resumed = ensemble(generator=rng(9)).train()
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    copied = copy.deepcopy(model)
    for _ in range(6):
        expected = model.log_prob(x)
        assert torch.equal(resumed.log_prob(x), expected)
        assert torch.equal(copied.log_prob(x), expected)


def test_training_steps_and_other_devices() -> None:
    """Two calls before one backward pass; float32 leaves the counter whole; nothing is left on the CPU."""
    model, x = ensemble().train().float(), normal(6, (4,), rng(3)).float()
    (model.log_prob(x) + model.log_prob(x)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.turn.tolist() == [2]
    modules.runs_on_meta(lambda m, x, c: (m.log_prob(x),), model, x)
    single = MADE(3, hidden=(8,)).train()
    single.log_prob(torch.zeros(2, 3))
    assert single.turn.tolist() == [0], "one mask needs no turns"


STATES = masses.states((3,), bins=2)
MASSES = torch.tensor([0.30, 0.02, 0.04, 0.10, 0.02, 0.12, 0.05, 0.35], dtype=torch.float64)
LEARNER = {"conditional": "bernoulli", "order": "random", "masks": 6, "hidden": (32, 32), "activation": "relu"}


def test_every_order_learns_the_same_law() -> None:
    """With one mask in turn a step, each of six comes within 0.005 nat of a law of three dependent bits."""
    made.every_order_learns(build(3, **LEARNER), STATES, MASSES, steps=200, tolerance=0.005)


def test_events_of_several_dimensions() -> None:
    flat, shaped = build(6), build((3, 1, 2))
    x = normal(5, (3, 1, 2), rng(3))
    assert torch.equal(shaped.log_prob(x), flat.log_prob(x.flatten(1)))
    assert shaped.conditional_log_prob(x).shape == x.shape
    assert torch.equal(shaped.sample((5,), generator=rng(4)).flatten(1), flat.sample((5,), generator=rng(4)))


def test_masks_make_context_matter_everywhere() -> None:
    model, x = ensemble(context_features=2), normal(6, (4,), rng(3))
    c = normal(6, (2,), rng(7)).requires_grad_()
    for mask in range(5):
        for each in model.conditional_log_prob(x, c, mask=mask).sum(0):
            assert (torch.autograd.grad(each, c, retain_graph=True)[0] != 0).all()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"masks": 3}, "masks=3 are all the same unless order or hidden_degrees is random"),
        ({"masks": 3, "order": torch.tensor(ORDER)}, "masks=3 are all the same"),
        ({"conditional": "mixture", "components": 0}, "1 component or more, but components is 0"),
        ({"conditional": "mixture", "log_scale_bound": 0.0}, "log_scale_bound must be positive"),
        ({"log_scale_bound": -1.0}, "log_scale_bound must be positive"),
        ({"hidden": (2,)}, "needs a width of 3 or more"),
    ],
)
def test_wrong_settings_are_named(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**keywords)


def test_an_unknown_conditional_is_refused() -> None:
    with pytest.raises(ValueError, match="conditional must be gaussian, mixture or bernoulli, but is 'cauchy'"):
        inspect.unwrap(_conditional)("cauchy", components=1, log_scale_bound=1.0)


@pytest.mark.parametrize(
    "law", [GaussianConditional(log_scale_bound=3.0), MixtureConditional(components=3, log_scale_bound=3.0)]
)
def test_real_laws_integrate_to_one_and_are_drawn(law: GaussianConditional | MixtureConditional) -> None:
    """Against the midpoint rule and in the first two moments."""
    theta = normal(1, (1, law.parameters_per_value), rng(3))
    x = torch.linspace(-200, 200, 400_001, dtype=torch.float64)[:, None]
    mass = law.log_prob(x, theta.expand(len(x), -1, -1)).exp()[:, 0] * 1e-3
    assert mass.sum().item() == pytest.approx(1, abs=1e-9)
    draws = law.sample(theta.expand(20_000, -1, -1), generator=rng(4))
    mean, square = (mass @ x[:, 0]).item(), (mass @ x[:, 0].square()).item()
    assert draws.mean().item() == pytest.approx(mean, abs=5 * draws.std().item() / 20_000**0.5)
    assert draws.square().mean().item() == pytest.approx(square, abs=5 * draws.square().std().item() / 20_000**0.5)


def test_components_share_the_mass_by_their_weights() -> None:
    """Shares of three far normals: 1/6, 2/3 and 1/6 at θ = 0, here times 1, 1/2 and 3."""
    law = MixtureConditional(components=3, log_scale_bound=3.0)
    theta = torch.tensor([0.0, -math.log(2), math.log(3), -50.0, 0.0, 50.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    x = law.sample(theta.expand(20_000, 1, 9), generator=rng(4))[:, 0]
    shares = torch.tensor([(x < -25).double().mean(), (x.abs() < 25).double().mean(), (x > 25).double().mean()])
    assert ((shares - torch.tensor([1, 2, 3]) / 6).abs() < 5 * 0.5 / 20_000**0.5).all()


def test_a_fresh_model_is_the_standard_normal_or_fair_coins() -> None:
    x = normal(50, (4,), rng(3)).float()
    for conditional, tolerance in (("gaussian", 1e-5), ("mixture", 1e-4)):
        found = MADE(4, conditional=conditional).log_prob(x)
        torch.testing.assert_close(found, StandardNormal(4).log_prob(x), rtol=tolerance, atol=tolerance)
    coins = MADE(4, conditional="bernoulli", hidden=(8,)).log_prob((x > 0).float())
    torch.testing.assert_close(coins, torch.full((50,), -4 * math.log(2)))


@pytest.mark.parametrize("context_features", [0, 2])
def test_autoregressive_mlp_by_hand(context_features: int) -> None:
    """Without a hidden layer: softmax regressions on the values before, as multiples of 2/(K-1) from -1."""
    model = perturb(seeded(lambda: AutoregressiveMLP(3, bins=4, hidden=(), context_features=context_features)), rng(1))
    x = torch.randint(4, (20, 3), generator=rng(3)).double()
    c = normal(20, (context_features,), rng(4))
    W, b = (p.detach() for p in model.network.linears[0].parameters())
    W, b, u = W.unflatten(0, (4, 3)), b.unflatten(0, (4, 3)), x / 1.5 - 1
    expected = torch.zeros(20, dtype=torch.float64)
    for d in range(3):
        logits = b[:, d] + u[:, :d] @ W[:, d, :d].T
        expected += Categorical(logits=logits).log_prob(x[:, d])
    if context_features:
        assert model.log_prob(x, c).isfinite().all()
    else:
        torch.testing.assert_close(model.log_prob(x), expected, rtol=1e-12, atol=1e-12)


def test_autoregressive_mlp_reads_pixel_by_pixel() -> None:
    """The channels of a pixel in turn, then the next pixel."""
    model = perturb(seeded(lambda: AutoregressiveMLP((2, 1, 2), bins=4, hidden=(8,), activation="tanh")), rng(1))
    made.reads_in_order(model.network, normal(1, (4,), rng(3)), order=[0, 2, 1, 3])
    with pytest.raises(ValueError, match=r"vectors or \(channels, height, width\), but event_shape is \(2, 2\)"):
        AutoregressiveMLP((2, 2))


def test_draws_do_not_depend_on_training() -> None:
    """Neither dropout nor the turn of a mask reaches them."""
    model = ensemble(dropout=0.5)
    expected = model.sample((5,), generator=rng(4))
    assert torch.equal(model.train().sample((5,), generator=rng(4)), expected)
    assert model.turn.tolist() == [0]
    densities.sample_is_clean(model, generator=lambda: rng(5))
