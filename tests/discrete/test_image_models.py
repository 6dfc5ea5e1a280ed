"""Glow, RealNVP and NSF for images: their levels, their sums and their closed forms."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from helpers import normal, perturb, rng, seeded
from torch import Tensor, nn

from discrete import (
    NSF,
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    Bijection,
    Compose,
    Flow,
    Glow,
    Invertible1x1Conv,
    MultiScale,
    RealNVP,
    SplineCoupling,
    Squeeze,
)

SMALL = {"hidden": (4,)}


def level_shapes(flow: Flow) -> list[tuple[int, ...]]:
    """Shape in which the couplings of each level work."""
    assert isinstance(flow.bijection, MultiScale)
    return [tuple(level.latent_shape) for level in flow.bijection.levels]


def test_mnist_is_squeezed_as_far_as_its_sides_are_even() -> None:
    """28×28 goes 14×14, 7×7 and stays 7×7: D is 784 throughout, nothing is padded."""
    glow = Glow((1, 28, 28), levels=3, depth=1, **SMALL)
    assert level_shapes(glow) == [(4, 14, 14), (8, 7, 7), (4, 7, 7)]
    assert glow.latent_shape == (784,)
    assert [tuple(s) for s in glow.bijection.latent_shapes] == [(2, 14, 14), (4, 7, 7), (4, 7, 7)]


def test_cifar_levels() -> None:
    glow = Glow((3, 32, 32), levels=3, depth=1, **SMALL)
    assert level_shapes(glow) == [(12, 16, 16), (24, 8, 8), (48, 4, 4)]


def test_real_nvp_follows_the_paper() -> None:
    """Three checkerboards, squeeze, three halves of channels, half out; at the end four checkerboards."""
    flow = RealNVP((1, 28, 28), levels=2, **SMALL)
    first, last = flow.bijection.levels
    kinds = [type(b).__name__ for b in first.bijections if not isinstance(b, ActNorm)]
    assert kinds == ["AffineCoupling"] * 3 + ["Squeeze"] + ["AffineCoupling"] * 3
    couplings = [b for level in (first, last) for b in level.bijections if isinstance(b, AffineCoupling)]
    partitions = [type(c.partition).__name__ for c in couplings]
    assert partitions == ["PixelPartition"] * 3 + ["ChannelPartition"] * 3 + ["PixelPartition"] * 4
    for a, b in pairwise(couplings[:3]):
        assert torch.equal(a.partition.b, ~b.partition.b)
    assert level_shapes(flow) == [(4, 14, 14), (2, 14, 14)]


@pytest.mark.parametrize("shape", [(1, 7, 7), (1, 5, 4), (3, 5, 5)])
def test_odd_images_are_first_class(shape: tuple[int, ...]) -> None:
    flow = RealNVP(shape, levels=1, layers=1, **SMALL).double().eval()
    x = normal(3, shape, rng(1))
    torch.testing.assert_close(flow.decode(flow.encode(x)), x)


def test_channel_couplings_say_where_they_cannot_go() -> None:
    with pytest.raises(ValueError, match=r"level 1 of 3 gets \(1, 7, 7\).*RealNVP"):
        Glow((1, 7, 7))
    with pytest.raises(ValueError, match=r"level 5 of 5 gets \(1, 7, 7\)"):
        Glow((1, 28, 28), levels=5, depth=1, **SMALL)


@pytest.mark.parametrize("build", [Glow, partial(RealNVP, levels=2), partial(NSF, levels=1)])
def test_images_are_asked_for(build: Callable[..., Flow]) -> None:
    with pytest.raises(ValueError, match=r"images|levels"):
        build((6,))


def test_options_of_the_other_form_are_refused() -> None:
    with pytest.raises(ValueError, match="strides for vectors"):
        RealNVP((1, 4, 4), strides=(1, 4))
    with pytest.raises(ValueError, match="depth=0"):
        Glow((1, 4, 4), depth=0)


def test_a_glow_step_is_the_sum_of_its_parts() -> None:
    """log|det| = H W (Σ log s + log|det W|) + Σ log s of the coupling, each from the layer's own parameters."""
    glow = perturb(seeded(lambda: Glow((1, 4, 4), levels=1, depth=1, **SMALL)), rng(2))
    squeeze, actnorm, convolution, coupling = glow.bijection.levels[0].bijections
    x = normal(3, (1, 4, 4), rng(3))
    y, _ = squeeze(x)
    y = actnorm.log_scale.exp() * (y + actnorm.bias)
    W = convolution.weight.matrix()
    y = torch.einsum("ij,rjhw->rihw", W, y)
    a, _ = coupling.conditioner(y[:, :2], None).unflatten(1, (2, 2)).unbind(2)
    pixels = 4
    expected = pixels * (actnorm.log_scale.sum() + torch.linalg.slogdet(W).logabsdet)
    expected = expected + (3 * torch.tanh(a / 3)).flatten(1).sum(1)
    torch.testing.assert_close(glow.bijection(x)[1], expected, rtol=1e-12, atol=1e-12)


def test_additive_glow_without_scales_preserves_volume() -> None:
    """Fresh 1×1 convolutions are rotations and fresh ActNorms the identity: the log-determinant is 0 for any networks.

    The rotations were drawn in float32.
    """
    glow = seeded(lambda: Glow((3, 4, 4), levels=1, depth=3, coupling="additive", **SMALL)).double().eval()
    for module in glow.modules():
        if isinstance(module, AdditiveCoupling):
            perturb(module, rng(4))
    _, log_det = glow.bijection(normal(5, (3, 4, 4), rng(5)))
    torch.testing.assert_close(log_det, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-4)


def test_glow_without_couplings_is_a_gaussian() -> None:
    """Zero networks leave ActNorm, 1×1 convolutions and squeezes, all linear: a multivariate normal over the pixels."""
    glow = seeded(lambda: Glow((1, 4, 4), levels=1, depth=2, **SMALL)).double().eval()
    for module in glow.modules():
        if isinstance(module, ActNorm | Invertible1x1Conv):
            perturb(module, rng(6))
    x = normal(5, (1, 4, 4), rng(7))
    zero = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    A = torch.autograd.functional.jacobian(lambda v: glow.encode(v), zero).reshape(16, 16)
    precision = A.T @ A
    mean = -torch.linalg.solve(A, glow.encode(zero)[0]).detach()
    law = torch.distributions.MultivariateNormal(mean, precision_matrix=(precision + precision.T) / 2)
    torch.testing.assert_close(glow.log_prob(x), law.log_prob(x.flatten(1)), rtol=1e-9, atol=1e-9)


def test_glow_options_reach_their_layers() -> None:
    glow = Glow((1, 4, 4), levels=1, depth=1, parametrization="qr", scale="sigmoid", conditioner="resnet", **SMALL)
    _, _, convolution, coupling = glow.bijection.levels[0].bijections
    assert type(convolution.weight).__name__ == "QRMatrix"
    assert coupling.transformer.scale == "sigmoid"
    assert type(coupling.conditioner).__name__ == "ResidualConvNet"


def test_nsf_images_have_spline_couplings() -> None:
    flow = NSF((1, 4, 4), levels=1, layers=2, bins=5, bound=2.0, **SMALL)
    splines = [m for m in flow.modules() if isinstance(m, SplineCoupling)]
    assert len(splines) == 2
    assert splines[0].transformer.parameters_per_feature == 14


def test_sigmoid_scale_only_contracts() -> None:
    """Glow's exp(s) = sigmoid(a + 2): within (0, 1), 0.88 where the network says nothing."""
    coupling = AffineCoupling(2, scale="sigmoid", hidden=()).double()
    x = normal(50, (2,), rng(8))
    _, log_det = coupling(x)
    torch.testing.assert_close(log_det.exp(), torch.full((50,), 1 / (1 + math.exp(-2)), dtype=torch.float64))
    perturb(coupling, rng(9), std=3.0)
    assert (coupling(x)[1] < 0).all()


class Recorder(nn.Module):
    """A conditioner that keeps what it is shown."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.shapes = (channels_in, channels_out)
        self.seen = torch.empty(0)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        self.seen = x
        return x.new_zeros(len(x), self.shapes[1], *x.shape[2:])


def test_conditioners_are_shown_only_what_passes() -> None:
    """Channels that pass and no others; over a checkerboard the image with zeros where values move."""
    x = normal(2, (4, 2, 2), rng(10))
    channelwise = AffineCoupling((4, 2, 2), mask="half_flipped", conditioner=Recorder)
    channelwise(x)
    assert channelwise.conditioner.shapes == (2, 4)
    assert torch.equal(channelwise.conditioner.seen, x[:, 2:])
    checkered = AffineCoupling((4, 2, 2), mask="checkerboard", conditioner=Recorder)
    checkered(x)
    assert checkered.conditioner.shapes == (4, 8)
    assert torch.equal(checkered.conditioner.seen, x * torch.eye(2))


def test_networks_that_do_not_exist_are_named() -> None:
    with pytest.raises(ValueError, match=r"event of shape \(4, 4\)"):
        AffineCoupling((4, 4))
    with pytest.raises(ValueError, match="checkerboard"):
        AffineCoupling(4, mask="checkerboard")


def test_squeeze_inside_compose_keeps_shapes() -> None:
    flow: Bijection = Compose(Squeeze((1, 4, 4)), Squeeze((4, 2, 2)))
    assert flow.latent_shape == (16, 1, 1)
