"""The inverse of an autoregressive map: every mode against a loop of D passes, its report and its gradients."""

from typing import Any

import pytest
import torch
from contracts.inversions import (
    gradients_are_those_of_the_loop,
    inverts,
    second_derivatives_are_those_of_the_loop,
)
from helpers import normal, perturb, rng, seeded
from torch import Tensor, nn

from discrete import MaskedAutoregressive, invert_autoregressive
from discrete.bijections.autoregressive_inverse import _iterative_solve
from discrete.bijections.transformers import AffineTransformer

MODES = pytest.mark.parametrize("mode", ["incremental", "jacobi", "gauss_seidel", "sequential"])
LAYERS: dict[str, dict[str, Any]] = {
    "plain": {"hidden": (16, 16)},
    "random-resnet-context": {"hidden": (12, 12), "conditioner": "resnet", "order": "random", "context_features": 2},
    "direct-random-degrees": {"hidden": (9,), "direct": True, "hidden_degrees": "random", "activation": "tanh"},
    "linear-reversed": {"hidden": (), "order": "reversed"},
    "spline": {"hidden": (9, 9), "transformer": "spline", "bins": 4},
}


def made(name: str, features: int = 5) -> MaskedAutoregressive:
    return perturb(seeded(lambda: MaskedAutoregressive(features, generator=rng(1), **LAYERS[name])), rng(2))


def context_of(layer: MaskedAutoregressive, rows: int) -> Tensor | None:
    return normal(rows, (2,), rng(3)) if layer.conditioner.context_features else None


@MODES
@pytest.mark.parametrize("name", LAYERS)
def test_inverts(name: str, mode: str) -> None:
    layer = made(name)
    inverts(layer, normal(7, (5,), rng(4)), context_of(layer, 7), mode=mode)


@MODES
@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name: str, mode: str) -> None:
    layer = made(name)
    gradients_are_those_of_the_loop(layer, normal(3, (5,), rng(4)), context_of(layer, 3), mode=mode)


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives(name: str) -> None:
    layer = made(name, features=3)
    second_derivatives_are_those_of_the_loop(layer, normal(2, (3,), rng(4)), context_of(layer, 2), mode="incremental")


def chain(features: int, rho: float) -> MaskedAutoregressive:
    """z_d = (x_d - ρ x_{d-1}) / √(1 - ρ²): a Gaussian AR(1), in which every feature waits for the one before."""
    layer = MaskedAutoregressive(features, hidden=()).double().eval()
    (linear,) = layer.conditioner.linears
    scale = (1 - rho**2) ** -0.5
    with torch.no_grad():
        linear.bias[:features] = 3 * torch.atanh(torch.tensor(scale).log() / 3)
        for d in range(1, features):
            linear.weight[features + d, d - 1] = -rho * scale
    return layer


def test_passes_follow_the_dependence() -> None:
    """Jacobi stops where dependence is weak, and takes all passes along a chain; the others do what they say."""
    z = normal(4, (16,), rng(5))
    weak, strong = chain(16, 0.01), chain(16, 0.9)

    def passes(layer: MaskedAutoregressive, mode: str, tolerance: float = 1e-12) -> list[int]:
        return invert_autoregressive(
            layer.conditioner, layer.transformer, z, mode=mode, tolerance=tolerance
        ).iterations.tolist()

    assert all(4 <= n <= 8 for n in passes(weak, "jacobi"))
    assert passes(strong, "jacobi") == passes(strong, "gauss_seidel") == [16] * 4
    assert all(n <= 14 for n in passes(weak, "gauss_seidel"))
    assert passes(weak, "sequential") == [16] * 4
    assert passes(strong, "incremental") == [1] * 4


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
def test_the_residual_is_the_truth(tolerance: float) -> None:
    """It is |f(x) - z| where the iteration stopped, and below the tolerance with fewer than all passes."""
    layer = chain(16, 0.2)
    z = normal(9, (16,), rng(6))
    inversion = invert_autoregressive(layer.conditioner, layer.transformer, z, mode="jacobi", tolerance=tolerance)
    image, log_det = layer(inversion.x)
    torch.testing.assert_close(inversion.residual, (image - z).abs().amax(1))
    torch.testing.assert_close(inversion.log_det, -log_det)
    assert (inversion.residual <= tolerance).all()
    assert (inversion.residual > 0).all()
    assert (inversion.iterations < 16).all()


def test_rows_rest_on_their_own() -> None:
    """A row comes out the same bits and passes beside rows that need more."""
    layer = made("plain")
    z = normal(6, (5,), rng(7)) * torch.tensor([1e-6, 1.0, 5.0, 1e-3, 0.1, 10.0], dtype=torch.float64)[:, None]

    def inverted(z: Tensor) -> tuple[Tensor, ...]:
        return invert_autoregressive(layer.conditioner, layer.transformer, z, mode="jacobi", tolerance=1e-4)

    together = inverted(z)
    assert len(set(together[2].tolist())) > 1
    for i in range(len(z)):
        for a, b in zip(inverted(z[i : i + 1]), together, strict=True):
            torch.testing.assert_close(a[0], b[i], rtol=1e-13, atol=1e-13)


class Steep(nn.Module):
    """t_d = -sinh 10 x_{d-1}: moderate on the way, infinite a little beside it."""

    degrees = torch.tensor([1, 2, 3, 4])

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        before = x @ torch.eye(4, dtype=x.dtype).roll(1, 1).triu(1)
        return torch.stack([torch.zeros_like(x), -torch.sinh(10 * before)], 2)


def test_a_start_that_overflows_is_forgotten() -> None:
    x = torch.tensor([[0.5, -0.4, 0.3, 0.5]], dtype=torch.float64)
    transformer = AffineTransformer()
    z, _ = transformer.forward(x, Steep()(x, None))
    assert not Steep()(z, None).isfinite().all()
    inversion = invert_autoregressive(Steep(), transformer, z, mode="jacobi")
    torch.testing.assert_close(inversion.x, x, rtol=1e-6, atol=1e-6)


def test_no_graph_of_passes_is_kept() -> None:
    """The number of autograd nodes behind the inverse is the same for 4 and for 32 features."""

    def nodes(features: int) -> int:
        layer = perturb(MaskedAutoregressive(features, hidden=(32,)), rng(8))
        x, _ = layer.inverse(normal(3, (features,), rng(9)).requires_grad_())
        seen, stack = set(), [x.grad_fn]
        while stack:
            node = stack.pop()
            if node is not None and node not in seen:
                seen.add(node)
                stack += [parent for parent, _ in node.next_functions]
        return len(seen)

    assert nodes(4) == nodes(32) < 15


@MODES
def test_dropout_is_off_in_the_inverse_and_on_again_behind_it(mode: str) -> None:
    layer = perturb(MaskedAutoregressive(5, hidden=(32,), dropout=0.5, inverse_mode=mode), rng(10))
    z = normal(6, (5,), rng(11))
    expected, _ = layer.inverse(z)
    layer.train()
    layer.conditioner.activation.eval()
    x, log_det = layer.inverse(z)
    torch.testing.assert_close(x, expected)
    x.sum().backward()
    modes = {name: module.training for name, module in layer.named_modules()}
    assert [name for name, training in modes.items() if not training] == ["conditioner.activation"]
    torch.testing.assert_close(log_det, -layer.eval()(x)[1])


class Foreign(nn.Module):
    """A conditioner of another make, two features a degree, without `sweep` and `solve_transposed`."""

    degrees = torch.tensor([1, 1, 2, 2, 3, 3])

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(12, 6))

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        mask = self.degrees.repeat_interleave(2)[:, None] > self.degrees
        return torch.tanh(x @ (self.weight * mask).T).unflatten(1, (6, 2))


@pytest.mark.parametrize("mode", ["jacobi", "gauss_seidel", "sequential"])
def test_another_conditioner(mode: str) -> None:
    network = Foreign().double()
    nn.init.normal_(network.weight, generator=rng(12))
    layer = made("plain", features=6)
    layer.conditioner, layer.transformer = network, AffineTransformer()
    z = normal(4, (6,), rng(13))
    inverts(layer, z, None, mode=mode)
    gradients_are_those_of_the_loop(layer, z, None, mode=mode)
    assert (invert_autoregressive(network, layer.transformer, z, mode=mode).iterations <= 3).all()


@MODES
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float, mode: str) -> None:
    """It is neither set to zero nor carried to the features before it or to other rows."""
    layer = made("plain")
    z = normal(3, (5,), rng(15))
    expected, _ = layer.inverse(z)
    z[1, 2] = bad
    x = invert_autoregressive(layer.conditioner, layer.transformer, z, mode=mode).x
    torch.testing.assert_close(x[[0, 2]], expected[[0, 2]])
    torch.testing.assert_close(x[1, :2], expected[1, :2])
    assert not x[1, 2].isfinite()


def test_the_default_tolerance_follows_the_size_of_a_row() -> None:
    """Rounding of values of a thousand is a thousand times that of values of one; features of no dependence rest."""
    layer = chain(8, 1e-9).float()
    z = 1000 * torch.randn(4, 8, generator=rng(16))
    assert (invert_autoregressive(layer.conditioner, layer.transformer, z, mode="jacobi").iterations <= 2).all()


def test_a_smaller_block_updates_fewer_features_in_vain() -> None:
    layer = chain(16, 0.5)
    z = normal(4, (16,), rng(17))

    def updates(block: int) -> int:
        arguments = (layer.conditioner, layer.transformer, z)
        found = invert_autoregressive(*arguments, mode="gauss_seidel", block=block, tolerance=1e-3)
        return int(found.iterations.sum())

    assert updates(1) == 4 * 16
    assert updates(4) != updates(16) < updates(1)


@pytest.mark.parametrize("mode", ["jacobi", "gauss_seidel"])
def test_a_layer_passes_its_tolerance_on(mode: str) -> None:
    z = normal(4, (16,), rng(18))

    def error(tolerance: float | None) -> float:
        layer = MaskedAutoregressive(16, hidden=(32,), inverse_mode=mode, tolerance=tolerance)
        x, _ = perturb(seeded(lambda: layer), rng(19), std=0.05).inverse(z)
        return (layer(x)[0] - z).abs().max().item()

    assert error(None) < 1e-12 < error(1e-2) <= 1e-2


def test_what_cannot_be_is_named() -> None:
    layer = made("plain")
    z = normal(2, (5,), rng(14))
    for wrong in ({"block": 0}, {"tolerance": -1.0}):
        with pytest.raises(ValueError, match="block 1 or more and tolerance 0 or more"):
            invert_autoregressive(layer.conditioner, layer.transformer, z, **wrong)
    with pytest.raises(ValueError, match="tolerance 0 or more"):
        MaskedAutoregressive(3, tolerance=-1.0)
    with pytest.raises(ValueError, match=r"z is torch\.float32, but .* torch\.float64"):
        layer.inverse(z.float())


def test_a_solve_rests_when_rounding_is_all_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a diagonal Jacobian the first pass finds v = g/s, of which g - s v leaves some last digits."""
    x, g = (normal(50, (4,), rng(seed)) for seed in (7, 8))
    assert (g - 3 * (g / 3)).any()
    x.requires_grad_()
    calls, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *given, **kw: calls.append(1) or grad(*given, **kw))
    found = _iterative_solve(3 * x, x, torch.full_like(g, 3.0), g, passes=4)
    torch.testing.assert_close(found, g / 3, rtol=1e-15, atol=0)
    assert len(calls) == 1
