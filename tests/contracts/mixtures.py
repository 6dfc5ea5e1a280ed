"""What the Gaussianization of a mixture keeps. Plain functions; each raises AssertionError where a claim is broken."""

from collections.abc import Callable

import mpmath
import numpy as np
import torch
from helpers import rng
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from discrete.bijections.transformers import Transformer


def mixture(theta: Tensor, components: int = 8, bound: float = 3.0) -> MixtureSameFamily:
    """The law that θ stands for, by definition, in float64: w, μ, s start on numpy's Gauss-Hermite rule."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(components))
    weights = weights / weights.sum()
    logits, mu, a = theta.double().split(components, -1)
    scale = torch.sqrt(1 - (weights * nodes**2).sum() / 4) * torch.exp(bound * torch.tanh(a / bound))
    return MixtureSameFamily(Categorical(logits=logits + weights.log()), Normal(mu + nodes / 2, scale))


def density_is_that_of_the_mixture(
    transformer: Transformer, x: Tensor, theta: Tensor, components: int = 8, *, tolerance: float = 1e-12
) -> None:
    """log φ(z) + log dz/dx = log Σ w_k N(x; μ_k, s_k²); `tolerance` is relative above 1."""
    z, log_derivative = transformer.forward(x, theta)
    log_prob = log_normal(z) + log_derivative
    expected = mixture(theta, components).log_prob(x.double())
    torch.testing.assert_close(log_prob.double(), expected, rtol=tolerance, atol=tolerance)


def quantile_is_exact(quantile: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """z from the rounded log Φ(z) to two roundings: 0 to -60 and far beyond, in every branch and where they meet."""
    z = -torch.cat([torch.linspace(0, 60, 121), torch.linspace(12, 13, 21), torch.logspace(1.8, 5, 10)]).to(dtype)
    with mpmath.workdps(40):
        log_p = [float(mpmath.log(mpmath.ncdf(v))) for v in z.tolist()]
    tolerance = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        quantile(torch.tensor(log_p, dtype=torch.float64).to(dtype)), z, rtol=tolerance, atol=tolerance
    )


def components_part(transformer: Transformer) -> None:
    """From θ = 0, two far modes of mean 0 and variance 1 are told apart within 200 steps."""
    theta = torch.zeros(transformer.parameters_per_feature, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=1e-2)
    generator = rng(5)
    for _ in range(200):
        modes = 1.9 * torch.randint(0, 2, (128, 1), generator=generator) - 0.95
        x = modes + 0.3 * torch.randn(128, 1, generator=generator)
        z, log_derivative = transformer.forward(x, theta.expand(128, 1, -1))
        loss = -(log_normal(z) + log_derivative).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.1  # 0.91 nats is the entropy, 1.42 the best that one Gaussian reaches


def log_normal(z: Tensor) -> Tensor:
    return Normal(0.0, 1.0, validate_args=False).log_prob(z)
