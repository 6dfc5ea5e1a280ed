import copy
import math
from typing import Any

import pytest
import torch
from contracts import modules, networks
from helpers import normal, perturb, rng, seeded
from torch import Tensor, nn

from core.nets import UNet
from core.nets.unet import _Attention, _Block, _norm

CASES: dict[str, dict[str, Any]] = {
    "one level": {"hidden": (8,)},
    "two levels": {"embedding_features": 3},
    "three levels": {"hidden": (4, 8, 12), "blocks": 1, "activation": "elu"},
    "narrower, attention": {"hidden": (8, 4), "heads": 2, "embedding_features": 3},
    "attention, but not at the coarsest": {"hidden": (4, 8, 4), "blocks": 1, "heads": 2, "attention": (0, 1)},
}
EVERY = pytest.mark.parametrize("name", CASES)


def build(name: str) -> UNet:
    return UNet(2, 3, **{"hidden": (8, 16), **CASES[name]})


def network(name: str) -> UNet:
    return perturb(seeded(lambda: build(name)), rng(1))


def images(height: int, width: int, rows: int = 3) -> Tensor:
    return normal(rows, (2, height, width), rng(2))


def embedding(name: str, rows: int = 3, seed: int = 3) -> Tensor | None:
    return normal(rows, (3,), rng(seed)) if "embedding_features" in CASES[name] else None


def call(net: nn.Module, x: Tensor, e: Tensor | None) -> tuple[Tensor]:
    return (net(x, e),)


@EVERY
def test_every_side_works_and_a_fresh_network_is_zero(name: str) -> None:
    fresh, used = seeded(lambda: build(name)).double(), network(name)
    for height, width in [(1, 1), (3, 3), (5, 2), (7, 7), (8, 8), (28, 28)]:
        x, e = images(height, width), embedding(name)
        assert fresh(x, e).count_nonzero() == 0
        y = used(x, e)
        assert y.shape == (3, 3, height, width)
        assert y.isfinite().all()
        assert used(x[:0], None if e is None else e[:0]).shape == (0, 3, height, width)


@EVERY
def test_rows_stay_apart_and_every_parameter_learns(name: str) -> None:
    net, x, e = network(name), images(5, 5), embedding(name)
    modules.rows_are_independent(call, net, x, e)
    modules.gradients_reach_every_parameter(call, net, x, e)


@EVERY
def test_it_is_copied_whole_and_leaves_its_input(name: str) -> None:
    net, x, e = network(name), images(5, 5), embedding(name)
    modules.copies_are_bit_equal(call, net, build(name), x, e)
    modules.input_is_left_alone(call, net, x, e)
    modules.runs_on_meta(call, net, x, e)
    modules.float32_is_close(call, net, x, e, tolerance=1e-3)


@pytest.mark.parametrize("name", ["three levels", "narrower, attention"])
def test_second_derivatives(name: str) -> None:
    networks.second_derivatives_are_right(network(name), images(3, 4, rows=2), embedding(name, rows=2))


@pytest.mark.parametrize("name", ["two levels", "narrower, attention"])
def test_the_embedding_reaches_every_pixel(name: str) -> None:
    net, x = network(name), images(6, 5)
    networks.every_pixel_sees_what_it_is_told(net, x, embedding(name), embedding(name, seed=4))
    with pytest.raises(ValueError, match="embedding_features=3, but embedding has 0"):
        net(x)


def test_corner_sees_corner_through_the_coarsest_level() -> None:
    networks.pixels_reach_across(network("three levels"), images(15, 16))


def test_attention_alone_reaches_across() -> None:
    net = perturb(seeded(lambda: UNet(2, 3, hidden=(8,), blocks=1, heads=2)), rng(1), std=0.1)
    networks.pixels_reach_across(net, images(16, 16))


@pytest.mark.parametrize("out", [8, 5])
def test_block_is_its_formula(out: int) -> None:
    """Norm, activation, convolution; norm, scale and shift, activation, convolution; skip."""
    block = perturb(seeded(lambda: _Block(8, out, 3, "silu", 0.0)), rng(1))
    h, e = normal(2, (8, 4, 5), rng(2)), normal(2, (3,), rng(3))
    norm, _, first, second_norm = block.first
    u = second_norm(first(torch.sigmoid(norm(h)) * norm(h)))
    gamma, beta = (e @ block.film.weight.T + block.film.bias).reshape(2, 2, out, 1, 1).unbind(1)
    u = (1 + gamma) * u + beta
    expected = block.skip(h) + block.last[2](u * torch.sigmoid(u))
    torch.testing.assert_close(block(h, e), expected, rtol=1e-12, atol=1e-12)
    assert isinstance(block.skip, nn.Identity) == (out == 8)


def test_scale_and_shift_of_zero_are_the_identity() -> None:
    block = perturb(seeded(lambda: _Block(8, 8, 3, "silu", 0.0)), rng(1))
    nn.init.zeros_(block.film.weight)
    nn.init.zeros_(block.film.bias)
    bare = copy.deepcopy(block)
    bare.film = None
    h, e = normal(2, (8, 4, 5), rng(2)), normal(2, (3,), rng(3))
    assert torch.equal(block(h, e), bare(h, None))


@pytest.mark.parametrize("width", [8, 5])
def test_a_fresh_block_is_its_skip(width: int) -> None:
    block = seeded(lambda: _Block(8, width, 3, "silu", 0.0)).double()
    h, e = normal(2, (8, 4, 5), rng(2)), normal(2, (3,), rng(3))
    assert torch.equal(block(h, e), block.skip(h))


def test_attention_is_its_formula() -> None:
    """Two heads, a head, a pixel and a key at a time."""
    attention = perturb(seeded(lambda: _Attention(8, 2)), rng(1))
    h = normal(1, (8, 2, 3), rng(2))
    pixels = attention.norm(h)[0].flatten(1).T
    q, k, v = (pixels @ attention.queries_keys_values.weight[:, :, 0, 0].T).chunk(3, 1)
    mixed = torch.zeros(6, 8, dtype=torch.float64)
    for part in (slice(0, 4), slice(4, 8)):
        for i in range(6):
            weights = torch.stack([q[i, part] @ k[j, part] / math.sqrt(4) for j in range(6)]).softmax(0)
            mixed[i, part] = sum(w * v[j, part] for j, w in enumerate(weights))
    out = mixed @ attention.projection.weight[:, :, 0, 0].T + attention.projection.bias
    torch.testing.assert_close(attention(h), h + out.T.reshape(h.shape), rtol=1e-12, atol=1e-12)
    fresh = seeded(lambda: _Attention(8, 2)).double()
    assert torch.equal(fresh(h), h)


def test_resolutions_halve_and_come_back() -> None:
    net, sides = network("three levels"), []
    for stage in (*net.encoders, net.middle, *net.decoders[::-1]):
        stage.register_forward_hook(lambda _, __, h: sides.append(tuple(h.shape[1:])))
    net(images(7, 10))
    assert sides == [(4, 7, 10), (8, 4, 5), (12, 2, 3), (8, 4, 5), (4, 7, 10)]


@pytest.mark.parametrize(("width", "groups"), [(1, 1), (3, 1), (4, 1), (8, 2), (20, 5), (32, 8), (48, 8), (96, 8)])
def test_groups_of_the_norms(width: int, groups: int) -> None:
    assert _norm(width).num_groups == groups


def test_dropout_is_for_training() -> None:
    net, x = perturb(seeded(lambda: UNet(2, 3, hidden=(8, 8), dropout=0.5)), rng(1)), images(4, 4)
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout2d)} == {0.5}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"hidden": ()}, r"needs a width.*hidden=\(\)"),
        ({"blocks": 0}, "needs a width.*blocks=0"),
        ({"heads": 3}, "that the heads divide.*heads=3"),
        ({"hidden": (6, 8), "heads": 4, "attention": (0,)}, "that the heads divide.*heads=4"),
        ({"attention": (1,)}, r"heads=0 and attention=\(1,\)"),
        ({"heads": 4, "attention": ()}, r"heads=4 and attention=\(\)"),
        ({"heads": 4, "attention": (2,)}, r"resolutions from 0 to 1, but has heads=4 and attention=\(2,\)"),
        ({"heads": 4, "attention": (-1,)}, r"attention=\(-1,\)"),
    ],
)
def test_what_does_not_fit_is_named(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        UNet(2, 3, **wrong)


def attended(net: UNet) -> list[int]:
    """Attention layers of each stage, down, at the bottom and up."""
    return [len(stage.attentions) for stage in (*net.encoders, net.middle, *net.decoders[::-1])]


def test_attention_is_where_it_is_asked_for() -> None:
    """After every block of the resolution, on the way down and up; at the coarsest where nothing is asked."""
    options = {"hidden": (4, 8, 4), "blocks": 2}
    assert attended(UNet(2, 3, **options)) == [0, 0, 0, 0, 0]
    assert attended(UNet(2, 3, heads=2, **options)) == [0, 0, 2, 0, 0]
    assert attended(UNet(2, 3, heads=2, attention=(1,), **options)) == [0, 2, 0, 2, 0]
    assert attended(UNet(2, 3, heads=2, attention=[0, 2], **options)) == [2, 0, 2, 0, 2]


def test_the_coarsest_by_name_is_the_default_to_the_bit() -> None:
    default, named = (seeded(lambda k=k: UNet(2, 3, hidden=(4, 8), heads=2, **k)) for k in ({}, {"attention": [1]}))
    assert [*default.state_dict()] == [*named.state_dict()]
    assert all(torch.equal(a, b) for a, b in zip(default.parameters(), named.parameters(), strict=True))


def test_attention_at_the_finest_alone_reaches_across() -> None:
    """Two resolutions of one block each do not span 33 pixels, attention on the finest does."""
    options = {"hidden": (8, 8), "blocks": 1}
    narrow = perturb(seeded(lambda: UNet(2, 3, **options)), rng(1), std=0.1)
    wide = perturb(seeded(lambda: UNet(2, 3, heads=2, attention=(0,), **options)), rng(1), std=0.1)
    networks.pixels_reach_across(wide, images(33, 33))
    with pytest.raises(AssertionError):
        networks.pixels_reach_across(narrow, images(33, 33))


def test_patches_are_pixels_of_a_smaller_image() -> None:
    """Each patch's pixels become channels, row by row, and come back where they were."""
    net = seeded(lambda: UNet(1, 1, hidden=(8, 8), blocks=1, patch=2)).double()
    small = seeded(lambda: UNet(4, 4, hidden=(8, 8), blocks=1)).double()
    small.load_state_dict(net.state_dict())
    perturb(net, rng(5)), perturb(small, rng(5))
    x = normal(3, (1, 4, 6), rng(6))
    cut = torch.stack([x[:, 0, i::2, j::2] for i in range(2) for j in range(2)], 1)
    y, patches = net(x), small(cut)
    assert y.shape == x.shape
    for k, (i, j) in enumerate((i, j) for i in range(2) for j in range(2)):
        torch.testing.assert_close(y[:, 0, i::2, j::2], patches[:, k])


def test_patches_must_divide_the_sides() -> None:
    with pytest.raises(ValueError, match="patch=2 must divide the sides"):
        UNet(1, 1, hidden=(4,), patch=2)(torch.zeros(1, 1, 5, 4))
    with pytest.raises(ValueError, match="patch of 1 or more"):
        UNet(1, 1, hidden=(4,), patch=0)


def test_patches_of_no_images() -> None:
    assert UNet(1, 1, hidden=(4,), patch=2)(torch.zeros(0, 1, 4, 4)).shape == (0, 1, 4, 4)
