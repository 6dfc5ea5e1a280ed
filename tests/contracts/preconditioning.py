"""What the preconditioning of a score keeps under any (α, σ), for data of variance v."""

from collections.abc import Callable

import torch
from torch import Tensor

# (net, x, scale, std, data_std) -> score
Precondition = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor, float], Tensor]

LEVELS = [(1.0, 0.05), (1.0, 5.0), (0.6, 0.8), (0.05, 1.0)]


def _levels(alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)


def zero_net_is_the_gaussian_score(precondition: Precondition, x: Tensor, *, v: float) -> None:
    """-x/(α² v + σ²)."""
    for alpha, sigma in LEVELS:
        found = precondition(torch.zeros_like, x, *_levels(alpha, sigma), v**0.5)
        torch.testing.assert_close(found, -x / (alpha**2 * v + sigma**2), rtol=1e-10, atol=1e-12)


def net_sees_unit_variance(precondition: Precondition, noise: Tensor, *, v: float) -> None:
    """Rows of variance α² v + σ² come to the network with variance 1."""
    for alpha, sigma in LEVELS:
        seen: list[Tensor] = []
        x = (alpha**2 * v + sigma**2) ** 0.5 * noise
        precondition(lambda y, seen=seen: seen.append(y) or torch.zeros_like(y), x, *_levels(alpha, sigma), v**0.5)
        torch.testing.assert_close(seen[0], noise, rtol=1e-10, atol=1e-12)


def loss_is_that_of_the_net(precondition: Precondition, noise: Tensor, *, v: float) -> None:
    """ε + σ s = (α √v/√V) (F - F*) with F* = (σ x₀/√v - α √v ε)/√V, which has mean 0 and variance 1.

    So the denoising loss is a regression of F on a target of unit variance; checked by F = F* giving s = -ε/σ.
    """
    x0, eps = v**0.5 * noise, noise.roll(1, 0)
    for alpha, sigma in LEVELS:
        root = (alpha**2 * v + sigma**2) ** 0.5
        target = (sigma * x0 / v**0.5 - alpha * v**0.5 * eps) / root
        scale, std = _levels(alpha, sigma)
        found = precondition(lambda _, target=target: target, alpha * x0 + sigma * eps, scale, std, v**0.5)
        torch.testing.assert_close(found, -eps / sigma, rtol=1e-9, atol=1e-9)
