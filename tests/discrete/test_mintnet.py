"""The Mint layer beside its formula as a sum, its inverse by iteration and by degrees, and the models made of it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from contracts.mint import (
    gradients_are_those_of_the_inverse_function,
    inverts,
    jacobian_is_triangular,
)
from helpers import normal, perturb, rng, seeded
from torch import Tensor
from torch.nn import functional as F

from discrete import ActNorm, Bijection, Flow, MaskedConvolution, MintNet, Squeeze
from discrete.bijections.mintnet import places

LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "one": (1, {}),
    "vector": (6, {}),
    "vector-reversed-tanh-context": (5, {"order": "reversed", "activation": "tanh", "context_features": 2}),
    "gray": ((1, 4, 5), {}),
    "gray-reversed": ((1, 5, 3), {"order": "reversed", "kernel": 5}),
    "pixels": ((3, 3, 4), {"scan": "pixels"}),
    "pixels-reversed-context": ((3, 3, 2), {"scan": "pixels", "order": "reversed", "context_features": 2}),
    "channels": ((3, 3, 4), {"scan": "channels", "activation": "tanh"}),
    "channels-reversed": ((4, 3, 2), {"scan": "channels", "order": "reversed"}),
}
NAMES = pytest.mark.parametrize("name", LAYERS)


def made(name: str, **keywords: Any) -> MaskedConvolution:
    shape, options = LAYERS[name]
    return perturb(seeded(partial(MaskedConvolution, shape, **{"filters": 4, **options, **keywords})), rng(1))


def draw(layer: Bijection, rows: int = 3, seed: int = 2) -> tuple[Tensor, Tensor | None]:
    generator = rng(seed)
    x = normal(rows, tuple(layer.event_shape), generator)
    return x, normal(rows, (2,), generator) if getattr(layer, "context_features", 0) else None


@NAMES
def test_jacobian(name: str) -> None:
    layer = made(name)
    jacobian_is_triangular(layer, *draw(layer))


@pytest.mark.parametrize("activation", ["elu", "tanh"])
def test_the_sum_of_the_paper(activation: str) -> None:
    """t ⊙ x + Σᵢ W³ᵢ h(Σⱼ W²ᵢⱼ h(W¹ⱼ x + b¹ⱼ) + b²ᵢ) + b³ with n × n matrices, each lower triangular."""
    K, n = 3, 4
    layer = perturb(seeded(partial(MaskedConvolution, n, filters=K, activation=activation)), rng(1))
    mint = layer.mint()
    W1, W2, W3 = (W[..., 0, 0] for W in mint.W)
    b1, b2, b3 = mint.b
    h = getattr(F, activation)
    x, _ = draw(layer)
    total = mint.t[:, 0, 0] * x + b3
    for i in range(K):
        inner = b2[i::K]
        for j in range(K):
            assert torch.equal(W2[i::K, j::K], W2[i::K, j::K].tril())
            inner = inner + h(x @ W1[j::K].T + b1[j::K]) @ W2[i::K, j::K].T
        total = total + h(inner) @ W3[:, i::K].T
    torch.testing.assert_close(layer(x)[0], total, rtol=1e-12, atol=1e-12)


@NAMES
def test_products_on_the_diagonal(name: str) -> None:
    """d³ᵢ d²ᵢⱼ d¹ⱼ ≥ 0 for all i, j whatever the parameters, by factors of either sign."""
    layer = made(name)
    d1, d2, d3 = layer.mint(draw(layer)[1]).diagonals()
    assert (d3.mT * d2 * d1.mT > 0).all()
    for d in (d1, d2, d3):
        assert (d > 0).any()
        assert (d < 0).any()


def test_convex_activations_make_concave_maps_too() -> None:
    """Of one value z - t x is neither convex nor concave in x."""
    layer = made("one", filters=8)
    x = torch.linspace(-6, 6, 201, dtype=torch.float64)[:, None]
    curvature = layer(x)[0].diff(n=2, dim=0)
    assert curvature.max() > 1e-3
    assert curvature.min() < -1e-3


def test_places() -> None:
    """Raster order in a channel; channels of one pixel in turn, or whole channels in turn; reversed the negative."""
    before = [[True, True, True], [True, False, False], [False, False, False]]
    everything, nothing = [[True] * 3] * 3, [[False] * 3] * 3
    here = [row.copy() for row in before]
    here[1][1] = True
    of = partial(places, 2, 3, order="raster")
    assert (of(scan="pixels") < 0).tolist() == [[before, before], [here, before]]
    assert (of(scan="channels") < 0).tolist() == [[before, nothing], [everything, before]]
    for scan in ("pixels", "channels"):
        assert torch.equal(places(2, 3, order="reversed", scan=scan), -of(scan=scan))


@NAMES
def test_iteration_and_degrees_agree(name: str) -> None:
    """One iteration leaves all to the solution by degrees, which counts as one more."""
    layer = made(name)
    x, context = draw(layer)
    z, log_det = layer(x, context)
    by_iteration = layer.invert(z, context)
    one = made(name, iterations=1)
    by_degrees = one.invert(z, context)
    assert (by_iteration.iterations <= 60).all()
    assert (by_degrees.iterations == 2).all()
    for found in (by_iteration, by_degrees):
        torch.testing.assert_close(found.x, x, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(found.log_det, -log_det, rtol=1e-11, atol=1e-11)
        assert (found.residual < 1e-12).all()


@pytest.mark.parametrize("iterations", [1, 100])
@NAMES
def test_gradients(name: str, iterations: int) -> None:
    """Also where both directions are solved by degrees."""
    layer = made(name, iterations=iterations)
    gradients_are_those_of_the_inverse_function(layer, *draw(layer))


@pytest.mark.parametrize("name", ["vector-reversed-tanh-context", "pixels"])
def test_second_derivatives(name: str) -> None:
    layer = made(name, activation="tanh", filters=2)
    z, context = draw(layer, rows=1)
    inputs = [t.requires_grad_() for t in (z, context) if t is not None]

    def inverse(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return layer.inverse(*inputs)

    assert torch.autograd.gradgradcheck(inverse, inputs, fast_mode=True)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-4, 1e-9])
def test_the_residual_is_the_truth(tolerance: float) -> None:
    layer = made("pixels", tolerance=tolerance)
    x, _ = draw(layer, rows=9)
    z, _ = layer(x)
    found = layer.invert(z)
    torch.testing.assert_close(found.residual, (layer(found.x)[0] - z).flatten(1).abs().amax(1))
    assert (found.residual <= tolerance).all()
    assert (found.residual > 0).all()


def test_rows_rest_on_their_own() -> None:
    """A row comes out the same, by the same iterations, beside rows that need more or never rest."""
    layer = made("pixels", tolerance=1e-6, iterations=15)
    x, _ = draw(layer, rows=6)
    z, _ = layer(x * torch.tensor([1e-6, 1.0, 9.0, 1e-3, 0.1, 30.0], dtype=torch.float64)[:, None, None, None])
    together = layer.invert(z)
    assert len(set(together.iterations.tolist())) > 2
    assert 16 in together.iterations
    for i in range(len(z)):
        for a, b in zip(layer.invert(z[i : i + 1]), together, strict=True):
            torch.testing.assert_close(a[0], b[i], rtol=1e-12, atol=1e-12)


def steep(weight: float, **keywords: Any) -> MaskedConvolution:
    """z = t x + w tanh(w tanh(w x)), t = 0.07: flat but for a step at 0, about which undamped steps go to and fro."""
    layer = MaskedConvolution(1, filters=1, activation="tanh", **keywords).double().eval()
    with torch.no_grad():
        for kernel in layer.kernels:
            kernel.weight.fill_(weight)
        layer.log_t.fill_(-4.0)
    return layer


STEEP = torch.tensor([[0.01], [-0.002], [1.0], [-0.3], [0.05], [0.1]], dtype=torch.float64)


def test_steps_that_overshoot_are_shortened() -> None:
    """Neither full steps nor those of the paper's code find every root; shortened at each overshoot they do."""
    layer = steep(3.0)
    z, _ = layer(STEEP)
    with torch.no_grad():
        mint = layer.mint()
        for alpha in (1.0, 1 / 3.5):
            guess = z[..., None, None] / mint.t
            for _ in range(100):
                image, slope = mint.evaluate(guess)
                guess = guess + alpha * (z[..., None, None] - image) / slope
            assert (guess.flatten() - STEEP[:, 0]).abs().max() > 1
    inverts(layer, STEEP, invert=MaskedConvolution.invert, tolerance=1e-12)
    assert (layer.invert(z).iterations <= 100).all()


def test_what_does_not_rest_is_solved_by_degrees() -> None:
    layer = steep(8.0, iterations=20)
    inverts(layer, STEEP, invert=MaskedConvolution.invert, tolerance=1e-12)
    iterations = layer.invert(layer(STEEP)[0]).iterations
    assert 21 in iterations
    assert (iterations < 21).any()


def test_a_row_may_rest_at_the_last_iteration() -> None:
    layer = made("pixels")
    z, _ = layer(draw(layer, rows=6)[0])
    found = layer.invert(z)
    limited = made("pixels", iterations=int(found.iterations.max())).invert(z)
    for a, b in zip(limited, found, strict=True):
        assert torch.equal(a, b)


def test_degrees_end_where_newton_alone_does_not() -> None:
    layer = steep(8.0, iterations=1)
    x = torch.tensor([[0.01], [-0.002], [1.0], [50.0], [-0.3]], dtype=torch.float64)
    inverts(layer, x, invert=MaskedConvolution.invert, tolerance=1e-12)


def test_values_that_wait_may_overflow() -> None:
    """Large weights make what lies behind infinite at first; the solution is there all the same."""
    layer = perturb(MaskedConvolution(12, filters=2), rng(3), std=4.0).float()
    x = normal(4, (12,), rng(4)).float()
    z, _ = layer(x)
    found = layer.invert(z)
    scale = 1 + z.abs().amax(1)
    assert found.x.isfinite().all()
    assert (found.residual <= 1e-4 * scale).all()


def test_a_row_that_is_no_number_stays_alone() -> None:
    layer = made("gray", iterations=30)
    x, _ = draw(layer)
    z, _ = layer(x)
    spoilt = z.clone()
    spoilt[1] = torch.nan
    found = layer.invert(spoilt).x
    assert found[1].isnan().any()
    torch.testing.assert_close(found[[0, 2]], x[[0, 2]])


def test_no_graph_of_iterations_is_kept() -> None:
    """Nodes behind the inverse are as many for 3 features as for 12."""

    def nodes(features: int) -> int:
        layer = perturb(MaskedConvolution(features, filters=4), rng(8))
        x, _ = layer.inverse(normal(3, (features,), rng(9)).requires_grad_())
        seen, stack = set(), [x.grad_fn]
        while stack:
            node = stack.pop()
            if node is not None and node not in seen:
                seen.add(node)
                stack += [parent for parent, _ in node.next_functions]
        return len(seen)

    assert nodes(3) == nodes(12) < 15


def layers_of(flow: Flow) -> list[Bijection]:
    return list(flow.bijection.bijections)


def test_mnist_shapes() -> None:
    """28×28 goes 14×14 and 7×7 with four times the channels and a quarter of the filters; orders in turn."""
    flow = MintNet((1, 28, 28), layers=2, filters=45)
    mints = [layer for layer in layers_of(flow) if isinstance(layer, MaskedConvolution)]
    shapes = [((1, 28, 28), 45), ((4, 14, 14), 11), ((16, 7, 7), 2)]
    assert [(tuple(m.event_shape), len(m.kernels[0].weight) // m.event_shape[0]) for m in mints] == [
        shape for shape in shapes for _ in range(4)
    ]
    assert [m.order for m in mints] == ["raster", "reversed"] * 6
    kinds = [type(layer) for layer in layers_of(flow)]
    pair = [ActNorm, MaskedConvolution, MaskedConvolution]
    assert kinds == [*pair, *pair, Squeeze, *pair, *pair, Squeeze, *pair, *pair]
    assert flow.latent_shape == (16, 7, 7)


def test_cifar_shapes() -> None:
    flow = MintNet((3, 32, 32), layers=1, filters=4)
    assert flow.latent_shape == (48, 8, 8)
    assert MintNet((3, 6, 6), layers=1, levels=3, filters=4).latent_shape == (12, 3, 3)


@pytest.mark.parametrize("shape", [5, (1, 4, 4)])
def test_every_value_reaches_every_other(shape: Any) -> None:
    """A pair of orders mixes what one triangle leaves apart."""
    flow = perturb(seeded(partial(MintNet, shape, layers=1, filters=4, scan="pixels")), rng(1))
    x = normal(1, tuple(flow.event_shape), rng(2))[0]
    J = torch.autograd.functional.jacobian(lambda row: flow.encode(row).flatten(), x).flatten(1)
    assert (J != 0).all()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (partial(MaskedConvolution, (2, 3)), r"vectors or \(channels, height, width\).*\(2, 3\)"),
        (partial(MaskedConvolution, 2, filters=0), "filters=0"),
        (partial(MaskedConvolution, (1, 4, 4), kernel=2), "kernel=2"),
        (partial(MaskedConvolution, 2, log_scale_bound=0.0), "log_scale_bound=0.0"),
        (partial(MaskedConvolution, 2, step=2.0), "step within"),
        (partial(MaskedConvolution, 2, tolerance=-1.0), "tolerance of 0 or more"),
        (partial(MaskedConvolution, 2, iterations=0), "1 iteration or more"),
        (partial(MintNet, 2, layers=0), "layers=0"),
        (partial(MintNet, 2, levels=2), "levels=2"),
    ],
)
def test_what_is_refused(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()


def test_context_is_asked_for() -> None:
    with pytest.raises(ValueError, match="context"):
        MaskedConvolution(2, context_features=2)(torch.zeros(1, 2))
