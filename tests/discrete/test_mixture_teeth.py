"""The contracts of the mixture bite: each passes what is right and rejects it with one thing wrong."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from contracts import mixtures, transformers
from helpers import Tooth, normal, rng
from torch import Tensor

from discrete.bijections.mixture import Mixture, MixtureTransformer, ndtri_exp
from discrete.bijections.transformers import Transformer

X, THETA = 2 * normal(50, (4,), rng(0)), normal(50, (4, 24), rng(1))
LINE = torch.linspace(-30, 30, 301)[:, None].expand(-1, 4)
SAME = THETA[:1].float().expand(301, -1, -1)


class Tampered(MixtureTransformer):
    """The map of another mixture than θ says, or of the same with another arithmetic."""

    def __init__(self, change: Callable[[Tensor, Tensor, Tensor], Mixture]) -> None:
        super().__init__()
        self.change = change

    def mixture(self, theta: Tensor) -> Mixture:
        return self.change(*super().mixture(theta))


def unnormalized(log_w: Tensor, mu: Tensor, log_s: Tensor) -> Mixture:
    return Mixture(log_w + 0.1, mu, log_s)


def scale_inverted(log_w: Tensor, mu: Tensor, log_s: Tensor) -> Mixture:
    return Mixture(log_w, mu, -log_s)


class WithoutBaseDensity(Mixture):
    """log dz/dx = log f(x)."""

    def gaussianize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().gaussianize(x)[0], self.log_densities(self.standardize(x)).logsumexp(0)


class WithoutScale(Mixture):
    """f = Σ w_k φ(u_k)."""

    def log_densities(self, u: Tensor) -> Tensor:
        return super().log_densities(u) + self.log_s


class TailForCDF(Mixture):
    """z = Φ⁻¹(1 - F(x))."""

    def gaussianize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_derivative = super().gaussianize(x)
        return -z, log_derivative


class LowerSideOnly(Mixture):
    """log F above the median too, where it is 0 to all digits."""

    def side(self, u: Tensor) -> Tensor:
        return torch.ones_like(u[0])


class Bisected(Mixture):
    """Fourteen halvings of the bracket."""

    def quantile(self, z: Tensor) -> tuple[Tensor, Tensor]:
        q = self.mu + self.log_s.exp() * z
        low, high = q.amin(0), q.amax(0)
        for _ in range(14):
            x = (low + high) / 2
            above = self.gaussianize(x)[0] > z
            low, high = torch.where(above, low, x), torch.where(above, x, high)
        return x, -self.gaussianize(x)[1]


class Detached(Mixture):
    """The root of the search without its derivative."""

    def quantile(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.search(z)[0].detach() + 0 * z, super().quantile(z)[1]


class ForwardSign(Mixture):
    """log dz/dx as the second output of the inverse."""

    def quantile(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, log_derivative = super().quantile(z)
        return x, -log_derivative


class OnOneSpot(MixtureTransformer):
    """All components start as N(0, 1): the identity to the last digit, and one gradient for all."""

    def __init__(self) -> None:
        super().__init__()
        self.start = [0.0] * 24


FORWARD = partial(transformers.forward_log_derivative_is_that_of_autograd, x=X, theta=THETA)
INVERSE = partial(transformers.inverse_log_derivative_is_that_of_autograd, z=X, theta=THETA)
ROUND_TRIP = partial(transformers.round_trips, x=X, theta=THETA)
GROWS = partial(transformers.grows, x=LINE, theta=SAME)
DENSITY = partial(mixtures.density_is_that_of_the_mixture, x=X, theta=THETA)
TAILS = partial(mixtures.density_is_that_of_the_mixture, x=LINE, theta=SAME, tolerance=3e-5)

TEETH: dict[str, tuple[Callable[[Transformer], None], Callable[[Tensor, Tensor, Tensor], Mixture]]] = {
    "without -log φ(z)": (FORWARD, WithoutBaseDensity),
    "without -log φ(z), density": (DENSITY, WithoutBaseDensity),
    "density without 1/s": (FORWARD, WithoutScale),
    "density without 1/s, backwards": (INVERSE, WithoutScale),
    "weights that do not sum to 1": (DENSITY, unnormalized),
    "scale inverted": (DENSITY, scale_inverted),
    "1 - F for F": (GROWS, TailForCDF),
    "one side for both": (TAILS, LowerSideOnly),
    "a root too coarse": (ROUND_TRIP, Bisected),
    "a root without derivative": (INVERSE, Detached),
    "forward sign in the inverse": (INVERSE, ForwardSign),
}


@pytest.mark.parametrize("name", TEETH)
def test_mixture(name: str) -> None:
    contract, wrong = TEETH[name]
    Tooth(contract, MixtureTransformer, partial(Tampered, wrong)).bites()


def test_components_on_one_spot_stay_together() -> None:
    Tooth(mixtures.components_part, MixtureTransformer, OnOneSpot).bites()


def linear(log_p: Tensor) -> Tensor:
    """Φ⁻¹(p), -∞ where p underflows."""
    return torch.special.ndtri(log_p.exp())


def leading_order(log_p: Tensor) -> Tensor:
    """-√(-2 log p) below p = 5e-8: a jump of half a standard deviation."""
    return torch.where(log_p < math.log(5e-8), -torch.sqrt(-2 * log_p), ndtri_exp(log_p))


@pytest.mark.parametrize("wrong", [linear, leading_order])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantile(wrong: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    Tooth(partial(mixtures.quantile_is_exact, dtype=dtype), lambda: ndtri_exp, lambda: wrong).bites()
