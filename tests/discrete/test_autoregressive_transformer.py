import math
from typing import Any

import pytest
import torch
from helpers import normal, perturb, rng, seeded
from torch import Tensor

from discrete import AutoregressiveTransformer

SHAPE = (2, 2, 3)
SMALL = {"bins": 5, "components": 2, "layers": 2, "hidden": 8, "heads": 2}


def model(shape: int | tuple[int, ...] = SHAPE, **keywords: Any) -> AutoregressiveTransformer:
    return perturb(seeded(lambda: AutoregressiveTransformer(shape, **{**SMALL, **keywords})), rng(1))


def whole(rows: int, shape: tuple[int, ...], bins: int = 5) -> Tensor:
    return torch.randint(bins, (rows, *shape), generator=rng(2)).double()


def raster(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    channels, height, width = shape
    return [(c, i, j) for i in range(height) for j in range(width) for c in range(channels)]


@pytest.mark.parametrize("likelihood", ["categorical", "mixture"])
def test_values_come_in_raster_order_channels_of_a_pixel_together(likelihood: str) -> None:
    """Changing a value changes its own conditional and all of those behind it, and no bit of those before it."""
    net, x = model(likelihood=likelihood), whole(1, SHAPE)
    before = net.conditional_log_prob(x)
    places = raster(SHAPE)
    for n, place in enumerate(places):
        other = x.clone()
        other[(0, *place)] = (x[(0, *place)] + 1) % 5
        changed = (net.conditional_log_prob(other) != before)[0]
        assert [bool(changed[p]) for p in places] == [m >= n for m in range(len(places))]


@pytest.mark.parametrize("likelihood", ["categorical", "mixture"])
@pytest.mark.parametrize("context_features", [0, 2])
def test_cached_draws_are_the_naive_ones_draw_by_draw(likelihood: str, context_features: int) -> None:
    """A full pass before every draw, the same generator: the same numbers."""
    net = model(likelihood=likelihood, context_features=context_features)
    context = normal(50, (context_features,), rng(3)) if context_features else None
    naive, generator = torch.zeros(50, *SHAPE, dtype=torch.float64), rng(4)
    for place in raster(SHAPE):
        at = (slice(None), *place)
        theta = net._theta(net.likelihood.rescale(naive), context)
        naive[at] = net.likelihood.sample(theta[at], generator=generator)
    assert torch.equal(net.sample((50,), context=context, generator=rng(4)), naive)
    assert naive.flatten(1).std(0).min() > 0


def test_log_mass_is_the_sum_of_the_logits_own() -> None:
    """One vector by hand: the softmax of what the network says after the values before, rescaled to [-1, 1]."""
    net, x = model(3), torch.tensor([4.0, 0.0, 3.0], dtype=torch.float64)
    logits = net.network(torch.tensor([[[1.0], [-1.0], [math.nan]]], dtype=torch.float64))[0]
    expected = sum(logits[i].log_softmax(0)[int(k)] for i, k in enumerate(x))
    torch.testing.assert_close(net.log_prob(x), expected, rtol=1e-12, atol=1e-12)


def test_the_first_value_sees_the_context_and_nothing_else() -> None:
    net, x, c = model(context_features=2), whole(6, SHAPE), normal(1, (2,), rng(3))[0]
    first = net._theta(net.likelihood.rescale(x), c.expand(6, 2))[:, 0, 0, 0]
    assert torch.equal(first, first[:1].expand_as(first))
    assert not torch.equal(first, net._theta(net.likelihood.rescale(x), (c + 1).expand(6, 2))[:, 0, 0, 0])


def test_a_fresh_model_is_nearly_flat_and_trains() -> None:
    """An untrained categorical law is within a nat a value of the uniform one, and descent finds a constant image."""
    net = seeded(lambda: AutoregressiveTransformer(SHAPE, **SMALL))
    x = torch.full((8, *SHAPE), 3.0)
    assert (net.log_prob(x) + 12 * math.log(5)).abs().max() < 12
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    for _ in range(40):
        optimizer.zero_grad()
        (-net.log_prob(x).mean()).backward()
        optimizer.step()
    assert net.log_prob(x).min() > -0.5
    assert (net.sample((20,), generator=rng(5)) == 3).double().mean() > 0.95


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"vectors or .*\(4, 4\)"):
        AutoregressiveTransformer((4, 4))
    with pytest.raises(ValueError, match="hidden=6"):
        AutoregressiveTransformer(4, hidden=6)
    with pytest.raises(ValueError, match="2 bins or more"):
        AutoregressiveTransformer(4, bins=1)
    with pytest.raises(ValueError, match="context_features=2"):
        model(context_features=2).sample((3,))
