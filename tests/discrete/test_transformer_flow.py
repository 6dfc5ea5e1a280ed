import math
from typing import Any

import pytest
import torch
from contracts import causal
from helpers import normal, perturb, rng, seeded
from torch import Tensor
from torch.distributions import Normal

from discrete import Inverse, PatchAutoregressive, TransformerFlow, invert_autoregressive

SMALL = {"depth": 1, "hidden": 8, "heads": 2}
SHAPE = (2, 4, 6)  # six patches of 2×2 pixels, eight values each
MODES = ["incremental", "sequential", "jacobi", "gauss_seidel"]


def layer(shape: int | tuple[int, ...] = SHAPE, patch: int = 2, *, std: float = 0.3, **keywords: Any) -> Any:
    return perturb(seeded(lambda: PatchAutoregressive(shape, patch=patch, **{**SMALL, **keywords})), rng(1), std=std)


def weak(bijection: PatchAutoregressive) -> PatchAutoregressive:
    """Patches that depend on one another weakly."""
    with torch.no_grad():
        bijection.conditioner.network.head[-1].weight.mul_(0.1)
    return bijection


def tokens(*, reverse: bool) -> Tensor:
    """Place of each value's patch, `SHAPE`, by the pixel that it belongs to."""
    _, height, width = SHAPE
    place = [[i // 2 * (width // 2) + j // 2 for j in range(width)] for i in range(height)]
    raster = torch.tensor(place).expand(SHAPE)
    return raster.max() - raster if reverse else raster


@pytest.mark.parametrize("order", ["raster", "reversed"])
def test_jacobian_is_block_triangular(order: str) -> None:
    causal.jacobian_is_block_triangular(
        layer(order=order), normal(1, SHAPE, rng(2)), token=tokens(reverse=order == "reversed")
    )


@pytest.mark.parametrize(("order", "places"), [("raster", [0, 0, 1, 1, 2, 2]), ("reversed", [2, 2, 1, 1, 0, 0])])
def test_jacobian_of_a_vector_is_block_triangular(order: str, places: list[int]) -> None:
    bijection = layer(6, order=order, context_features=3)
    x, context = normal(1, (6,), rng(2)), normal(1, (3,), rng(3))
    causal.jacobian_is_block_triangular(bijection, x, context, token=torch.tensor(places))
    causal.jacobian_is_block_triangular(Inverse(bijection), x, context, token=torch.tensor(places))


def test_the_first_patch_sees_the_context_and_nothing_else() -> None:
    bijection, x, c = layer(context_features=2), normal(2, SHAPE, rng(2)), normal(1, (2,), rng(3)).expand(2, 2)
    _, theta = bijection._to_tokens(x), bijection.conditioner(bijection._to_tokens(x), c)
    assert torch.equal(theta[0, :8], theta[1, :8])
    other = bijection.conditioner(bijection._to_tokens(x), c + 1)
    assert ((theta - other)[:, :8].abs() > 1e-6).all()


def test_log_det_is_a_sum_over_values() -> None:
    """With the same s = B tanh(a/B) everywhere it is D s, in nats."""
    bijection = layer(log_scale_bound=2.0)
    last, a = bijection.conditioner.network.head[-1], 0.7
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([a, -0.4]).repeat(8))
    x = normal(3, SHAPE, rng(2))
    z, log_det = bijection(x)
    s = 2 * math.tanh(a / 2)
    torch.testing.assert_close(z, x * math.exp(s) - 0.4)
    torch.testing.assert_close(log_det, torch.full((3,), 48 * s, dtype=torch.float64))
    torch.testing.assert_close(bijection.inverse(z)[1], -log_det)


def test_density_of_a_flow_of_constant_maps_is_a_normal() -> None:
    """Two blocks z = x e^s + t with s and t of their own: x is normal with known mean and scale."""
    flow = perturb(seeded(lambda: TransformerFlow(4, layers=2, **SMALL)), rng(1))
    s, t = torch.tensor([[0.3, -0.5], [0.4, 1.2]], dtype=torch.float64)
    with torch.no_grad():
        for block, a, b in zip(flow.bijection.bijections, 3 * torch.atanh(s / 3), t, strict=True):
            last = block.conditioner.network.head[-1]
            last.weight.zero_()
            last.bias.copy_(torch.stack([a, b]))
    x = normal(5, (4,), rng(2))
    law = Normal(-(t[0] * s[1].exp() + t[1]) * torch.exp(-s.sum()), torch.exp(-s.sum()))
    torch.testing.assert_close(flow.log_prob(x), law.log_prob(x).sum(1))


@pytest.mark.parametrize("order", ["raster", "reversed"])
def test_modes_agree(order: str) -> None:
    bijection, z = layer(order=order, context_features=2), normal(5, SHAPE, rng(2))
    context = normal(5, (2,), rng(3))
    for mode in MODES:
        x, log_det, iterations, residual = bijection.invert(z, context, mode=mode, block=2)
        with torch.no_grad():
            back, opposite = bijection(x, context)
        torch.testing.assert_close(back, z, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(log_det, -opposite, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(residual, (back - z).abs().flatten(1).amax(1), rtol=0, atol=0)
        assert (iterations <= 6).all(), f"{mode} took {iterations.tolist()} passes for 6 tokens"


def test_jacobi_rests_row_by_row_and_tells_the_truth() -> None:
    bijection, z = weak(layer()), normal(6, SHAPE, rng(2))
    causal.jacobi_tells_the_truth(bijection, z, tolerance=3e-3)
    iterations = bijection.invert(z, tolerance=3e-3).iterations
    assert iterations.min() < iterations.max() < 6
    exact = bijection.invert(z, tolerance=0.0)
    assert (exact.residual < 1e-13).all()
    assert (exact.iterations <= 6).all()


def test_jacobi_of_the_identity_takes_one_pass() -> None:
    bijection = seeded(lambda: PatchAutoregressive(SHAPE, patch=2, **SMALL)).double()
    x, log_det, iterations, residual = bijection.invert(normal(3, SHAPE, rng(2)))
    assert torch.equal(x, normal(3, SHAPE, rng(2)))
    assert iterations.tolist() == [1, 1, 1]
    assert residual.count_nonzero() == log_det.count_nonzero() == 0


def test_a_layer_keeps_its_mode_and_tolerance() -> None:
    z = normal(3, SHAPE, rng(2))
    flow = seeded(lambda: TransformerFlow(SHAPE, patch=2, layers=2, inverse_mode="jacobi", tolerance=0.1, **SMALL))
    block = perturb(flow, rng(1), std=0.1).bijection.bijections[1]
    assert (block.inverse_direction.passes, block.inverse_direction.steps) == (6, 6)
    expected = block.invert(z, tolerance=0.1)
    assert 1e-9 < expected.residual.max() <= 0.1
    assert torch.equal(block.inverse(z)[0], expected.x)
    assert (layer().inverse_direction.passes, layer().inverse_direction.steps) == (1, 6)


def test_the_conditioner_keeps_the_protocol() -> None:
    """Whoever calls `invert_autoregressive` by hand gets patches in their order."""
    bijection, z = layer(), normal(2, SHAPE, rng(2))
    degrees = bijection.conditioner.degrees
    assert torch.equal(degrees, tokens(reverse=False).flatten()[bijection.places] + 1)
    found = invert_autoregressive(bijection.conditioner, bijection.transformer, bijection._to_tokens(z), mode="jacobi")
    torch.testing.assert_close(bijection._to_event(found.x), bijection.inverse(z)[0])


def test_orders_take_turns_and_patches_divide() -> None:
    flow = TransformerFlow((1, 28, 28), layers=3, **SMALL)
    places = [block.places.reshape(49, 16) for block in flow.bijection.bijections]
    assert torch.equal(places[0], places[2])
    assert torch.equal(places[0], places[1].flip(0))
    assert TransformerFlow((3, 6, 2), layers=1, **SMALL).bijection.bijections[0].conditioner.tokens == 3
    assert TransformerFlow(5, layers=1, **SMALL).bijection.bijections[0].conditioner.tokens == 5


def test_a_flow_hands_its_options_to_every_block() -> None:
    flow = TransformerFlow(6, layers=3, depth=4, hidden=10, heads=5, context_features=3, log_scale_bound=0.7)
    assert len(flow.bijection.bijections) == 3
    for block in flow.bijection.bijections:
        network = block.conditioner.network
        assert (len(network.blocks), network.heads, network.context_features) == (4, 5, 3)
        assert network.positions.shape == (6, 10)
        assert block.transformer.log_scale_bound == 0.7


def test_a_fresh_flow_is_its_base() -> None:
    flow, x = TransformerFlow(SHAPE, layers=3, **SMALL), torch.randn(4, *SHAPE)
    torch.testing.assert_close(flow.log_prob(x), flow.base.log_prob(x), rtol=0, atol=0)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"patch=3 .*\(1, 4, 6\)"):
        TransformerFlow((1, 4, 6), patch=3)
    with pytest.raises(ValueError, match=r"patch=4 .*\(6,\)"):
        PatchAutoregressive(6, patch=4)
    with pytest.raises(ValueError, match=r"vectors or .*\(4, 4\)"):
        TransformerFlow((4, 4))
    with pytest.raises(ValueError, match="layers=0"):
        TransformerFlow(4, layers=0)
