import math
from functools import partial

import pytest
import torch
from contracts import residual
from helpers import normal, perturb, rng, seeded
from torch import Tensor

from core.nets.lipschitz import ACTIVATIONS, LipschitzNet, activate
from core.nets.spectral import SpectralLayer

LAYERS = {
    "matrix-small": partial(SpectralLayer, (5,), 7),
    "matrix-one": partial(SpectralLayer, (1,), 1),
    "matrix-large": partial(SpectralLayer, (24,), 30),
    "convolution-1": partial(SpectralLayer, (24, 2, 3), 20),
    "convolution-3": partial(SpectralLayer, (3, 5, 4), 6, kernel=3),
    "convolution-3-narrow": partial(SpectralLayer, (1, 6, 6), 2, kernel=3),
    "convolution-5-wide": partial(SpectralLayer, (4, 7, 7), 9, kernel=5),
    "convolution-3-pixel": partial(SpectralLayer, (2, 1, 1), 2, kernel=3),
}
NAMES = pytest.mark.parametrize("name", LAYERS)
NETS = {
    "vector": partial(LipschitzNet, 3, hidden=(8, 6)),
    "vector-one": partial(LipschitzNet, 1, hidden=(4,)),
    "vector-linear": partial(LipschitzNet, 4, hidden=()),
    "image": partial(LipschitzNet, (2, 3, 4), hidden=(5, 6)),
    "image-linear": partial(LipschitzNet, (1, 3, 3), hidden=()),
}


def shape_of(layer: SpectralLayer) -> tuple[int, ...]:
    return (1, *layer.v.shape[1:]) if layer.v.ndim == 4 else (layer.weight.shape[1],)


def dense(layer: SpectralLayer, weight: Tensor) -> Tensor:
    """The layer's linear map as a matrix."""
    if layer.is_matrix:
        return weight.flatten(1)
    _, *shape = layer.v.shape
    units = torch.eye(math.prod(shape), dtype=weight.dtype).reshape(-1, *shape)
    return torch.nn.functional.conv2d(units, weight, padding=weight.shape[-1] // 2).flatten(1).T


def scaled(name: str, factor: float, dtype: torch.dtype = torch.float64) -> SpectralLayer:
    layer = perturb(seeded(partial(LAYERS[name], bound=0.7)), rng(1), std=1.0)
    with torch.no_grad():
        layer.weight *= factor
    return layer.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [20.0, 1e25])
@NAMES
def test_norm_is_at_most_the_bound(name: str, factor: float, dtype: torch.dtype) -> None:
    """By SVD of the dense map, also where power steps without normalization leave float32."""
    layer = scaled(name, factor, dtype)
    norm = torch.linalg.matrix_norm(dense(layer, layer.normalized().detach().double()), 2).item()
    assert norm == pytest.approx(0.7, rel=1e-6 if layer.is_matrix else 1e-3)
    assert layer.normalized().dtype == dtype


@NAMES
def test_small_weights_stay(name: str) -> None:
    layer = scaled(name, 1e-3)
    assert torch.equal(layer.normalized(), layer.weight)


def test_nineteen_becomes_the_bound() -> None:
    """A weight of spectral norm 19 and a bound of 0.8."""
    U, S, V = torch.linalg.svd(normal(30, (30,), rng()).float())
    layer = SpectralLayer((30,), 30, bound=0.8)
    for training, calls in ((False, 1), (True, 300)):
        with torch.no_grad():
            layer.weight.copy_(U @ torch.diag(S * 19 / S[0]) @ V)
        found = [layer.train(training).normalized() for _ in range(calls)][-1]
        assert torch.linalg.matrix_norm(found, 2).item() == pytest.approx(0.8, rel=1e-3)


@NAMES
def test_norm_and_its_gradient(name: str) -> None:
    """σ and ∂σ/∂W are those of the dense map; W̃ carries both."""
    layer = scaled(name, 1.0)
    weight = layer.weight.detach().clone().requires_grad_()
    expected = torch.linalg.matrix_norm(dense(layer, weight), 2)
    (gradient,) = torch.autograd.grad(expected, weight)
    sigma = layer.spectral_norm()
    torch.testing.assert_close(sigma, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.autograd.grad(sigma, layer.weight)[0], gradient, rtol=0, atol=2e-3)


@NAMES
def test_only_training_moves_the_buffer(name: str) -> None:
    layer = scaled(name, 20.0)
    before = layer.v.clone()
    first, second = layer.normalized(), layer.normalized()
    assert torch.equal(first, second)
    assert torch.equal(layer.v, before)
    layer.train()
    for _ in range(100):
        last = layer.normalized()
    moves = not layer.is_matrix or min(layer.weight.flatten(1).shape) > 16
    assert moves != torch.equal(layer.v, before)
    torch.testing.assert_close(last, first, rtol=5e-3, atol=0)


@NAMES
def test_zero_weights_are_no_trap(name: str) -> None:
    """Zeros stay zeros, without NaN in value or gradient, and what comes after them is bounded again."""
    layer = scaled(name, 0.0)
    for mode in (True, False):
        found = layer.train(mode).normalized()
        assert torch.count_nonzero(found) == 0
        assert torch.autograd.grad(found.sum(), layer.weight)[0].isfinite().all()
    with torch.no_grad():
        layer.weight.copy_(20 * normal(1, layer.weight.shape, rng())[0])
    assert torch.linalg.matrix_norm(dense(layer, layer.normalized()), 2).item() <= 0.7 * (1 + 1e-3)


def test_bounds_are_kept_by_the_contract() -> None:
    """The contract of the teeth, on the layer itself."""
    layer = SpectralLayer((30,), 20, bound=0.8).eval()

    def normalize(weight: Tensor) -> Tensor:
        with torch.no_grad():
            layer.weight.copy_(weight)
        return layer.normalized().detach()

    weights = [scale * normal(20, (30,), rng(3)).float() for scale in (1e-3, 1.0, 20.0, 1e18)]
    residual.bounds_the_norm(normalize, bound=0.8, weights=weights)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes(name: str) -> None:
    """a' is autograd's; its norm is 1 or less for every β, and just so much; a'' is not 0 where it is largest."""
    h = torch.linspace(-12, 12, 9601, dtype=torch.float64)[:, None].requires_grad_()
    for beta in (0.1, 1.0, 3.0):
        value, slope = activate(name, h, torch.tensor(beta, dtype=torch.float64))
        columns = [torch.autograd.grad(column.sum(), h, create_graph=True)[0] for column in value.T]
        torch.testing.assert_close(slope, torch.cat(columns, 1))
        norm = torch.linalg.vector_norm(slope, dim=1)
        assert norm.max() <= 1
        if beta == 1.0:
            assert norm.max() > 0.999
            (curvature,) = torch.autograd.grad(slope[:, 0].sum(), h)
            near = (slope[:, 0] > 0.9) & (slope[:, 0] < 0.999)
            assert (curvature[near].abs() > 1e-3).any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", NETS)
def test_jacobian(name: str, activation: str) -> None:
    """J, J u and Jᵀ v are autograd's, and ‖J‖₂ ≤ L with weights 20 times as large as they may be."""
    net = perturb(seeded(partial(NETS[name], activation=activation, lipschitz=0.8)), rng(1), std=1.0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 20
        for layer in net.layers:
            layer.bias *= 0.01
    x, u = normal(4, net.event_shape, rng(2)), normal(3, (4, *net.event_shape), rng(3))
    image, J = net.bind().linearize(x)
    size = net.event_shape.numel()
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda r: net(r[None])[0], row) for row in x])
    jacobians = jacobians.reshape(4, size, size)
    torch.testing.assert_close(image, net(x))
    torch.testing.assert_close(J.dense(x), jacobians)
    pushed, pulled = (torch.einsum(f"{w},krj->kri", jacobians, u.flatten(2)) for w in ("rij", "rji"))
    torch.testing.assert_close(J.push(u).flatten(2), pushed)
    torch.testing.assert_close(J.pull(u).flatten(2), pulled)
    norm = torch.linalg.matrix_norm(jacobians, 2).max().item()
    assert norm <= 0.8 * (1 + 1e-3)
    if not len(net.layers) > 1:
        assert norm == pytest.approx(0.8, rel=1e-3)


@pytest.mark.parametrize("shape", [3, (2, 3, 2)])
def test_context_is_free_and_g_stays_a_contraction(shape: int | tuple[int, ...]) -> None:
    net = perturb(seeded(partial(LipschitzNet, shape, hidden=(6,), context_features=2, lipschitz=0.5)), rng(1))
    x, context = normal(4, net.event_shape, rng(2)), normal(4, (2,), rng(3))
    assert (net(x, context) - net(x, context + 1)).abs().flatten(1).amax(1).min() > 1e-6
    moved = net(x + 0.1, context) - net(x, context)
    assert (moved.flatten(1).norm(dim=1) <= 0.5 * 0.1 * math.sqrt(net.event_shape.numel()) + 1e-12).all()
    with pytest.raises(ValueError, match="context_features=2"):
        net(x)


def test_kernels_of_images_are_three_one_three() -> None:
    """Chen et al., 2019, appendix E: 3×3 convolutions first and last, 1×1 between."""
    net = LipschitzNet((2, 4, 4), hidden=(5, 6, 7))
    assert [layer.weight.shape[-1] for layer in net.layers] == [3, 1, 1, 3]


def test_half_precision_is_normalized_in_single() -> None:
    layer = scaled("matrix-large", 20.0, torch.bfloat16)
    norm = torch.linalg.matrix_norm(layer.normalized().detach().double(), 2).item()
    assert layer.normalized().dtype == torch.bfloat16
    assert norm == pytest.approx(0.7, rel=1e-2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(SpectralLayer, (3,), 3, bound=0.0), "positive bound"),
        (partial(SpectralLayer, (3, 4, 4), 3, kernel=2), "odd kernel"),
        (partial(LipschitzNet, (3, 4)), "takes a vector or"),
    ],
)
def test_what_cannot_be_is_refused(build: partial, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
