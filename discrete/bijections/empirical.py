"""The empirical CDF of each feature with exponential tails, then the normal quantile: no parameters, no root search."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from core.rng import Rng
from core.shapes import features_first
from discrete.bijection import Bijection, Context, Direction, Events, Mapped
from discrete.bijections.gaussianization import checked_std, feature_quantiles
from discrete.bijections.quantiles import choose, log_hazard, log_ndtr, lower_quantile


class EmpiricalGaussianization(Bijection):
    """z = Φ⁻¹(F(x)) of each feature, F straight between M knots and exponential beyond: log|det| = Σ log f - log φ(z).

    F is (j + ½)/M at knot q_j, j = 0..M-1. Below q_0, log F falls as (x - q_0)/τ, with τ = (q_1 - q_0)/log 3, so that
    the same exponential would pass through q_1; above q_{M-1}, log(1 - F) likewise. The density is proper, and positive
    everywhere, with a step at each knot. Both directions are closed forms. The knots are buffers, set by `fit`; they
    start on the quantiles of N(0, 1).

    References:
        Laparra, Camps-Valls, Malo, "Iterative Gaussianization: from ICA to random rotations", 2011, section II.

    Checked by tests/contracts/bijections.py and tests/discrete/test_rbig.py.

    Args:
        event_shape: shape of one event.
        knots: number M, 2 or more.

    Raises:
        ValueError: fewer than 2 knots.

    Example:
        >>> layer = EmpiricalGaussianization(1, knots=100)
        >>> layer.fit(torch.arange(1000.0)[:, None])
        >>> z, _ = layer(torch.tensor([[499.5], [999.0]]))
        >>> [round(v, 2) for v in z.flatten().tolist()]
        [0.0, 2.76]
    """

    forward_direction = inverse_direction = Direction(0)
    knots: Tensor

    def __init__(self, event_shape: int | Sequence[int], *, knots: int = 100) -> None:
        super().__init__(event_shape)
        if knots < 2:
            raise ValueError(f"an empirical CDF needs 2 knots or more, but has {knots}.")
        start = torch.special.ndtri(_levels(knots, torch.empty(0)))
        columns = start.reshape(-1, *(1 for _ in self.event_shape)) * torch.ones(self.event_shape)
        self.register_buffer("knots", columns)

    @torch.no_grad()
    def fit(self, x: Events) -> None:
        """Puts the knots on the quantiles of some rows.

        Args:
            x: 2 rows or more.

        Raises:
            ValueError: a feature that is constant, or fewer than 2 rows.

        Note:
            Knots are kept apart by 1/1000 of a feature's range over M: values that repeat have no density.
        """
        checked_std(x)
        q = feature_quantiles(x, _levels(len(self.knots), x))
        least = 1e-3 * (x.amax(0) - x.amin(0)) / len(q)
        self.knots.copy_(torch.cat([q[:1], q[:1] + torch.maximum(q.diff(dim=0), least).cumsum(0)]))

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and log|det dz/dx|."""
        knots, columns, M = features_first(self.knots), features_first(x), len(self.knots)
        i = torch.searchsorted(knots, columns.detach()).clamp(1, M - 1) - 1
        left, width = knots.gather(1, i), knots.diff(dim=1).gather(1, i)
        place = i + ((columns - left) / width).clamp(0, 1)
        lower = (2 * place <= M - 1).to(x.dtype)
        near, tau = _ends(knots, lower)
        log_p = ((choose(lower, place, M - 1 - place) + 0.5) / M).log()
        excess = ((2 * lower - 1) * (near - columns) / tau).clamp(min=0)
        z, log_lam = lower_quantile(log_p - excess)
        log_derivative = _log_rate(log_p, excess, M * width, tau) - log_lam
        return _rows(z * (2 * lower - 1), x), log_derivative.sum(0)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and log|det dx/dz|."""
        knots, columns, M = features_first(self.knots), features_first(z), len(self.knots)
        lower = (columns <= 0).to(z.dtype)
        zeta = columns * (2 * lower - 1)
        log_p = log_ndtr(zeta)
        excess = (math.log(0.5 / M) - log_p).clamp(min=0)
        place = (log_p.exp() * M - 0.5).clamp(min=0)
        place = choose(lower, place, M - 1 - place)
        i = place.detach().long().clamp(0, M - 2)
        left, width = knots.gather(1, i), knots.diff(dim=1).gather(1, i)
        _, tau = _ends(knots, lower)
        x = left + (place - i) * width - (2 * lower - 1) * tau * excess
        log_derivative = log_hazard(zeta, log_p) - _log_rate(log_p + excess, excess, M * width, tau)
        return _rows(x, z), log_derivative.sum(0)


def _levels(count: int, like: Tensor) -> Tensor:
    return (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) / count


def _rows(columns: Tensor, like: Tensor) -> Tensor:
    return columns.T.reshape(like.shape)


def _ends(knots: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
    """The outermost knot on each side asked for, and the τ behind it."""
    first, last = knots[:, :1], knots[:, -1:]
    taus = (knots[:, 1:2] - first) / math.log(3), (last - knots[:, -2:-1]) / math.log(3)
    return choose(lower, first, last), choose(lower, *taus)


def _log_rate(log_p: Tensor, excess: Tensor, width: Tensor, tau: Tensor) -> Tensor:
    """log f/P: 1/(M width P) between knots, 1/τ beyond them."""
    outside = (excess > 0).to(tau.dtype)
    return choose(outside, -tau.log(), -log_p - width.log())
