"""Radial flows: contraction or expansion around a point, invertible in closed form."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.rng import Rng
from discrete.bijection import Bijection, Context, Direction, Events, Mapped
from discrete.bijections.amortization import Amortization
from discrete.bijections.planar import UNIT_SOFTPLUS
from discrete.bijections.root_find import softplus


class Radial(Bijection):
    """z = x + β̂ (x - x₀)/(α + r) with r = |x - x₀|, α > 0 and β̂ = -α + softplus(β) > -α.

    With κ = α + β̂ > 0 this is z - x₀ = (x - x₀)(κ + r)/(α + r), and
    log|det| = (D-1) log((κ + r)/(α + r)) + log((r² + 2αr + ακ)/(α + r)²), sums of positive terms. With R = |z - x₀|, r
    is the positive root of r² + (κ - R) r - αR = 0: the inverse is a closed form too. Both cost O(D) a row.

    Starts at the identity, α = κ = 1, around a random point. With a context, x₀, α and β before their softplus are
    learned + linear(context) for each row, the linear part zero at first.

    References:
        Rezende and Mohamed, "Variational inference with normalizing flows", 2015, eq. 14 and appendix A.2.

    Checked by tests/contracts/bijections.py and tests/discrete/test_radial.py.

    Args:
        event_shape: shape of one event; every event is read as a vector of D values.
        context_features: width of the context, 0 for none.

    Note:
        Where β̂ > 0 mass is driven away from x₀, where β̂ < 0 drawn to it; far out the map is a shift by β̂ along the ray.

    Example:
        >>> layer = Radial(2)
        >>> z, log_det = layer(torch.zeros(3, 2))
        >>> z.abs().max().item() < 1e-6, log_det.shape
        (True, torch.Size([3]))
    """

    forward_direction = inverse_direction = Direction(0)

    def __init__(self, event_shape: int | Sequence[int], *, context_features: int = 0) -> None:
        super().__init__(event_shape)
        self.center = nn.Parameter(torch.randn(self.event_shape.numel()))
        self.alpha = nn.Parameter(torch.tensor(UNIT_SOFTPLUS))
        self.beta = nn.Parameter(torch.tensor(UNIT_SOFTPLUS))
        self.amortization = Amortization([self.center, self.alpha, self.beta], context_features=context_features)

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """In closed form."""
        center, alpha, kappa = self._rows(context)
        v = x.flatten(1) - center
        r = torch.linalg.vector_norm(v, dim=1)
        z = center + v * ((kappa + r) / (alpha + r))[:, None]
        return z.reshape(x.shape), self._log_det(r, alpha, kappa)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """By the root of the quadratic that has no cancellation."""
        center, alpha, kappa = self._rows(context)
        v = z.flatten(1) - center
        R = torch.linalg.vector_norm(v, dim=1)
        B = R - kappa
        q = (B.abs() + (B.square() + 4 * alpha * R).sqrt()) / 2
        r = torch.where(B > 0, q, alpha * R / q)
        x = center + v * ((alpha + r) / (kappa + r))[:, None]
        return x.reshape(z.shape), -self._log_det(r, alpha, kappa)

    def _rows(self, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """x₀, `(rows, D)`, α and κ, `(rows,)`; of one row where there is no context."""
        center, alpha, beta = self.amortization([self.center, self.alpha, self.beta], context)
        return center, softplus(alpha), softplus(beta)

    def _log_det(self, r: Tensor, alpha: Tensor, kappa: Tensor) -> Tensor:
        across = torch.log((kappa + r) / (alpha + r))  # D - 1 times, along the sphere
        along = torch.log((r * (r + 2 * alpha) + alpha * kappa) / (alpha + r).square())
        return (self.event_shape.numel() - 1) * across + along
