"""Networks: what they are when fresh, and that options reach them."""

import pytest
import torch
from helpers import normal, rng, seeded
from torch import Tensor, nn

from core.nets import MLP, ConvNet, ResidualConvNet, ResidualMLP
from core.nets.conv import _ConvBlock
from core.nets.resnet import _Block, _LinearBlock

NETWORKS = pytest.mark.parametrize("network", [MLP, ResidualMLP, ConvNet, ResidualConvNet])


def inputs(network: type, features: int, rows: int = 3) -> Tensor:
    pixels = (2, 3) if network in (ConvNet, ResidualConvNet) else ()
    return normal(rows, (features, *pixels), rng(0))


@pytest.mark.parametrize("block", [_LinearBlock, _ConvBlock])
def test_a_fresh_residual_block_is_its_skip(block: type) -> None:
    h = normal(4, (5,) if block is _LinearBlock else (5, 3, 3), rng(1))
    same = seeded(lambda: block(5, 5, activation="relu", dropout=0.0)).double()
    assert torch.equal(same(h), h)
    wider = seeded(lambda: block(5, 7, activation="relu", dropout=0.0)).double()
    assert torch.equal(wider(h), wider.skip(h))


def test_a_modulated_block_scales_by_one_plus_gamma_and_shifts() -> None:
    block = seeded(lambda: _Block(5, 5, 2, activation="relu", dropout=0.0)).double()
    with torch.no_grad():
        block.film.weight.zero_()
        block.film.bias.copy_(torch.tensor([0.5] * 5 + [-0.25] * 5))
    h = normal(4, (5,), rng(1))
    expected = h + block.linear(torch.relu(1.5 * block.norm(h) - 0.25))
    torch.testing.assert_close(block(h, normal(4, (2,), rng(2))), expected)


@NETWORKS
def test_options_reach_the_layers(network: type) -> None:
    net = network(2, 3, hidden=(8, 8), activation="silu", dropout=0.25, context_features=2)
    kinds = [type(m).__name__ for m in net.modules()]
    assert "SiLU" in kinds
    assert "ReLU" not in kinds
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)} == {0.25}


@NETWORKS
def test_zero_output_is_zero_and_context_is_seen_by_every_pixel(network: type) -> None:
    zero = seeded(lambda: network(2, 3, hidden=(8, 8), zero_output=True)).double()
    assert zero(inputs(network, 2)).count_nonzero() == 0
    net = seeded(lambda: network(2, 3, hidden=(8, 8), context_features=2)).double()
    x, c = inputs(network, 2), normal(3, (2,), rng(2))
    change = (net(x, c) - net(x, c + 1)).abs().flatten(2) if x.ndim == 4 else (net(x, c) - net(x, c + 1)).abs()
    assert (change.amax(1) > 1e-9).all()
    with pytest.raises(ValueError, match="context_features=2, but context has 0"):
        net(x)


@NETWORKS
def test_rows_and_inputs_are_left_alone(network: type) -> None:
    """ReLUs that write over their input write over no one else's."""
    net = seeded(lambda: network(2, 3, hidden=(8, 8))).double()
    x = inputs(network, 2)
    before = x.clone()
    y = net(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(net(x[1:2])[0], y[1], rtol=1e-12, atol=1e-12)
    x.requires_grad_()
    assert torch.autograd.gradcheck(net, x)


@pytest.mark.parametrize("network", [ResidualMLP, ResidualConvNet])
def test_residual_networks_need_a_width(network: type) -> None:
    with pytest.raises(ValueError, match="at least one hidden width"):
        network(2, 3, hidden=())
