"""The contracts of Gaussianizations bite: each passes what is right and rejects it with one thing wrong."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from contracts import bijections, gaussianizations
from helpers import Tooth, normal, perturb, rng
from torch import Tensor

from core import StandardNormal
from discrete import Bijection, Compose, EmpiricalGaussianization, Flow, MixtureGaussianization, Rotation
from discrete.bijection import Mapped
from discrete.bijections import empirical, logistic_mixture
from discrete.bijections.logistic_mixture import LogisticMixture
from discrete.bijections.quantile_table import QuantileTable
from discrete.bijections.quantiles import log_normal, ndtri_exp

X = torch.cat([scale * normal(100, (3,), rng(0)) for scale in (1, 10, 40)])
NEAR = normal(4, (3,), rng(1))
LINE = torch.linspace(-40, 40, 8001, dtype=torch.float64)[:, None].repeat(1, 3)


class Tampered(MixtureGaussianization):
    """The map of a mixture with another arithmetic."""

    def __init__(self, change: Callable[[Tensor, Tensor, Tensor], LogisticMixture]) -> None:
        super().__init__(3, components=4)
        self.change = change

    def mixture(self) -> LogisticMixture:
        return self.change(*super().mixture())


def unnormalized(log_w: Tensor, mu: Tensor, log_s: Tensor) -> LogisticMixture:
    return LogisticMixture(log_w + 0.1, mu, log_s)


def logits_for_logs(log_w: Tensor, mu: Tensor, log_s: Tensor) -> LogisticMixture:
    return LogisticMixture(log_w.softmax(0), mu, log_s)


def scale_inverted(log_w: Tensor, mu: Tensor, log_s: Tensor) -> LogisticMixture:
    return LogisticMixture(log_w, mu, -log_s)


class LowerTailOnly(LogisticMixture):
    """log F above the median too, where it is 0 to all digits."""

    def tail(self, x: Tensor, lower: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return super().tail(x, torch.ones_like(x))


class DensityOverOtherTail(LogisticMixture):
    """log f/(1 - P) for log f/P."""

    def gaussianize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_derivative = super().gaussianize(x)
        log_p = self.tail(x)[1]
        return z, log_derivative + log_p - torch.log1p(-log_p.exp())


class WithoutBaseDensity(LogisticMixture):
    """log dz/dx = log f(x)."""

    def gaussianize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_derivative = super().gaussianize(x)
        return z, log_derivative + log_normal(z)


class Clamped(LogisticMixture):
    """F kept within [1e-6, 1 - 1e-6], as in zuko."""

    def tail(self, x: Tensor, lower: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        side, log_p, log_rate = super().tail(x, lower)
        return side, log_p.clamp(min=math.log(1e-6)), log_rate


class LeadingOrder(LogisticMixture):
    """-√(-2 log F) below F = 5e-8, as in the code of the paper."""

    def gaussianize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_derivative = super().gaussianize(x)
        lower, log_p, _ = self.tail(x)
        far = -torch.sqrt(-2 * log_p) * (2 * lower - 1)
        return torch.where(log_p < math.log(5e-8), far, z), log_derivative


class ForwardSign(LogisticMixture):
    """log dz/dx as the second output of the inverse."""

    def quantile(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, log_derivative = super().quantile(z)
        return x, -log_derivative


class Detached(LogisticMixture):
    """The root of the search without its derivative."""

    def quantile(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.search(z)[0].detach() + 0 * z, super().quantile(z)[1]


class Coarse(LogisticMixture):
    """Twenty halvings of ±100, as a search within fixed walls does."""

    def quantile(self, z: Tensor) -> tuple[Tensor, Tensor]:
        low, high = torch.full_like(z, -100.0), torch.full_like(z, 100.0)
        for _ in range(20):
            x = (low + high) / 2
            above = self.gaussianize(x)[0] > z
            low, high = torch.where(above, low, x), torch.where(above, x, high)
        return x, -self.gaussianize(x)[1]


class WithoutShift(LogisticMixture):
    """Sums over components that underflow far from all of them."""

    def tail(self, x: Tensor, lower: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        u = (x - self.mu) * torch.exp(-self.log_s)
        w, left, right = self.log_w.exp(), torch.sigmoid(u), torch.sigmoid(-u)
        P, Q, f = (w * left).sum(0), (w * right).sum(0), (w * torch.exp(-self.log_s) * left * right).sum(0)
        lower = (P <= Q).to(P.dtype) if lower is None else lower
        log_p = torch.lerp(Q, P, lower).log()
        return lower, log_p, f.log() - log_p


def right() -> MixtureGaussianization:
    return perturb(MixtureGaussianization(3, components=4), rng(2), std=0.5)


def wrong(change: Callable[[Tensor, Tensor, Tensor], LogisticMixture]) -> MixtureGaussianization:
    return perturb(Tampered(change), rng(2), std=0.5)


def single(layer: MixtureGaussianization) -> None:
    gaussianizations.density_is_that_of_the_mixtures(layer.float(), 3 * X.float(), tolerance=1e-5)


DENSITY = partial(gaussianizations.density_is_that_of_the_mixtures, x=X, tolerance=1e-12)
FORWARD = partial(bijections.forward_log_det_is_that_of_the_jacobian, x=NEAR)
INVERSE = partial(bijections.inverse_log_det_is_that_of_the_jacobian, z=NEAR)
LINEAR = partial(gaussianizations.increases_without_a_jump, x=LINE)
ROUND_TRIP = partial(gaussianizations.round_trips_up_to_rounding, x=LINE[::40])

TEETH: dict[str, tuple[Callable[[MixtureGaussianization], None], Callable[..., LogisticMixture]]] = {
    "weights that do not sum to 1": (DENSITY, unnormalized),
    "weights for their logs": (DENSITY, logits_for_logs),
    "scale inverted": (DENSITY, scale_inverted),
    "lower tail above the median": (LINEAR, LowerTailOnly),
    "density over the other tail": (DENSITY, DensityOverOtherTail),
    "without -log φ(z)": (FORWARD, WithoutBaseDensity),
    "without -log φ(z), density": (DENSITY, WithoutBaseDensity),
    "quantile clamped at 1e-6": (LINEAR, Clamped),
    "quantile clamped at 1e-6, density": (DENSITY, Clamped),
    "a root too coarse": (ROUND_TRIP, Coarse),
    "leading order of the quantile": (LINEAR, LeadingOrder),
    "leading order of the quantile, density": (DENSITY, LeadingOrder),
    "forward sign in the inverse": (INVERSE, ForwardSign),
    "a root without derivative": (INVERSE, Detached),
    "tails that underflow": (single, WithoutShift),
}


@pytest.mark.parametrize("name", TEETH)
def test_mixture(name: str) -> None:
    contract, change = TEETH[name]
    Tooth(contract, right, partial(wrong, change)).bites()


TABLES: dict[str, Callable[[QuantileTable], dict[str, object]]] = {
    "a coefficient off": lambda table: {"cubic": (*table.cubic[:2], 2 / 3 * table.cubic[2], table.cubic[3])},
    "shares of the last span": lambda table: {"per_span": table.per_span.roll(1, 1)},
    "knots of a cell counted as below it": lambda table: {"below": table.below.roll(-1, 1)},
    "cells of half the width": lambda table: {"per_z": 2 * table.per_z},
}


@pytest.mark.parametrize("name", TABLES)
def test_table(name: str) -> None:
    def wrong(x: Tensor, z: Tensor, slope: Tensor) -> QuantileTable:
        table = QuantileTable.of(x, z, slope)
        return table._replace(**TABLES[name](table))

    Tooth(gaussianizations.table_gives_back_a_cubic, lambda: QuantileTable.of, lambda: wrong).bites()


class NotUndone(Bijection):
    """A rotation whose inverse is the identity, as in the code of the paper."""

    def __init__(self, rotation: Rotation) -> None:
        super().__init__(rotation.event_shape)
        self.rotation = rotation

    def forward(self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Mapped:
        return self.rotation(x)

    def inverse(self, z: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Mapped:
        return z, z.new_zeros(z.shape[0])


class Stretched(Bijection):
    """1% longer, which a log-determinant of zero does not say."""

    def __init__(self, rotation: Rotation) -> None:
        super().__init__(rotation.event_shape)
        self.rotation = rotation

    def forward(self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Mapped:
        z, log_det = self.rotation(x)
        return 1.01 * z, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Mapped:
        return self.rotation.inverse(z / 1.01)


def rotation() -> Rotation:
    return Rotation(3, generator=rng(3)).double()


def flow(turn: Bijection) -> Flow:
    return Flow(Compose(right(), turn, right()), StandardNormal(3))


def test_rotation_is_undone() -> None:
    contract = partial(gaussianizations.samples_are_images_of_the_noise, z=NEAR, tolerance=1e-9)
    Tooth(contract, lambda: flow(rotation()), lambda: flow(NotUndone(rotation()))).bites()


def test_last_rotation() -> None:
    def contract(turn: Bijection) -> None:
        gaussianizations.last_rotation_changes_nothing(right(), NEAR, turn, tolerance=1e-12)

    Tooth(contract, rotation, lambda: Stretched(rotation())).bites()


def exponential(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[..., object]) -> Tooth:
    """Of an empirical CDF, with one function changed for the wrong one."""
    x = normal(500, (1,), rng(4))
    layer = EmpiricalGaussianization(1, knots=12).double()
    layer.fit(x)
    knots = layer.knots[:, 0]
    edges = torch.cat([knots[0] - torch.linspace(60, 0, 200), knots, knots[-1] + torch.linspace(0, 60, 200)])

    def contract(change: Callable[..., object] | None) -> None:
        with monkeypatch.context() as patched:
            if change is not None:
                patched.setattr(empirical, name, change)
            model = Flow(layer, StandardNormal(1)).double()
            gaussianizations.mass_is_one(model, edges.unique(), tolerance=1e-6)
            bijections.round_trips(layer, 3 * x, x)

    return Tooth(contract, lambda: None, lambda: change)


def test_empirical_tail_with_another_scale_in_the_density(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tails' τ twice as large in log f/P as in P."""
    log_rate = empirical._log_rate
    exponential(monkeypatch, "_log_rate", lambda p, e, w, tau: log_rate(p, e, w, 2 * tau)).bites()


def test_empirical_density_without_the_number_of_knots(monkeypatch: pytest.MonkeyPatch) -> None:
    log_rate = empirical._log_rate
    exponential(monkeypatch, "_log_rate", lambda p, e, w, tau: log_rate(p, e, w / 12, tau)).bites()


def test_empirical_levels_off_by_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """The knots on j/M: then F leaves no mass behind the first one."""
    x = normal(2000, (1,), rng(5))

    def contract(levels: Callable[[int, Tensor], Tensor]) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(empirical, "_levels", levels)
            layer = EmpiricalGaussianization(1, knots=20).double()
            layer.fit(x)
        below = (x < layer.inverse(torch.special.ndtri(torch.tensor([[0.1]], dtype=torch.float64)))[0]).double().mean()
        assert abs(below - 0.1) < 0.01

    shifted = lambda count, like: torch.arange(count, dtype=like.dtype) / count  # noqa: E731
    Tooth(contract, lambda: empirical._levels, lambda: shifted).bites()


def test_gradient_that_forgets_a_component(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hand-written backward pass, with σ(u) for 1 - 2 σ(u) in the derivative of the density."""
    backward = logistic_mixture._Tail.backward

    def contract(change: bool) -> None:
        with monkeypatch.context() as patched:
            if change:
                patched.setattr(logistic_mixture._Tail, "backward", staticmethod(scaled))
            bijections.log_det_is_differentiable(right(), NEAR)

    def scaled(ctx: object, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, dmu, ds, none = backward(ctx, *gradients)
        return dx, dw, dmu, ds + 0.01 * dmu, none

    Tooth(contract, lambda: False, lambda: True).bites()


def test_quantile_of_a_log_probability_is_needed() -> None:
    """Φ⁻¹ of the probability itself is -∞ where that underflows."""

    def contract(quantile: Callable[[Tensor], Tensor]) -> None:
        assert quantile(torch.tensor([-200.0, -2000.0])).isfinite().all()

    Tooth(contract, lambda: ndtri_exp, lambda: lambda log_p: torch.special.ndtri(log_p.exp())).bites()
