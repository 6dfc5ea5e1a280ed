import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from contracts import bijections
from helpers import Tooth, normal, perturb, rng, seeded
from torch import Tensor
from wrong import Change, Tampered

from discrete import AdditiveCoupling, Bijection, Compose, MultiScale, Split, Squeeze
from discrete.bijections.multiscale import multi_scale, squeeze_if_even


def small_split(channels: int = 3) -> Split:
    return perturb(seeded(partial(Split, (channels, 2, 2))), rng(1))


def three_levels() -> MultiScale:
    """2×8×12 goes 8×4×6, 16×2×3 and, since a side is odd there, 8×2×3."""

    def level(shape: torch.Size, i: int) -> Bijection:
        squeeze = squeeze_if_even(shape)
        shape = squeeze[0].latent_shape if squeeze else shape
        return Compose(*squeeze, AdditiveCoupling(shape, mask="half", hidden=(4,)))

    return perturb(seeded(lambda: multi_scale((2, 8, 12), levels=3, level=level, context_features=0)), rng(2), std=0.1)


def test_squeeze_is_pixel_unshuffle() -> None:
    x = normal(5, (3, 4, 6), rng(3))
    z, log_det = Squeeze((3, 4, 6))(x)
    assert torch.equal(z, torch.nn.functional.pixel_unshuffle(x, 2))
    assert log_det.count_nonzero() == 0


@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 4, 3), (4,), (4, 4)])
def test_squeeze_refuses_what_it_would_have_to_pad(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="even sides"):
        Squeeze(shape)


def split_is_a_conditional_gaussian(split: Bijection) -> None:
    """With a standard normal on z_2, log p(x_2 | x_1) is that of N(μ(x_1), σ(x_1)²) from another library."""
    x = normal(20, (3, 2, 2), rng(4))
    kept = x[:, :2]
    inner = split.inner if isinstance(split, Tampered) else split
    assert isinstance(inner, Split)
    mu, log_sigma = inner._gaussian(kept, None)
    expected = torch.distributions.Normal(mu, log_sigma.exp()).log_prob(x[:, 2:]).flatten(1).sum(1)
    z, log_det = split(x)
    found = torch.distributions.Normal(0.0, 1.0).log_prob(z[:, 2:].double()).flatten(1).sum(1) + log_det
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(z[:, :2], kept)
    assert log_sigma.std() > 0.01


def test_split_is_a_conditional_gaussian() -> None:
    split_is_a_conditional_gaussian(small_split())


SPLIT_BREAKS: dict[str, Change] = {
    "log σ added": lambda x, z, log_det: (z, -log_det),
    "log-det forgotten": lambda x, z, log_det: (z, 0 * log_det),
    "multiplied by σ": lambda x, z, log_det: (torch.cat([z[:, :2], z[:, 2:].square()], 1), log_det),
}


@pytest.mark.parametrize("name", SPLIT_BREAKS)
def test_tooth_split(name: str) -> None:
    Tooth(split_is_a_conditional_gaussian, small_split, lambda: Tampered(small_split(), SPLIT_BREAKS[name])).bites()


def test_fresh_split_is_the_identity() -> None:
    x = normal(4, (4, 3, 3), rng(5))
    z, log_det = Split((4, 3, 3)).double()(x)
    assert torch.equal(z, x)
    assert log_det.count_nonzero() == 0


@pytest.mark.parametrize("shape", [(1, 4, 4), (4,)])
def test_split_refuses_what_has_no_second_half(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2 channels or more"):
        Split(shape)


def test_latent_layout() -> None:
    """The list holds the latents of each level, coarsest last; the vector holds the list, one after the other."""
    flow = three_levels()
    z, _ = flow(normal(5, (2, 8, 12), rng(6)))
    assert [tuple(shape) for shape in flow.latent_shapes] == [(4, 4, 6), (8, 2, 3), (8, 2, 3)]
    parts = flow.unpack(z)
    assert [tuple(part.shape) for part in parts] == [(5, 4, 4, 6), (5, 8, 2, 3), (5, 8, 2, 3)]
    assert torch.equal(flow.pack(parts), z)
    assert torch.equal(z[:, :96], parts[0].flatten(1))
    assert z.shape == (5, 192) == (5, math.prod(flow.event_shape))


def test_levels_see_what_the_level_before_kept() -> None:
    """The first latent needs no other level; the last depends on every level's kept half."""
    flow = three_levels()
    x = normal(1, (2, 8, 12), rng(7))
    first, _ = flow.levels[0](x)
    split, _ = flow.splits[0](first)
    kept, noise = flow.splits[0].halves(split)
    assert torch.equal(flow.unpack(flow(x)[0])[0], noise)
    second, _ = flow.splits[1](flow.levels[1](kept)[0])
    assert torch.equal(flow.unpack(flow(x)[0])[1], flow.splits[1].halves(second)[1])


def drop_split_log_det(flow: MultiScale) -> Change:
    def change(x: Tensor, z: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        split = flow.splits[0](flow.levels[0](x)[0])[1]
        return z, log_det - split

    return change


def test_tooth_log_det_of_a_split_dropped() -> None:
    x = normal(2, (2, 8, 12), rng(8))
    Tooth(
        lambda flow: bijections.forward_log_det_is_that_of_the_jacobian(flow, x),
        three_levels,
        lambda: Tampered(three_levels(), drop_split_log_det(three_levels())),
    ).bites()


def test_tooth_latents_packed_in_another_order_than_unpacked() -> None:
    x, z = normal(2, (2, 8, 12), rng(9)), normal(2, (192,), rng(10))
    swap: Callable[[Tensor], Tensor] = lambda v: torch.cat([v[:, 96:], v[:, :96]], 1)  # noqa: E731
    Tooth(
        lambda flow: bijections.round_trips(flow, x, z),
        three_levels,
        lambda: Tampered(three_levels(), lambda x, z, log_det: (swap(z), log_det)),
    ).bites()


def test_levels_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="2 and 0"):
        MultiScale([Squeeze((1, 4, 4)), Squeeze((2, 2, 2))], [])
    with pytest.raises(ValueError, match=r"a level of \(3, 2, 2\)"):
        MultiScale([Squeeze((1, 4, 4)), Squeeze((3, 2, 2))], [Split((4, 2, 2))])
    with pytest.raises(ValueError, match="levels=0"):
        multi_scale((1, 4, 4), levels=0, level=lambda shape, i: Squeeze(shape), context_features=0)
