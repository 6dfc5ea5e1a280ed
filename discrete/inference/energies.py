"""The four test energies of Rezende and Mohamed: unnormalized densities on the plane, two modes and bent valleys."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

EDGE, WALL = 4.0, 0.4  # where the wall begins, and its width

Points = Float[Tensor, "*batch 2"]
Values = Float[Tensor, "*batch"]


def ring(z: Points) -> Values:
    """U₁ = ½ ((|z| - 2)/0.4)² - log(exp(-½ ((z₁ - 2)/0.6)²) + exp(-½ ((z₁ + 2)/0.6)²))."""
    z1 = z[..., 0]
    sides = torch.logaddexp(_parabola(z1 - 2, 0.6), _parabola(z1 + 2, 0.6))
    return -_parabola(torch.linalg.vector_norm(z, dim=-1) - 2, 0.4) - sides


def sine(z: Points) -> Values:
    """U₂ = ½ ((z₂ - w₁)/0.4)², w₁ = sin(2π z₁/4)."""
    return -_parabola(_above_sine(z), 0.4)


def split_sine(z: Points) -> Values:
    """U₃ = -log(exp(-½ ((z₂ - w₁)/0.35)²) + exp(-½ ((z₂ - w₁ + w₂)/0.35)²)), w₂ = 3 exp(-½ ((z₁ - 1)/0.6)²)."""
    w2 = 3 * _parabola(z[..., 0] - 1, 0.6).exp()
    v = _above_sine(z)
    return -torch.logaddexp(_parabola(v, 0.35), _parabola(v + w2, 0.35))


def forked_sine(z: Points) -> Values:
    """U₄ = -log(exp(-½ ((z₂ - w₁)/0.4)²) + exp(-½ ((z₂ - w₁ + w₃)/0.35)²)), w₃ = 3 σ((z₁ - 1)/0.3)."""
    w3 = 3 * torch.sigmoid((z[..., 0] - 1) / 0.3)
    v = _above_sine(z)
    return -torch.logaddexp(_parabola(v, 0.4), _parabola(v + w3, 0.35))


@dataclass(frozen=True)
class Energy:
    """log p̃(z) = -U(z) - ½ ((|z₁| - 4)₊/0.4)²: an energy of the paper inside a wall, where it needs one.

    Along z₁ the energies U₂, U₃ and U₄ go on for ever, so that exp(-U) has no integral: the paper shows them on
    [-4, 4]². Beyond |z₁| = 4 a Gaussian flank makes them densities; U₁ needs none.

    References:
        Rezende and Mohamed, "Variational inference with normalizing flows", 2015, table 1 and figure 3.

    Checked by tests/discrete/inference/test_elbo.py.

    Attributes:
        potential: U, `(*batch, 2)` to `(*batch,)`.
        log_z: log Z = log ∫ p̃ by quadrature, nats, to all digits given. U₂ to U₄ are Gaussian in z₂ and have
            Z = √(2π) σ (8 + 0.4 √(2π)), σ = 0.4, 0.7 and 0.75 the sum of their widths.
        wall: strength of the flank, 1, or 0 for none.
    """

    potential: Callable[[Tensor], Tensor]
    log_z: float
    wall: float = 1.0

    def log_density(self, z: Points) -> Values:
        """log p̃(z), up to log_z nats."""
        return self.wall * _parabola(F.relu(z[..., 0].abs() - EDGE), WALL) - self.potential(z)

    def log_prob(self, z: Points) -> Values:
        """log p(z) = log p̃(z) - log Z, nats."""
        return self.log_density(z) - self.log_z


ENERGIES: dict[str, Energy] = {
    "U1": Energy(ring, 1.877501626110, wall=0.0),
    "U2": Energy(sine, 2.200166925267),
    "U3": Energy(split_sine, 2.759782713203),
    "U4": Energy(forked_sine, 2.828775584690),
}


def _above_sine(z: Tensor) -> Tensor:
    return z[..., 1] - torch.sin(2 * math.pi * z[..., 0] / 4)


def _parabola(distance: Tensor, width: float) -> Tensor:
    """-½ (distance/width)²."""
    return -0.5 * (distance / width).square()
