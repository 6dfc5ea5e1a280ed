from typing import Any

import pytest
import torch
from contracts import modules, networks
from helpers import normal, perturb, rng, seeded
from torch import Tensor, nn
from torch.nn import functional as F

from core.nets import RefineNet
from core.nets.refinenet import InstanceNormPlus, _Block, _Refinement

LEVELS = pytest.mark.parametrize("levels", [0, 3])


def build(levels: int, **keywords: Any) -> RefineNet:
    return RefineNet(2, 3, hidden=4, levels=levels, **keywords)


def network(levels: int) -> RefineNet:
    return perturb(seeded(lambda: build(levels)), rng(1), std=0.1)


def images(height: int, width: int, rows: int = 3) -> Tensor:
    return normal(rows, (2, height, width), rng(2))


def indices(levels: int) -> Tensor | None:
    return torch.tensor([2, 0, 1]) if levels else None


def call(net: nn.Module, x: Tensor, index: Tensor | None) -> tuple[Tensor]:
    return (net(x, index),)


@LEVELS
def test_every_side_works_and_a_fresh_network_is_zero(levels: int) -> None:
    fresh, used = seeded(lambda: build(levels)).double(), network(levels)
    for height, width in [(1, 1), (3, 3), (5, 2), (7, 7), (8, 8), (28, 28)]:
        x, index = images(height, width), indices(levels)
        assert fresh(x, index).count_nonzero() == 0
        y = used(x, index)
        assert y.shape == (3, 3, height, width)
        assert y.isfinite().all()
        assert used(x[:0], None if index is None else index[:0]).shape == (0, 3, height, width)


def test_the_output_starts_as_in_the_papers_on_demand() -> None:
    assert seeded(lambda: build(0, zero_output=False)).double()(images(4, 4)).abs().min() > 0


@LEVELS
def test_rows_stay_apart_and_every_parameter_learns(levels: int) -> None:
    net, x, index = network(levels), images(5, 5), indices(levels)
    modules.rows_are_independent(call, net, x, index)
    modules.gradients_reach_every_parameter(call, net, x, index)


@LEVELS
def test_it_is_copied_whole_and_leaves_its_input(levels: int) -> None:
    net, x, index = network(levels), images(5, 5), indices(levels)
    modules.copies_are_bit_equal(call, net, build(levels), x, index)
    modules.input_is_left_alone(call, net, x, index)
    modules.runs_on_meta(call, net, x, index)
    expected = net(x, index)
    torch.testing.assert_close(net.float()(x.float(), index).double(), expected, rtol=1e-3, atol=1e-3)


@LEVELS
def test_second_derivatives(levels: int) -> None:
    net = perturb(seeded(lambda: RefineNet(1, 1, hidden=2, levels=levels)), rng(1), std=0.1)
    networks.second_derivatives_are_right(net, normal(3, (1, 3, 4), rng(2)), indices(levels))


def test_the_level_reaches_every_pixel() -> None:
    net, x = network(3), images(6, 5)
    networks.every_pixel_sees_what_it_is_told(net, x, torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))


@pytest.mark.parametrize(("levels", "index"), [(3, None), (0, torch.tensor([0, 1, 2]))])
def test_an_index_given_or_missing_is_named(levels: int, index: Tensor | None) -> None:
    found = "missing" if index is None else "given"
    with pytest.raises(ValueError, match=f"levels={levels}, but index is {found}"):
        network(levels)(images(4, 4), index)
    with pytest.raises(ValueError, match=f"levels={levels}, but index is {found}"):
        InstanceNormPlus(2, levels=levels)(images(4, 4).float(), index)


def test_one_subsampling_then_dilation() -> None:
    net, sides = network(0), []
    for stage in net.stages:
        stage.register_forward_hook(lambda _, __, h: sides.append(tuple(h.shape[1:])))
    net(images(7, 10))
    assert sides == [(4, 7, 10), (8, 4, 5), (8, 4, 5), (8, 4, 5)]
    dilations = [
        {m.dilation[0] for m in s.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)} for s in net.stages
    ]
    assert dilations == [{1}, {1}, {2}, {4}]


def test_a_norm_before_every_convolution() -> None:
    """The stem and the 1×1 of a skip apart."""
    net = network(0)
    norms = [m for m in net.modules() if isinstance(m, InstanceNormPlus)]
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(norms) == len(convolutions) - 1


def test_strided_block_is_its_formula() -> None:
    block = perturb(seeded(lambda: _Block(2, 3, 0, "elu", stride=2)), rng(1))
    h, a = normal(2, (2, 4, 6), rng(2)), F.elu
    pooled = (h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]) / 4
    u = block.first.conv(a(block.first.norm(h)))
    expected = block.skip[1](pooled) + block.last.conv(a(block.last.norm(u)))
    torch.testing.assert_close(block(h, None), expected, rtol=1e-12, atol=1e-12)


def window_means(h: Tensor) -> Tensor:
    """Mean of the 5×5 pixels about each, of as many as there are."""
    means = torch.empty_like(h)
    for i in range(h.shape[2]):
        for j in range(h.shape[3]):
            means[..., i, j] = h[..., max(i - 2, 0) : i + 3, max(j - 2, 0) : j + 3].mean((2, 3))
    return means


def test_refinement_is_its_formula() -> None:
    """Residual units, fusion at the finer resolution, a chain of poolings, residual units."""
    refine = perturb(seeded(lambda: _Refinement([3, 4], 2, 0, "elu", units=2)), rng(1))
    fine, coarse = normal(2, (3, 6, 7), rng(2)), normal(2, (4, 3, 4), rng(3))
    with torch.no_grad():
        a, b = (
            f.conv(f.norm(adapt(h, None)))
            for f, adapt, h in zip(refine.fuse, refine.adapt, (fine, coarse), strict=True)
        )
        h = F.elu(a + F.interpolate(b, (6, 7), mode="bilinear"))
        once = refine.pools[0].conv(window_means(refine.pools[0].norm(h)))
        twice = refine.pools[1].conv(window_means(refine.pools[1].norm(once)))
        expected = refine.output(h + once + twice, None)
        torch.testing.assert_close(refine([fine, coarse], None), expected, rtol=1e-11, atol=1e-11)
    assert [len(chain.blocks) for chain in (*refine.adapt, refine.output)] == [2, 2, 2]
    assert len(_Refinement([3], 3, 0, "elu").fuse) == 0


HAND_PICKED = torch.tensor(
    [[[[1.0, 3.0], [5.0, 7.0]], [[0.0, 0.0], [0.0, 8.0]], [[-1.0, 1.0], [-1.0, 1.0]]]], dtype=torch.float64
)


def test_instance_norm_by_hand() -> None:
    """μ = (4, 2, 0), m = 2, v = √(8/3); s = (√5, √12, 1)."""
    z = InstanceNormPlus(3).double()(HAND_PICKED)[0]
    v = (8 / 3) ** 0.5
    torch.testing.assert_close(z[0, 0, 0].item(), -3 / 5**0.5 + 2 / v, rtol=0, atol=1e-4)
    torch.testing.assert_close(z[1, 1, 1].item(), 6 / 12**0.5, rtol=0, atol=1e-4)
    torch.testing.assert_close(z[2, 0, 1].item(), 1 - 2 / v, rtol=0, atol=1e-4)


@LEVELS
def test_instance_norm_is_the_formula(levels: int) -> None:
    norm = perturb(InstanceNormPlus(3, levels=levels), rng(1))
    x = torch.cat([HAND_PICKED, 3 * normal(2, (3, 2, 2), rng(2)) + 100.0])
    networks.instance_norm_is_the_formula(norm, x, indices(levels))


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (1, 1, 4, 4), (1, 3, 1, 1), (2, 1, 1, 1)])
def test_constant_images_are_finite_and_so_are_their_gradients(shape: tuple[int, ...]) -> None:
    norm = perturb(InstanceNormPlus(shape[1]), rng(1))
    x = torch.full(shape, 5.0, dtype=torch.float64, requires_grad=True)
    z = norm(x)
    torch.testing.assert_close(z, norm.beta[:, :, None, None].expand(shape), rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad.isfinite().all()
