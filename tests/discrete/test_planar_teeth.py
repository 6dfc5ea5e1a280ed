"""The contracts of planar, radial and Sylvester layers bite: each rejects one thing wrong in the right place."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from contracts import bijections, densities, modules, planar
from helpers import Tooth, normal, perturb, rng, seeded
from torch import Tensor
from wrong import Tampered

from discrete import Flow, Inverse, Planar, PlanarFlow, Radial, Sylvester
from discrete.bijections import sylvester
from discrete.bijections.root_find import LeakyReLU, Tanh, log_softplus, softplus

X, Z = 2 * normal(12, (4,), rng(0)), normal(4, (4,), rng(1))


class AnotherPlanar(Planar):
    """A planar layer with another û; log κ is that of û, or what the constraint promises."""

    def __init__(self, u_hat: Callable[[Tensor, Tensor], Tensor], *, promised: bool = False) -> None:
        super().__init__(4)
        self.rule, self.promised = u_hat, promised

    def _rows(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u_hat = self.rule(self.u, self.w)
        log_kappa = log_softplus(self.u @ self.w) if self.promised else torch.log1p(self.w @ u_hat)
        return u_hat[None], self.w[None], self.b[None], log_kappa[None]


def right(u: Tensor, w: Tensor) -> Tensor:
    return u + (softplus(-(w @ u)) - 1) * w / (w @ w)


U_HATS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "norm for its square": lambda u, w: u + (softplus(-(w @ u)) - 1) * w / w.norm(),
    "no constraint": lambda u, w: u,
    "softplus without its -1": lambda u, w: u + softplus(-(w @ u)) * w / (w @ w),
    "log of softplus": lambda u, w: u + (-1 + torch.log1p(softplus(w @ u)) - w @ u) * w / (w @ w),
    "u for w": lambda u, w: u + (softplus(-(w @ u)) - 1) * u / (w @ u),
    "sign of the correction": lambda u, w: u - (softplus(-(w @ u)) - 1) * w / (w @ w),
}


def made(build: Callable[[], Any], **parameters: float) -> Any:
    layer = perturb(seeded(build), rng(2))
    for name, value in parameters.items():
        with torch.no_grad():
            layer.get_parameter(name).mul_(value)
    return layer


@pytest.mark.parametrize("promised", [False, True])
@pytest.mark.parametrize("name", U_HATS)
def test_another_u(name: str, promised: bool) -> None:
    """Whether log κ follows the wrong û or not."""
    Tooth(
        lambda layer: planar.planar_is_the_papers(layer, X),
        partial(made, partial(AnotherPlanar, right)),
        partial(made, partial(AnotherPlanar, U_HATS[name], promised=promised)),
    ).bites()


def towards(layer: Planar, a: float) -> Planar:
    """With wᵀu = a, |w| = 1/2."""
    with torch.no_grad():
        layer.w.mul_(0.5 / layer.w.norm())
        layer.u.add_((a - layer.w @ layer.u) / (layer.w @ layer.w) * layer.w)
    return layer


STEEP = {
    "no constraint": (-3.0, U_HATS["no constraint"]),
    "norm for its square": (-20.0, U_HATS["norm for its square"]),
    "softplus by its definition": (
        800.0,
        lambda u, w: u + (torch.log(1 + torch.exp(w @ u)) - 1 - w @ u) * w / (w @ w),
    ),
}


@pytest.mark.parametrize("name", STEEP)
def test_a_map_that_turns_back_or_overflows(name: str) -> None:
    a, rule = STEEP[name]
    Tooth(
        planar.rises_along_w,
        lambda: towards(made(partial(AnotherPlanar, right, promised=True)), a),
        lambda: towards(made(partial(AnotherPlanar, rule, promised=True)), a),
    ).bites()


class OneBranch(LeakyReLU):
    """The slope of the positive side everywhere."""

    def log_slope(self, s: Tensor, log_kappa: Tensor) -> Tensor:
        return log_kappa.expand(s.shape)


class NoCoupling(LeakyReLU):
    """1 + c h' taken for h' alone below 0."""

    def log_slope(self, s: Tensor, log_kappa: Tensor) -> Tensor:
        return torch.where(s >= 0, log_kappa, math.log(0.2) + log_kappa)


class SlopeOfTanh(Tanh):
    """1 + c tanh for 1 + c tanh'."""

    def log_slope(self, s: Tensor, log_kappa: Tensor) -> Tensor:
        return torch.log1p(torch.expm1(log_kappa) * torch.tanh(s).square())


class WithoutKappa(Tanh):
    """log(tanh² s) for log g'."""

    def log_slope(self, s: Tensor, log_kappa: Tensor) -> Tensor:
        return torch.logaddexp(2 * torch.tanh(s).abs().log(), -2 * torch.cosh(s).log())


class ShortSearch(Tanh):
    """One Newton step, differentiable as it stands."""

    def root(self, y: Tensor, log_kappa: Tensor) -> Tensor:
        c = torch.expm1(log_kappa)
        s = y / (1 + c)
        return s - (s + c * s.tanh() - y) / (1 + c * (1 - s.tanh() ** 2))


class DetachedRoot(Tanh):
    """A root that does not move with κ."""

    def root(self, y: Tensor, log_kappa: Tensor) -> Tensor:
        return super().root(y, log_kappa.detach())


class ForgottenOffset(Tanh):
    """The root of s + c h(s) = y - 0.1."""

    def root(self, y: Tensor, log_kappa: Tensor) -> Tensor:
        return super().root(y - 0.1, log_kappa)


def acting(activation: object, name: str = "tanh") -> Planar:
    layer = made(partial(Planar, 4, activation=name))
    layer.activation = activation
    return layer


def round_trip(layer: Any) -> None:
    bijections.round_trips(layer, X, X)


def forward_log_det(layer: Any) -> None:
    bijections.forward_log_det_is_that_of_the_jacobian(layer, X)


def inverse_log_det(layer: Any) -> None:
    bijections.inverse_log_det_is_that_of_the_jacobian(layer, X)


def implicit(layer: Any) -> None:
    planar.inverse_has_implicit_gradients(layer, Z)


def leaky_paper(layer: Any) -> None:
    planar.planar_is_the_papers(layer, X, activation="leaky_relu")


def paper(layer: Any) -> None:
    planar.planar_is_the_papers(layer, X)


ACTIVATIONS = {
    "leaky branch, by autograd": (forward_log_det, "leaky_relu", OneBranch()),
    "leaky branch, by the paper": (leaky_paper, "leaky_relu", OneBranch()),
    "leaky branch, on the way back": (inverse_log_det, "leaky_relu", OneBranch()),
    "leaky slope without 1 - λ": (leaky_paper, "leaky_relu", NoCoupling()),
    "tanh for its slope": (paper, "tanh", SlopeOfTanh()),
    "slope without κ": (forward_log_det, "tanh", WithoutKappa()),
    "one Newton step": (round_trip, "tanh", ShortSearch()),
    "root without its derivative in κ": (implicit, "tanh", DetachedRoot()),
    "equation without its offset": (round_trip, "tanh", ForgottenOffset()),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_another_activation(name: str) -> None:
    contract, kind, wrong = ACTIVATIONS[name]
    ours = {"tanh": Tanh, "leaky_relu": LeakyReLU}[kind]
    Tooth(contract, lambda: acting(ours(), kind), lambda: acting(wrong, kind)).bites()


def root_is_exact(root: Callable[[Tensor, Tensor], Tensor]) -> None:
    planar.root_is_exact(root, torch.float64)


def test_a_search_that_stops_early() -> None:
    Tooth(root_is_exact, lambda: Tanh().root, lambda: ShortSearch().root).bites()


def test_a_root_from_the_other_end() -> None:
    """Plain Newton from s = y runs off to nowhere for a steep layer."""

    def newton(y: Tensor, log_kappa: Tensor) -> Tensor:
        c, s = torch.expm1(log_kappa), y
        for _ in range(60):
            s = s - (s + c * s.tanh() - y) / (1 + c * (1 - s.tanh() ** 2))
        return s

    Tooth(root_is_exact, lambda: Tanh().root, lambda: newton).bites()


class RowsMixed(Tanh):
    """All rows go on until the slowest is done, from a start that they share."""

    def root(self, y: Tensor, log_kappa: Tensor) -> Tensor:
        return super().root(y + 1e-9 * y.detach().amax(), log_kappa)


def test_rows_that_mix() -> None:
    Tooth(
        lambda layer: modules.rows_are_independent(lambda m, x, c: m.inverse(x, c), layer, X),
        lambda: acting(Tanh()),
        lambda: acting(RowsMixed()),
    ).bites()


class AnotherRadial(Radial):
    """Faults by name."""

    def __init__(self, fault: str = "") -> None:
        super().__init__(4)
        self.fault = fault

    def _rows(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        center, alpha, kappa = super()._rows(context)
        if self.fault == "β̂ without -α":
            kappa = kappa + alpha
        return center, alpha, kappa

    def _log_det(self, r: Tensor, alpha: Tensor, kappa: Tensor) -> Tensor:
        across, beta_hat = torch.log((kappa + r) / (alpha + r)), kappa - alpha
        h, slope = 1 / (alpha + r), -1 / (alpha + r) ** 2
        match self.fault:
            case "D for D - 1":
                return super()._log_det(r, alpha, kappa) + across
            case "h' of the wrong sign":
                return 3 * across + torch.log(1 + beta_hat * h - beta_hat * slope * r)
            case "h' without r":
                return 3 * across + torch.log(1 + beta_hat * h + beta_hat * slope)
            case "squared distance":
                return super()._log_det(r * r, alpha, kappa)
        return super()._log_det(r, alpha, kappa)

    def inverse(self, z: Tensor, context: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor]:
        if self.fault != "other root":
            return super().inverse(z, context)
        center, alpha, kappa = self._rows(context)
        R = (z - center).norm(dim=1)
        B = R - kappa
        r = (B - (B * B + 4 * alpha * R).sqrt()) / 2
        x = center + (z - center) * ((alpha + r) / (kappa + r))[:, None]
        return x, -self._log_det(r, alpha, kappa)


RADIAL = {
    "β̂ without -α": lambda layer: planar.radial_is_the_papers(layer, X),
    "D for D - 1": lambda layer: planar.radial_is_the_papers(layer, X),
    "h' of the wrong sign": forward_log_det,
    "h' without r": lambda layer: planar.radial_is_the_papers(layer, X),
    "squared distance": inverse_log_det,
    "other root": round_trip,
}


@pytest.mark.parametrize("fault", RADIAL)
def test_another_radial(fault: str) -> None:
    Tooth(RADIAL[fault], partial(made, AnotherRadial), partial(made, partial(AnotherRadial, fault))).bites()


class AnotherSylvester(Sylvester):
    """Faults by name."""

    def __init__(self, fault: str = "") -> None:
        super().__init__(4, rank=3)
        self.fault = fault

    def _rows(self, context: Tensor | None) -> tuple[Tensor, ...]:
        Q, R, R_tilde, b, log_kappa = super()._rows(context)
        match self.fault:
            case "frame not orthonormal":
                Q = self.Q[None] / 3
            case "lower triangle":
                R = R.mT
            case "diagonal without tanh":
                R = R.triu(1) + self.R.diagonal().diag_embed()[None]
            case "only one diagonal":
                log_kappa = torch.log1p(R.diagonal(dim1=1, dim2=2))
            case "sum of the diagonals":
                log_kappa = torch.log1p(R.diagonal(dim1=1, dim2=2) + R_tilde.diagonal(dim1=1, dim2=2))
        return Q, R, R_tilde, b, log_kappa

    def inverse(self, z: Tensor, context: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor]:
        if self.fault not in ("R R̃ for R̃ R", "no coupling of the scalars", "from the first row down"):
            return super().inverse(z, context)
        Q, R, R_tilde, b, log_kappa = self._rows(context)
        t = sylvester.multiply(R_tilde, sylvester.multiply(Q.mT, z)) + b
        match self.fault:
            case "R R̃ for R̃ R":
                v = sylvester.back_substitute(t, R @ R_tilde, log_kappa)
            case "no coupling of the scalars":
                v = Tanh().root(t, log_kappa)
            case _:
                v = sylvester.back_substitute(t.flip(1), (R_tilde @ R).mT.flip(1, 2), log_kappa.flip(1)).flip(1)
        x = z - sylvester.multiply(Q, sylvester.multiply(R, v.tanh()))
        return x, -Tanh().log_slope(v, log_kappa).sum(1)


def sylvester_paper(layer: Sylvester) -> None:
    planar.sylvester_is_the_papers(layer, X, sylvester.gram_schmidt(layer.Q[None].detach())[0])


SYLVESTER = {
    "frame not orthonormal": forward_log_det,
    "lower triangle": sylvester_paper,
    "diagonal without tanh": sylvester_paper,
    "only one diagonal": sylvester_paper,
    "sum of the diagonals": forward_log_det,
    "R R̃ for R̃ R": round_trip,
    "no coupling of the scalars": round_trip,
    "from the first row down": round_trip,
}


@pytest.mark.parametrize("fault", SYLVESTER)
def test_another_sylvester(fault: str) -> None:
    Tooth(SYLVESTER[fault], partial(made, AnotherSylvester), partial(made, partial(AnotherSylvester, fault))).bites()


@pytest.mark.parametrize("frame", [lambda A: A / A.norm(dim=1, keepdim=True), lambda A: torch.linalg.qr(A).R])
def test_columns_that_are_not_orthonormal(frame: Callable[[Tensor], Tensor]) -> None:
    A = normal(3, (4, 4), rng(3))
    Tooth(planar.frame_is_orthonormal, lambda: sylvester.gram_schmidt(A), lambda: frame(A)).bites()


def test_a_flow_that_cannot_score_is_seen() -> None:
    """The density of another point than the one that was drawn: off by one Newton step."""

    def flow(activation: object) -> Flow:
        model = perturb(seeded(partial(PlanarFlow, 2, layers=2)), rng(4))
        for part in model.modules():
            if isinstance(part, Planar):
                part.activation = activation
        return model

    Tooth(
        lambda model: densities.rsample_agrees(model, generator=lambda: rng(5)),
        lambda: flow(Tanh()),
        lambda: flow(ShortSearch()),
    ).bites()


def test_both_log_determinants_of_one_sign() -> None:
    Tooth(
        round_trip,
        partial(made, partial(Planar, 4)),
        lambda: Tampered(made(partial(Planar, 4)), inverse=lambda z, x, log_det: (x, -log_det)),
    ).bites()
    Tooth(
        inverse_log_det,
        lambda: Inverse(made(partial(Planar, 4))),
        lambda: Tampered(Inverse(made(partial(Planar, 4))), inverse=lambda z, x, log_det: (x, 2 * log_det)),
    ).bites()
