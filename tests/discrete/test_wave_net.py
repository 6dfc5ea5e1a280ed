"""The receptive field, the cost of a draw, and laws in closed form."""

import math
from typing import Any

import pytest
import torch
from contracts import masses
from helpers import perturb, rng, seeded
from torch import Tensor

from core.nets.causal_conv import CausalConvNet
from discrete import WaveNet


def small(steps: int, **keywords: Any) -> WaveNet:
    settings: dict[str, Any] = {"bins": 3, "layers": 2, "cycles": 1, "hidden": (6, 8), "components": 2, **keywords}
    return perturb(seeded(lambda: WaveNet(steps, **settings)), rng(1))


def levels(rows: int, steps: int) -> Tensor:
    return torch.randint(3, (rows, steps), generator=rng(2)).double()


@pytest.mark.parametrize(("layers", "cycles", "field"), [(1, 1, 2), (2, 1, 4), (3, 1, 8), (2, 2, 7), (1, 3, 4)])
def test_receptive_field_is_all_and_no_more(layers: int, cycles: int, field: int) -> None:
    model = small(field + 3, layers=layers, cycles=cycles)
    assert model.receptive_field == field
    steps = torch.arange(field + 3)
    back = steps[:, None] - steps
    masses.sees_the_values_before_alone(model, levels(32, field + 3), sees=(back >= 1) & (back <= field))


def test_draws_beyond_the_receptive_field() -> None:
    masses.draws_equal_full_passes(small(20, layers=3, cycles=2), rows=16, generator=rng(3))


def test_one_step() -> None:
    model = small(1)
    masses.sums_to_one(model, bins=3)
    masses.draws_follow_the_masses(model, bins=3, generator=rng(4))


def test_cost_of_a_draw() -> None:
    """Each layer once a step, on that step alone, and nothing stays behind on the model."""
    model, shapes = small(12, layers=3, cycles=2), []
    for layer in model.network.layers:
        layer.conv.register_forward_hook(lambda _, __, out: shapes.append(out.shape))
    before = [set(vars(part)) for part in model.modules()]
    model.sample((5,))
    assert shapes == [(5, 12)] * 6 * 12
    assert before == [set(vars(part)) for part in model.modules()]


def test_layers_are_equation_2() -> None:
    """Dilations 2 and 1 by hand: z = tanh(f) σ(g), h ← h + R z, skips S z added; before the sequence only zeros."""
    model = small(6, hidden=(4, 5))
    model.network.dilations = (2, 1)
    u = model.likelihood.rescale(levels(1, 6))
    network, zeros = model.network, torch.zeros(4, dtype=torch.float64)
    late = torch.cat([torch.zeros(1, 2), torch.stack([u[0, :-1], torch.ones(5)], 1)]).double()
    h, skips = [network.stem.weight @ x + network.stem.bias for x in late], [0.0] * 6
    for layer, d in zip(network.layers, (2, 1), strict=True):
        w_past, w_now = layer.conv.weight.chunk(2, 1)
        past = [zeros] * d + h[:-d]
        a = [w_past @ past[t] + w_now @ h[t] + layer.conv.bias for t in range(6)]
        out = [layer.out.weight @ (torch.tanh(v[:4]) * torch.sigmoid(v[4:])) + layer.out.bias for v in a]
        h, skips = [h[t] + out[t][:4] for t in range(6)], [skips[t] + out[t][4:] for t in range(6)]
    expected = torch.stack([network.head[1].weight @ s.relu() + network.head[1].bias for s in skips])
    torch.testing.assert_close(model._theta(u, None)[0], expected, rtol=1e-12, atol=1e-12)


def test_zero_head_is_uniform() -> None:
    model = small(7, likelihood="categorical")
    for parameter in model.network.head[-1].parameters():
        torch.nn.init.zeros_(parameter)
    expected = torch.full((5,), -7 * math.log(3), dtype=torch.float64)
    torch.testing.assert_close(model.log_prob(levels(5, 7)), expected, rtol=1e-12, atol=0)


def test_learns_that_a_step_repeats_the_one_two_before() -> None:
    """x_t = x_{t-2}, the first two free: log P is -2 log 3, and no model does better."""
    model = seeded(lambda: WaveNet(6, bins=3, likelihood="categorical", layers=2, cycles=1, hidden=(16, 16)))
    x = levels(256, 2).float().repeat(1, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(100):
        loss = -model.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(2 * math.log(3), abs=0.1)
    draws = model.sample((200,), generator=rng(7))
    assert (draws[:, 2:] == draws[:, :-2]).float().mean() > 0.97


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"WaveNet takes vectors, one size such as 64, but event_shape is \(1, 8, 8\)"):
        WaveNet((1, 8, 8))
    with pytest.raises(ValueError, match="layers=0, cycles=2"):
        WaveNet(4, layers=0)
    with pytest.raises(ValueError, match=r"one of skips, but hidden is \(8,\)"):
        WaveNet(4, hidden=(8,))
    with pytest.raises(ValueError, match=r"dilations of 1 or more, but they are \(1, 0\)"):
        CausalConvNet(1, 1, dilations=[1, 0])


def test_context_against_context_features_is_named() -> None:
    with pytest.raises(ValueError, match="context_features=2, but context has 0"):
        small(4, context_features=2).log_prob(levels(3, 4))
    with pytest.raises(ValueError, match="context_features=2, but context has 0"):
        small(4, context_features=2).sample((3,))
