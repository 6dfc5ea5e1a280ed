"""What Gaussianizations keep. Plain functions; each raises AssertionError where a claim is broken."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from core import DensityModel, StandardNormal
from discrete import Bijection, Compose, Flow, MixtureGaussianization, Rotation
from discrete.bijections.quantile_table import QuantileTable


def log_mixture(layer: MixtureGaussianization, x: Tensor) -> Tensor:
    """Σ_d log Σ_k w_k σ'(u_dk)/s_dk by definition, in float64: log σ'(u) = -|u| - 2 log(1 + e^-|u|)."""
    x = x.double()[:, None]
    logits, mu, log_s = (p.detach().double() for p in (layer.logits, layer.means, layer.log_scales))
    log_w = torch.log_softmax(10 * torch.tanh(logits / 10), 0)
    u = ((x - mu) / log_s.exp()).abs()
    return torch.logsumexp(log_w - log_s - u - 2 * torch.log1p(torch.exp(-u)), 1).flatten(1).sum(1)


def table_gives_back_a_cubic(build: Callable[[Tensor, Tensor, Tensor], QuantileTable]) -> None:
    """x = z³ + z between knots at random distances, of which `build` gets x, z and dx/dz."""
    draws = torch.rand(560, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    knots, z = (draws[:60] + 0.5).cumsum(0) / 10 - 3, 5 * draws[60:] - 2.5
    found = build(knots**3 + knots, knots, 3 * knots.square() + 1)(z)
    torch.testing.assert_close(found, z**3 + z, rtol=0, atol=1e-11)


def density_is_that_of_the_mixtures(layer: MixtureGaussianization, x: Tensor, *, tolerance: float) -> None:
    """With a N(0, I) base log p(x) = Σ_d log f_d(x_d); `tolerance` is relative above 1."""
    with torch.no_grad():
        log_prob = Flow(layer, StandardNormal(layer.event_shape)).log_prob(x)
    torch.testing.assert_close(log_prob.double(), log_mixture(layer, x), rtol=tolerance, atol=tolerance)


def last_rotation_changes_nothing(layer: Bijection, x: Tensor, rotation: Rotation, *, tolerance: float) -> None:
    """N(0, I) is the same in all directions."""
    with torch.no_grad():
        turned = Flow(Compose(layer, rotation), StandardNormal(layer.event_shape)).log_prob(x)
        alone = Flow(layer, StandardNormal(layer.event_shape)).log_prob(x)
    torch.testing.assert_close(turned, alone, rtol=tolerance, atol=tolerance)


def increases_without_a_jump(layer: Bijection, x: Tensor, *, roundings: float = 8.0) -> None:
    """Along a fine grid every step of z is that of the trapezoidal rule on dz/dx, up to roundings of z and 1%."""
    with torch.no_grad():
        z, _ = layer(x)
    assert z.isfinite().all(), "z is not finite"
    slope = derivative(layer, x)
    assert slope.isfinite().all()
    assert (slope > 0).all(), "z does not increase"
    rule = (slope[1:] + slope[:-1]) / 2 * x.diff(dim=0)
    noise = roundings * torch.finfo(x.dtype).eps * z.abs().clamp(min=1)[1:]
    steps = z.diff(dim=0)
    assert ((steps - rule).abs() <= 0.01 * rule + noise).all(), "a step of z is not that of its derivative"
    assert (steps[rule > 1.02 * noise] > 0).all(), "z rests where floats can tell"


def derivative(layer: Bijection, x: Tensor) -> Tensor:
    """dz/dx of each feature, by autograd."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[0].sum(), x)
    return gradient


def round_trips_up_to_rounding(layer: Bijection, x: Tensor, *, roundings: float = 16.0) -> None:
    """x is found again up to its own roundings and those of z."""
    with torch.no_grad():
        z, _ = layer(x)
        back, _ = layer.inverse(z)
    eps = torch.finfo(x.dtype).eps
    allowance = roundings * eps * (x.abs().clamp(min=1) + z.abs().clamp(min=1) / derivative(layer, x))
    assert ((back - x).abs() <= allowance).all(), f"off by {(back - x).abs().max().item():g}"


def samples_are_images_of_the_noise(flow: Flow, z: Tensor, *, tolerance: float) -> None:
    """What is drawn from z goes back to z."""
    with torch.no_grad():
        torch.testing.assert_close(flow.encode(flow.decode(z)), z, rtol=tolerance, atol=tolerance)


def mass_is_one(model: DensityModel, edges: Tensor, *, tolerance: float) -> None:
    """∫ p dx = 1 in one dimension, by 64 Gauss-Legendre nodes between every two of the edges."""
    nodes, weights = _gauss_legendre(64)
    half = edges.diff() / 2
    x = (edges[:-1] + half)[:, None] + half[:, None] * nodes
    with torch.no_grad():
        p = model.log_prob(x.reshape(-1, 1)).exp().reshape(x.shape)
    mass = (p * weights * half[:, None]).sum().item()
    assert math.isclose(mass, 1, abs_tol=tolerance), f"the density integrates to {mass:.9f}"


def _gauss_legendre(count: int) -> tuple[Tensor, Tensor]:
    """From the eigenvalues of its Jacobi matrix."""
    k = torch.arange(1, count, dtype=torch.float64)
    nodes, vectors = torch.linalg.eigh(torch.diag(k / torch.sqrt(4 * k * k - 1), -1))
    return nodes, 2 * vectors[0].square()
