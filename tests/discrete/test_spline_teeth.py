"""The contracts of transformers bite: each passes the spline and rejects it with one thing wrong."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from contracts import transformers
from helpers import Tooth, normal, rng
from torch import Tensor

from discrete.bijections.spline import Bin, SplineTransformer
from discrete.bijections.transformers import Transformer

B = 3.0
X, THETA = 2 * normal(500, (4,), rng(0)), normal(500, (4, 23), rng(1))
ENDS = torch.tensor([-B, B], dtype=torch.float64).expand(20, 2)
FAR = torch.tensor([-1e6, 1e6], dtype=torch.float64).expand(20, 2)
SOME = THETA[:20, :2]
EXTREME = 50 * normal(12000, (4, 23), rng(2)).float()
WIDE = 3 * normal(12000, (4,), rng(3)).float()
EVEN = torch.cat([torch.zeros(20, 7, 8), normal(20, (7, 15), rng(4))], -1).double()  # knots at multiples of 2B/8
INNER = torch.linspace(-B, B, 9, dtype=torch.float64)[1:-1].expand(20, 7)


class WithoutSquare(Bin):
    """s for s² in the numerator of eq. 5."""

    def evaluate(self, xi: Tensor) -> tuple[Tensor, Tensor]:
        eta, log_derivative = super().evaluate(xi)
        return eta, log_derivative - self.s.log()


class HeightForWidth(Bin):
    """dη/dξ scaled by w/h where h/w belongs, in the log-derivative alone."""

    def evaluate(self, xi: Tensor) -> tuple[Tensor, Tensor]:
        eta, log_derivative = super().evaluate(xi)
        return eta, log_derivative + 2 * (self.w / self.h).log()


def swapped(x: Tensor, y: Tensor, w: Tensor, h: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> Bin:
    """The derivative of the left end at the right one, in both directions alike."""
    return Bin(x, y, w, h, s, d1, d0)


class TextbookRoot(Bin):
    """2c / (-b - √(b² - 4ac)) with the discriminant as printed, and clamped at 0."""

    def solve(self, eta: Tensor) -> Tensor:
        curvature = self.d0 + self.d1 - 2 * self.s
        a, b, c = self.s - self.d0 + eta * curvature, self.d0 - eta * curvature, -self.s * eta
        return 2 * c / (-b - torch.sqrt(self.discriminant(a, b, c)))

    def discriminant(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return (b * b - 4 * a * c).clamp(min=0)


class UnclampedRoot(TextbookRoot):
    def discriminant(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return b * b - 4 * a * c


class OtherRoot(Bin):
    """The second root of eq. 6-8, r with the opposite sign."""

    def solve(self, eta: Tensor) -> Tensor:
        return 2 * self.s * eta / (2 * self.s + 1e-3) - super().solve(eta)


class Rebinned(SplineTransformer):
    """The spline with another arithmetic inside a bin."""

    def __init__(self, arithmetic: Callable[..., Bin]) -> None:
        super().__init__()
        self.arithmetic = arithmetic

    def _bin(self, value: Tensor, theta: Tensor, *, axis: int) -> Bin:
        return self.arithmetic(*super()._bin(value, theta, axis=axis))


class SearchesForward(SplineTransformer):
    """The inverse looks z up among the knots of x."""

    def _bin(self, value: Tensor, theta: Tensor, *, axis: int) -> Bin:
        return super()._bin(value, theta, axis=0)


class WithoutOffset(SplineTransformer):
    """δ = softplus(u), log 2 at u = 0 and at the ends of the box."""

    def _derivative(self, u: Tensor) -> Tensor:
        return self.min_derivative + torch.nn.functional.softplus(u)


class SteepTails(SplineTransformer):
    """A log-derivative of 0.1 where the map is the identity."""

    def _with_tails(self, x: Tensor, z: Tensor, log_derivative: Tensor) -> tuple[Tensor, Tensor]:
        z, log_derivative = super()._with_tails(x, z, log_derivative)
        return z, torch.where(x.abs() > self.bound, 0.1, log_derivative)


class FlatTails(SplineTransformer):
    """The value clamped to the box in place of the tails."""

    def _with_tails(self, x: Tensor, z: Tensor, log_derivative: Tensor) -> tuple[Tensor, Tensor]:
        return z, log_derivative


class ForwardSign(SplineTransformer):
    """log dz/dx as the second output of the inverse."""

    def inverse(self, z: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        x, log_derivative = super().inverse(z, theta)
        return x, -log_derivative


class Unboxed(SplineTransformer):
    """Tails selected after the arithmetic of the last bin ran on values far outside of it."""

    def inverse(self, z: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        at = self._bin(z, theta, axis=1)
        xi = at.solve((z - at.y) / at.h)
        return self._with_tails(z, at.x + at.w * xi, -at.evaluate(xi)[1])


FORWARD = partial(transformers.forward_log_derivative_is_that_of_autograd, x=X, theta=THETA)
INVERSE = partial(transformers.inverse_log_derivative_is_that_of_autograd, z=X, theta=THETA)
ROUND_TRIP = partial(transformers.round_trips, x=X, theta=THETA)
EXACT = partial(transformers.round_trips_up_to_rounding, x=WIDE, theta=EXTREME)
SMOOTH = partial(transformers.derivative_is_continuous, x=INNER, theta=EVEN)
SMOOTH_ENDS = partial(transformers.derivative_is_continuous, x=ENDS, theta=SOME)
IDENTITY = partial(transformers.is_the_identity, x=X, theta=torch.zeros_like(THETA), tolerance=1e-12)
TAILS = partial(transformers.is_the_identity, x=FAR, theta=SOME)
FINITE = partial(transformers.gradients_are_finite, x=FAR, theta=SOME)
GROWING = torch.linspace(-4, 4, 500, dtype=torch.float64)[:, None].expand(-1, 4)
GROWS = partial(transformers.grows, x=GROWING, theta=THETA[:1].expand(500, -1, -1))

TEETH: dict[str, tuple[Callable[[Transformer], None], Callable[[], Transformer]]] = {
    "numerator without its square": (FORWARD, partial(Rebinned, WithoutSquare)),
    "heights for widths": (FORWARD, partial(Rebinned, HeightForWidth)),
    "numerator without its square, backwards": (INVERSE, partial(Rebinned, WithoutSquare)),
    "forward sign in the inverse": (INVERSE, ForwardSign),
    "kink at the knots": (SMOOTH, partial(Rebinned, swapped)),
    "z looked up among the knots of x": (ROUND_TRIP, SearchesForward),
    "the other root": (GROWS, partial(Rebinned, OtherRoot)),
    "flat tails": (GROWS, FlatTails),
    "flat tails, values": (TAILS, FlatTails),
    "discriminant below 0": (EXACT, partial(Rebinned, UnclampedRoot)),
    "root that cancels": (EXACT, partial(Rebinned, TextbookRoot)),
    "softplus without its offset": (IDENTITY, WithoutOffset),
    "kink at the ends of the box": (SMOOTH_ENDS, WithoutOffset),
    "log-derivative in the tails": (TAILS, SteepTails),
    "arithmetic outside the box": (FINITE, Unboxed),
}


@pytest.mark.parametrize("name", TEETH)
def test_spline(name: str) -> None:
    contract, wrong = TEETH[name]
    Tooth(contract, SplineTransformer, wrong).bites()


def test_the_discriminant_as_printed_is_negative_in_float32() -> None:
    """NaN for want of its clamp; the sum of squares needs none."""
    for wrong, nan in ((UnclampedRoot, True), (TextbookRoot, False), (Bin, False)):
        spline = Rebinned(wrong)
        assert spline.inverse(spline.forward(WIDE, EXTREME)[0], EXTREME)[0].isnan().any() == nan
