"""The monotone rational-quadratic spline with linear tails as an elementwise map."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from discrete.bijections.transformers import Elementwise, Features, Parameters, Transformer


class Bin(NamedTuple):
    """The bin of each value: its lower left corner, width w, height h, slope s = h/w, derivatives δ at its two ends."""

    x: Tensor
    y: Tensor
    w: Tensor
    h: Tensor
    s: Tensor
    d0: Tensor
    d1: Tensor

    def evaluate(self, xi: Tensor) -> tuple[Tensor, Tensor]:
        """η and log dy/dx at ξ, η and ξ in [0, 1]: eq. 4 and 5, written without a difference.

        With a = sξ + δ₀(1-ξ) and b = s(1-ξ) + δ₁ξ the denominator of both is D = ξa + (1-ξ)b, and
        η = ξa / D, dy/dx = s² (ξb + (1-ξ)a) / D².
        """
        a, b = self.s * xi + self.d0 * (1 - xi), self.s * (1 - xi) + self.d1 * xi
        D = xi * a + (1 - xi) * b
        ratio = self.s / D
        return xi * a / D, torch.log(ratio * ratio * (xi * b + (1 - xi) * a))

    def solve(self, eta: Tensor) -> Tensor:
        """ξ = (sη + (r-p)/2) / (s + r) at η: the root of eq. 6-8 in a form that keeps its digits.

        With p = δ₀(1-η) - δ₁η the discriminant is a sum of squares, r² = p² + 4s²η(1-η), and needs no clamp at 0. The
        two usual forms of the root are the odds ξ : 1-ξ = 2sη : r+p = r-p : 2s(1-η); each loses digits for one sign of
        p, their mediant for neither.
        """
        p = self.d0 * (1 - eta) - self.d1 * eta
        r = torch.sqrt(p * p + 4 * self.s * self.s * eta * (1 - eta))
        return (self.s * eta + (r - p) / 2) / (self.s + r)


class SplineTransformer(Transformer):
    """z = y_k + h_k η(ξ), ξ = (x - x_k)/w_k in the bin k of x in [-B, B]; z = x outside: identity at θ = 0.

    The knots (x_k, y_k) run from (-B, -B) to (B, B), and the derivatives δ at them, 1 at both ends, are positive: the
    map is monotone and continuously differentiable on the whole line.

    References:
        Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", 2019, eq. 4-8 and appendix A.
        Gregory, Delbourgo, "Piecewise rational quadratic interpolation to monotonic data", 1982.

    Checked by tests/discrete/test_spline.py.

    Args:
        bins: number K ≥ 2 of bins; θ holds K widths and K heights before the softmax, then K - 1 inner derivatives
            before the softplus.
        bound: B > 0.
        min_width: least width of a bin as a share of 2B, in (0, 1/K).
        min_height: least height of a bin, likewise.
        min_derivative: least derivative at a knot, in (0, 1).

    Raises:
        ValueError: a setting out of its range.

    Note:
        A bin must be wide against the rounding of B: in float32 keep `min_width` and `min_height` above 1e-5. A round
        trip loses as many digits as the steeper of dz/dx and dx/dz has.

    Example:
        >>> spline = SplineTransformer(bins=4)
        >>> z, log_derivative = spline.forward(torch.tensor([[0.3, 7.0]]), torch.zeros(1, 2, 11))
        >>> z
        tensor([[0.3000, 7.0000]])
    """

    def __init__(
        self,
        *,
        bins: int = 8,
        bound: float = 3.0,
        min_width: float = 1e-3,
        min_height: float = 1e-3,
        min_derivative: float = 1e-3,
    ) -> None:
        if bins < 2:
            raise ValueError(f"a spline needs 2 bins or more, but bins is {bins}.")
        if not 0 < bound < math.inf:
            raise ValueError(f"bound must be positive and finite, but is {bound}.")
        for name, minimum, limit in (
            ("min_width", min_width, 1 / bins),
            ("min_height", min_height, 1 / bins),
            ("min_derivative", min_derivative, 1.0),
        ):
            if not 0 < minimum < limit:
                raise ValueError(f"{name} must be positive and below {limit:g} with {bins} bins, but is {minimum}.")
        self.bins, self.bound = bins, bound
        self.min_width, self.min_height, self.min_derivative = min_width, min_height, min_derivative
        self.parameters_per_feature = 3 * bins - 1

    def forward(self, x: Features, theta: Parameters) -> Elementwise:
        """z by eq. 4 and log dz/dx by eq. 5."""
        boxed = x.clamp(-self.bound, self.bound)
        at = self._bin(boxed, theta, axis=0)
        eta, log_derivative = at.evaluate((boxed - at.x) / at.w)
        return self._with_tails(x, at.y + at.h * eta, log_derivative)

    def inverse(self, z: Features, theta: Parameters) -> Elementwise:
        """x by eq. 6-8 and log dx/dz = -log dz/dx by eq. 5."""
        boxed = z.clamp(-self.bound, self.bound)
        at = self._bin(boxed, theta, axis=1)
        xi = at.solve((boxed - at.y) / at.h)
        _, log_derivative = at.evaluate(xi)
        return self._with_tails(z, at.x + at.w * xi, -log_derivative)

    def _with_tails(self, x: Tensor, z: Tensor, log_derivative: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.abs() <= self.bound
        return torch.where(inside, z, x), torch.where(inside, log_derivative, 0.0)

    def _bin(self, value: Tensor, theta: Tensor, *, axis: int) -> Bin:
        """The bin whose side along x (axis 0) or y (axis 1) holds each value."""
        x, y, u = self._inner_knots(theta)
        k = (value >= (x, y)[axis]).sum(0, dtype=torch.int16).long()  # a sum of booleans converts them first
        inner, first, last = torch.stack([k - 1, k]).clamp(0, self.bins - 2), k == 0, k == self.bins - 1

        def ends(knots: Tensor, end: float) -> tuple[Tensor, Tensor]:
            left, right = knots.gather(0, inner)
            return torch.where(first, -end, left), torch.where(last, end, right)

        (x0, x1), (y0, y1), (u0, u1) = ends(x, self.bound), ends(y, self.bound), ends(u, 0.0)
        w, h = x1 - x0, y1 - y0
        return Bin(x0, y0, w, h, h / w, self._derivative(u0), self._derivative(u1))

    def _inner_knots(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and derivative parameter u of the K - 1 knots between the ends (±B, ±B), `(K - 1, ...)`."""
        # The knots go first, so that sums over bins run along everything else.
        widths, heights, u = theta.movedim(-1, 0).split([self.bins, self.bins, self.bins - 1])
        return self._inner(widths, self.min_width), self._inner(heights, self.min_height), u

    def _inner(self, logits: Tensor, minimum: float) -> Tensor:
        """The K - 1 knots between -B and B: sums of the sides 2B (minimum + (1 - K minimum) softmax) of the bins."""
        k = torch.arange(1, self.bins, dtype=logits.dtype, device=logits.device)
        least = (2 * self.bound * minimum * k - self.bound).reshape(-1, *[1] * (logits.ndim - 1))
        return torch.add(least, logits.softmax(0)[:-1].cumsum(0), alpha=2 * self.bound * (1 - self.bins * minimum))

    def _derivative(self, u: Tensor) -> Tensor:
        """δ > 0, and 1 at u = 0."""
        return self.min_derivative + F.softplus(u + math.log(math.expm1(1 - self.min_derivative)))
