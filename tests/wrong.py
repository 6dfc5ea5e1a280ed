"""Implementations that are wrong in one place each, for the two test_teeth.py: the contracts must reject every one."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cflows import SDE
from cflows.objectives.weightings import Weighting
from cflows.samplers.sampler import Callback, Orders, Sampler
from cflows.sde import Score
from core import LikelihoodEstimate
from core.density import DensityModel
from core.divergence import Divergence, ExactDivergence, Hutchinson, value_and_vjp
from core.shapes import align
from discrete import Bijection

Change = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # (x, y, log_det) -> (y, log_det)


def keep(x: Tensor, y: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
    return y, log_det


class Tampered(Bijection):
    """A bijection whose results are changed on the way out; kept, it is right."""

    def __init__(self, inner: Bijection, forward: Change = keep, inverse: Change = keep) -> None:
        super().__init__(inner.event_shape, latent_shape=inner.latent_shape)
        self.inner, self.changes = inner, (forward, inverse)
        self.forward_direction, self.inverse_direction = inner.forward_direction, inner.inverse_direction

    def forward(self, x: Tensor, context: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor]:
        return self.changes[0](x, *self.inner(x, context))

    def inverse(self, z: Tensor, context: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor]:
        return self.changes[1](z, *self.inner.inverse(z, context))


class Deaf(Tampered):
    """Takes a context and does not hand it on."""

    def forward(self, x: Tensor, context: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor]:
        return super().forward(x)


class Elementwise(Bijection):
    """z = x exp(s) of two features, s a parameter, with places to go wrong: extras, hidden state, detached scales."""

    def __init__(self, fault: str = "") -> None:
        super().__init__(2)
        self.s = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.fault = fault
        if fault == "unused parameter":
            self.extra = nn.Parameter(torch.ones(1))
        if fault == "lambda":
            self.rule = lambda v: v

    def _scale(self, x: Tensor) -> Tensor:
        s = self.s.detach() if self.fault == "detached" else self.s
        if self.fault == "hidden state":
            self.seen = getattr(self, "seen", x.detach().mean())
            s = s + self.seen
        if self.fault == "kept graph":
            self.seen = s * 1.0
        if self.fault == "stray tensor":
            s = s + torch.zeros(2, dtype=x.dtype)
        return s

    def forward(self, x: Tensor, context: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor]:
        s = self._scale(x)
        if self.fault == "batch statistics":
            x = x - x.mean(0)
        if self.fault == "in place":
            x.mul_(1.0000001)
        if self.fault == "requires grad":
            x.requires_grad_()
        log_det = s.sum().detach() if self.fault == "detached log-det" else s.sum()
        if self.fault == "wrong without gradients" and not torch.is_grad_enabled():
            log_det = -log_det
        return x * s.exp(), log_det.expand(len(x))

    def inverse(self, z: Tensor, context: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor]:
        return z * torch.exp(-self.s), -self.s.sum().expand(len(z))


class OffByOne(Bijection):
    """A coupling of three features in which feature 1 steers and moves as well."""

    def __init__(self, *, first_moving: int = 1) -> None:
        super().__init__(3)
        self.first, self.linear = first_moving, nn.Linear(2, 2 * (3 - first_moving))

    def _theta(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s, t = torch.tanh(self.linear(x[:, :2])).chunk(2, 1)
        return s, t

    def forward(self, x: Tensor, context: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor]:
        s, t = self._theta(x)
        return torch.cat([x[:, : self.first], x[:, self.first :] * s.exp() + t], 1), s.sum(1)

    def inverse(self, z: Tensor, context: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor]:
        s, t = self._theta(z)
        return torch.cat([z[:, : self.first], (z[:, self.first :] - t) * torch.exp(-s)], 1), -s.sum(1)


class TamperedDensity(DensityModel):
    """A density whose answers are changed on the way out."""

    def __init__(self, inner: DensityModel, **changes: Callable) -> None:
        super().__init__(inner.event_shape)
        self.double()
        self.inner, self.changes = inner, changes

    def _changed(self, name: str, value: Any) -> Any:
        return self.changes.get(name, lambda v: v)(value)

    def log_prob(self, x: Tensor, context: Tensor | None = None, **keywords: Any) -> Tensor:
        return self._changed("log_prob", self.inner.log_prob(x, context, **keywords))

    def estimate_log_prob(self, x: Tensor, context: Tensor | None = None, **keywords: Any) -> LikelihoodEstimate:
        return self._changed("estimate", self.inner.estimate_log_prob(x, context, **keywords))

    def sample(self, shape: tuple[int, ...] = (), **keywords: Any) -> Tensor:
        if "generator" in self.changes:
            keywords["generator"] = self.changes["generator"]()
        return self._changed("sample", self.inner.sample(shape, **keywords))

    def rsample_and_log_prob(self, shape: tuple[int, ...] = (), **keywords: Any) -> tuple[Tensor, Tensor]:
        return self._changed("rsample", self.inner.rsample_and_log_prob(shape, **keywords))


class TamperedSDE(SDE):
    """A process some of whose coefficients are replaced."""

    def __init__(self, inner: SDE, **replaced: Callable) -> None:
        self.inner, self.replaced = inner, replaced

    def _call(self, name: str, *arguments: Any) -> Any:
        return self.replaced.get(name, getattr(self.inner, name))(*arguments)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return self._call("drift", x, t)

    def diffusion(self, t: Tensor) -> Tensor:
        return self._call("diffusion", t)

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._call("marginal", t)

    def prior(self, event_shape: Any) -> Any:
        return self._call("prior", event_shape)

    def log_snr(self, t: Tensor) -> Tensor:
        return self._call("log_snr", t)

    def time(self, log_snr: Tensor) -> Tensor:
        return self._call("time", log_snr)

    def transition_kernel(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._call("transition_kernel", s, t)


def naive_vp_marginal(t: Tensor) -> tuple[Tensor, Tensor]:
    """√(1 - exp(-B)) without expm1."""
    b = 0.1 * t + 9.95 * t.square()
    return torch.exp(-0.5 * b), torch.sqrt(1 - torch.exp(-b))


@dataclass(frozen=True)
class TamperedSampler(Sampler):
    """Euler-Maruyama with a factor on its score term, its drift, its noise, and other faults."""

    steps: int = 100
    t_min: float = 1e-3
    drift: float = 1.0
    score: float = 1.0
    noise: float = 1.0
    fault: str = ""

    @property
    def orders(self) -> Orders:
        return Orders(1.0, 1.0)

    def __call__(
        self, score: Score, sde: SDE, x_T: Tensor, *, generator: Any = None, callback: Callback | None = None
    ) -> Tensor:
        dt, x = (1 - self.t_min) / self.steps, x_T.detach()
        generator = None if self.fault == "global generator" else generator
        for step in range(self.steps):
            t = x.new_tensor(1 - (step + (self.fault == "late time")) * dt)
            g = align(sde.diffusion(t), x)
            eps = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            root = dt if self.fault == "dt for its root" else math.sqrt(dt)
            change = (self.drift * sde.drift(x, t) - self.score * g.square() * score(x, t)) * dt
            if self.fault == "in place":
                x -= change - self.noise * g * root * eps
            else:
                x = x - change + self.noise * g * root * eps
            if callback is not None:
                callback(step, x)
        return x


@dataclass(frozen=True)
class TamperedDivergence(Divergence):
    """Another divergence whose estimates or probes are changed."""

    inner: Divergence
    estimates: Callable[[Tensor], Tensor] = lambda v: v
    probes: Callable[[Tensor], Tensor] = lambda v: v

    @property
    def exact(self) -> bool:
        return self.inner.exact

    @property
    def columns(self) -> int:
        return self.inner.columns

    def draw(self, x: Tensor, generator: Any) -> Tensor:
        return self.probes(self.inner.draw(x, generator))

    def __call__(self, field: Callable, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        value, estimates = self.inner(field, x, probes)
        return value, self.estimates(estimates)


@dataclass(frozen=True)
class SummedHutchinson(Divergence):
    """The sum over probes where their mean belongs."""

    probes: int = 4
    exact = False
    columns = 1

    def draw(self, x: Tensor, generator: Any) -> Tensor:
        return Hutchinson(probes=self.probes).draw(x, generator)

    def __call__(self, field: Callable, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        value, estimates = Hutchinson(probes=self.probes)(field, x, probes)
        return value, estimates.sum(1, keepdim=True)


@dataclass(frozen=True)
class FirstColumn(Divergence):
    """The first column of the Jacobian where its diagonal belongs."""

    exact = True
    columns = 1

    def draw(self, x: Tensor, generator: Any) -> Tensor:
        return ExactDivergence().draw(x, generator)

    def __call__(self, field: Callable, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        value, vjp = value_and_vjp(field, x)
        size = x.shape[1:].numel()
        units = torch.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:]).expand(size, *x.shape)
        return value, vjp(units).flatten(2)[:, :, 0].sum(0)[:, None]


def velocity_without_half(score: Score, sde: SDE) -> Score:
    """f - g² s: the drift of the reverse process where that of its ODE belongs."""
    return lambda x, t: sde.drift(x, t) - align(sde.diffusion(t).square(), x) * score(x, t)


@dataclass(frozen=True)
class TamperedWeighting(Weighting):
    """Times of another weighting with changed weights."""

    inner: Weighting
    weights: Callable[[Tensor], Tensor]

    def times(self, u: Tensor, sde: SDE, t_min: float) -> tuple[Tensor, Tensor]:
        t, w = self.inner.times(u, sde, t_min)
        return t, self.weights(w)


class TamperedDenoising(nn.Module):
    """E w(t) (sign σ s + ε)² with the mean over dimensions or another reduction."""

    def __init__(
        self, score: Score, sde: SDE, weighting: Weighting, *, sign: float = 1.0, reduce: str = "mean"
    ) -> None:
        super().__init__()
        self.parts, self.sign, self.reduce = (score, sde, weighting), sign, reduce

    def forward(self, batch: Tensor, *, generator: torch.Generator) -> Tensor:
        score, sde, weighting = self.parts
        u = torch.rand(len(batch), generator=generator, dtype=batch.dtype)
        t, weight = weighting.times(u, sde, 1e-5)
        eps = torch.randn(batch.shape, generator=generator, dtype=batch.dtype)
        scale, std = (align(part, batch) for part in sde.marginal(t))
        error = (self.sign * std * score(scale * batch + std * eps, t) + eps).square().flatten(1)
        return (weight * getattr(error, self.reduce)(1)).mean()


def tampered(estimate: LikelihoodEstimate, **factors: float) -> LikelihoodEstimate:
    """Fields of an estimate multiplied."""
    return replace(estimate, **{name: factor * getattr(estimate, name) for name, factor in factors.items()})
