"""What networks on images keep, in float64: what they are told reaches every pixel, and norms are their formulas."""

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call


def every_pixel_sees_what_it_is_told(network: nn.Module, x: Tensor, told: Tensor, other: Tensor) -> None:
    """Another embedding, or another level, changes each pixel of each row, and that of one row changes that row alone.

    Args:
        network: called with (x, told).
        x: `(rows, channels, height, width)`.
        told: embeddings `(rows, features)` or indices `(rows,)`.
        other: likewise, different in every row.
    """
    before = network(x, told)
    change = (network(x, other) - before).abs().amax(1)
    assert change.min() > 1e-9, f"{int((change <= 1e-9).sum())} pixels do not see what the network is told"
    mixed = torch.cat([other[:1], told[1:]])
    torch.testing.assert_close(network(x, mixed)[1:], before[1:], rtol=1e-12, atol=1e-12)


def pixels_reach_across(network: nn.Module, x: Tensor) -> None:
    """Each corner of the image depends on each corner of the input, and not through the statistics of the norms."""
    for parent in network.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, nn.Identity())
    x = x[:1].clone().requires_grad_()
    y = network(x)
    for i in (0, -1):
        for j in (0, -1):
            (gradient,) = torch.autograd.grad(y[0, :, i, j].sum(), x, retain_graph=True)
            corners = gradient[0, :, [0, 0, -1, -1], [0, -1, 0, -1]]
            assert corners.count_nonzero() == corners.numel(), f"pixel {i, j} does not see every corner"


def instance_norm_is_the_formula(norm: nn.Module, x: Tensor, index: Tensor | None = None) -> None:
    """z_k = γ_k (x_k - μ_k)/s_k + β_k + α_k (μ_k - m)/v, a row and a channel at a time."""
    gamma, beta, alpha = (p.detach().numpy() for p in (norm.gamma, norm.beta, norm.alpha))
    z = np.empty(x.shape)
    for i, image in enumerate(x.numpy()):
        level = 0 if index is None else int(index[i])
        mu = np.array([channel.mean() for channel in image])
        m, v = mu.mean(), np.sqrt(mu.var() + 1e-5)
        for k, channel in enumerate(image):
            s = np.sqrt(channel.var() + 1e-5)
            z[i, k] = gamma[level, k] * (channel - mu[k]) / s + beta[level, k] + alpha[level, k] * (mu[k] - m) / v
    found = norm(x) if index is None else norm(x, index)
    torch.testing.assert_close(found.detach(), torch.from_numpy(z), rtol=1e-11, atol=1e-11)


def second_derivatives_are_right(network: nn.Module, x: Tensor, told: Tensor | None = None) -> None:
    """d(uᵀ ∂(wᵀ y)/∂x) along a direction of the input and all parameters: what sliced score matching descends.

    Against central differences of the first derivative.
    """
    generator = torch.Generator().manual_seed(0)
    names, values = zip(*network.named_parameters(), strict=True)
    inputs = [x, *(p.detach() for p in values)]
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    u, direction = draw(x.shape), [draw(v.shape) for v in inputs]
    given = () if told is None else (told,)

    def slope(inputs: list[Tensor]) -> Tensor:
        x, *parameters = inputs
        x.requires_grad_()
        y = functional_call(network, dict(zip(names, parameters, strict=True)), (x, *given))
        w = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).reshape(y.shape)
        (gradient,) = torch.autograd.grad((w * y).sum(), x, create_graph=True)
        return (u * gradient).sum()

    leaves = [v.clone().requires_grad_() for v in inputs]
    second = torch.autograd.grad(slope(leaves), leaves, allow_unused=True)
    found = sum((d * g).sum() for d, g in zip(direction, second, strict=True) if g is not None)
    h = 1e-7  # a deep stack of norms bends strongly
    ahead, behind = (slope([v + s * d for v, d in zip(inputs, direction, strict=True)]) for s in (h, -h))
    torch.testing.assert_close(found, (ahead - behind) / (2 * h), rtol=1e-4, atol=1e-4)
