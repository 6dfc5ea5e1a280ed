"""The receptive field, the cost of a draw, and laws in closed form."""

import math
from typing import Any

import pytest
import torch
from contracts import masses
from helpers import perturb, rng, seeded
from torch import Tensor, nn

from core.nets.masked_conv import MaskedConvNet
from discrete import PixelCNN


def small(event_shape: tuple[int, ...], seed: int = 0, **keywords: Any) -> PixelCNN:
    settings: dict[str, Any] = {"bins": 3, "layers": 2, "kernel": 3, "hidden": (12, 12), "components": 2, **keywords}
    return perturb(seeded(lambda: PixelCNN(event_shape, **settings), seed), rng(1))


def levels(rows: int, event_shape: tuple[int, ...], bins: int = 3) -> Tensor:
    return torch.randint(bins, (rows, *event_shape), generator=rng(2)).double()


def reach(event_shape: tuple[int, int, int], *, layers: int, n: int) -> Tensor:
    """`[i, j]` in raster order: whether j is before i, 1 + layers n rows above at most, layers n columns aside."""
    channels, height, width = event_shape
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width), torch.arange(channels))
    rows, columns, _ = (places[:, None] - places).unbind(-1)
    near = (rows <= 1 + layers * n) & (columns.abs() <= layers * n)
    return near & torch.ones_like(near).tril(-1)


@pytest.mark.parametrize(("event_shape", "kernel"), [((1, 5, 7), 3), ((1, 7, 9), 5), ((2, 5, 6), 3)])
def test_receptive_field_has_no_blind_spot(event_shape: tuple[int, int, int], kernel: int) -> None:
    layers = 2 if kernel == 3 else 1
    model = small(event_shape, layers=layers, kernel=kernel)
    sees = reach(event_shape, layers=layers, n=kernel // 2)
    assert not torch.equal(sees, torch.ones_like(sees).tril(-1)), "the event is no larger than the field"
    masses.sees_the_values_before_alone(model, levels(16, event_shape), sees=sees)


@pytest.mark.parametrize("event_shape", [(3, 1, 1), (1, 1, 3), (1, 4, 1), (2, 1, 2)])
def test_thin_images(event_shape: tuple[int, int, int]) -> None:
    model = small(event_shape)
    masses.sums_to_one(model, bins=3)
    masses.sees_the_values_before_alone(model, levels(32, event_shape))
    masses.draws_equal_full_passes(model, generator=rng(3))
    masses.draws_follow_the_masses(model, bins=3, generator=rng(4))


def test_width_of_the_input_leaks_nothing() -> None:
    """Two channels and the channel of ones are as wide as the first layer, where a residual would fit."""
    model = small((2, 2, 2), hidden=(3, 12))
    masses.sees_the_values_before_alone(model, levels(64, (2, 2, 2)), sees=None)


def test_draws_beyond_the_receptive_field() -> None:
    masses.draws_equal_full_passes(small((2, 6, 5), bins=9, layers=2), rows=8, generator=rng(5))


def test_cost_of_a_draw() -> None:
    """The vertical stack once a row, the horizontal one once a value; a pass in all for one channel."""
    model, calls = small((2, 4, 5)), {"row": [], "pixel": []}
    for layer in model.network.layers:
        layer.conv.register_forward_hook(lambda _, __, out: calls["row"].append(out.shape))
        layer.ordered.register_forward_hook(lambda _, __, out: calls["pixel"].append(out.shape))
    model.sample((3,))
    assert calls["row"] == [(3, 24, 1, 5)] * 2 * 4
    assert calls["pixel"] == [(3, 24, 1, 1)] * 2 * 4 * 5 * 2


def gated(a: Tensor) -> Tensor:
    f, g = a.chunk(2)
    return torch.tanh(f) * torch.sigmoid(g)


def by_hand(model: PixelCNN, u: Tensor) -> Tensor:
    """θ of one image `(channels, height, width)` with 3 × 3 kernels, tap by tap, the masks by their definition."""
    channels, height, width = u.shape
    pixels = [(i, j) for i in range(height) for j in range(width)]
    v = {(i, j): torch.cat([u.new_ones(1), u[:, i - 1, j]]) if i else u.new_zeros(channels + 1) for i, j in pixels}
    h = {(i, j): torch.cat([u.new_ones(1), u[:, i, j]]) for i, j in pixels}
    owner = [-1, *range(channels)]

    def ordered(conv: nn.Module, now: Tensor, left: Tensor, first: bool, outs: list[int], ins: list[int]) -> Tensor:
        weight = conv.conv.weight[:, :, 0]
        seen = torch.tensor([[(i < o) if first else (i <= o) for i in ins] for o in outs])
        result = (weight[..., -1] * seen) @ now + conv.conv.bias
        return result + weight[..., 0] @ left if weight.shape[-1] == 2 else result

    for number, layer in enumerate(model.network.layers):
        size = layer.out.conv.weight.shape[0]
        groups = [f * channels // size for f in range(size)]
        zeros, next_v, next_h = u.new_zeros(len(owner)), {}, {}
        for i, j in pixels:
            a = layer.conv.bias + sum(
                layer.conv.weight[:, :, 1 + di, 1 + dj] @ v.get((i + di, j + dj), zeros)
                for di in (-1, 0)
                for dj in (-1, 0, 1)
            )
            b = ordered(layer.ordered, h[i, j], h.get((i, j - 1), zeros), number == 0, groups * 2, owner)
            y = gated(b + layer.link.weight[:, :, 0, 0] @ a + layer.link.bias)
            y = ordered(layer.out, y, y, False, groups, groups)
            next_v[i, j], next_h[i, j] = gated(a), y + h[i, j] if number else y
        v, h, owner = next_v, next_h, groups
    last = model.network.head[1]
    outs = [c for c in range(channels) for _ in range(len(last.conv.bias) // channels)]
    theta = torch.stack([ordered(last, h[p].relu(), h[p], False, outs, owner) for p in pixels])
    return theta.reshape(height, width, channels, -1).movedim(2, 0)


@pytest.mark.parametrize("event_shape", [(1, 3, 4), (2, 3, 3), (3, 2, 2)])
def test_layers_are_equation_2(event_shape: tuple[int, int, int]) -> None:
    model = small(event_shape, hidden=(5,), layers=3)
    u = model.likelihood.rescale(levels(1, event_shape))
    torch.testing.assert_close(model._theta(u, None)[0], by_hand(model, u[0]), rtol=1e-10, atol=1e-10)


def test_zero_head_is_uniform() -> None:
    model = small((1, 3, 3), likelihood="categorical", bins=4)
    for parameter in model.network.head[-1].parameters():
        torch.nn.init.zeros_(parameter)
    expected = torch.full((5,), -9 * math.log(4), dtype=torch.float64)
    torch.testing.assert_close(model.log_prob(levels(5, (1, 3, 3))), expected, rtol=1e-12, atol=0)


def test_bias_alone_gives_each_channel_its_law() -> None:
    """With zero weights in the last layer the logits are its biases, channel by channel."""
    model = small((2, 2, 1), likelihood="categorical")
    last = model.network.head[-1].conv
    torch.nn.init.zeros_(last.weight)
    law = last.bias.detach().reshape(2, 3).log_softmax(-1)
    k = levels(6, (2, 2, 1))
    expected = sum(law[c][k[:, c].long()].sum((1, 2)) for c in range(2))
    torch.testing.assert_close(model.log_prob(k).detach(), expected, rtol=1e-12, atol=1e-12)


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"images \(channels, height, width\), but event_shape is \(28, 28\)"):
        PixelCNN((28, 28))
    with pytest.raises(ValueError, match=r"event_shape is \(784,\)"):
        PixelCNN(784)
    with pytest.raises(ValueError, match="kernel must be odd and 3 or more, but is 4"):
        PixelCNN((1, 2, 2), kernel=4)
    with pytest.raises(ValueError, match="1 layer or more, but layers=0"):
        PixelCNN((1, 2, 2), layers=0)
    with pytest.raises(ValueError, match=r"3 channels or more, but hidden is \(8, 2\)"):
        PixelCNN((3, 2, 2), hidden=(8, 2))


def test_context_against_context_features_is_named() -> None:
    network = MaskedConvNet(1, 1, layers=1, hidden=(2,), context_features=2)
    for call in (lambda c: network(torch.zeros(1, 1, 2, 2), c), lambda c: network.raster(1, 2, c)):
        with pytest.raises(ValueError, match="context_features=2, but context has 0"):
            call(None)
        with pytest.raises(ValueError, match="context_features=2, but context has 3"):
            call(torch.zeros(1, 3))
