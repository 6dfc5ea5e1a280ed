"""The contracts of one-step solvers bite: each passes what is right and rejects what is wrong in one place."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from contracts import convergence, samplers
from helpers import Tooth, rng
from torch import Tensor
from wrong import TamperedSDE

from cflows import SDE, VPSDE, EulerMaruyama, SubVPSDE
from cflows.samplers.ancestral import AncestralSampling
from cflows.samplers.reverse_diffusion import ReverseDiffusion
from cflows.samplers.sampler import Noise, OneStepSampler, Orders
from cflows.samplers.stochastic_heun import StochasticHeun
from cflows.samplers.stochastic_runge_kutta import StochasticRungeKutta
from cflows.sde import Score, reverse_drift
from core.shapes import align

VP = VPSDE()
Contract = Callable[[OneStepSampler], None]


@dataclass(frozen=True, kw_only=True)
class Faulty(OneStepSampler):
    """Any solver's step with one fault."""

    fault: str = ""

    @property
    def orders(self) -> Orders:
        return Orders(None, None)


@dataclass(frozen=True, kw_only=True)
class Tampered(Faulty):
    """A solver that is handed something wrong."""

    inner: OneStepSampler

    def step(self, score: Score, sde: SDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        handed = {
            "drift reversed": {"sde": TamperedSDE(sde, drift=lambda x, t: -sde.drift(x, t))},
            "score reversed": {"score": lambda x, t: -score(x, t)},
            "time flipped": {"score": lambda x, t: score(x, 1 + self.t_min - t)},
            "noise doubled": {"noise": lambda x: 2 * noise(x)},
            "noise left out": {"noise": torch.zeros_like},
            "noise of the first row": {"noise": lambda x: noise(x)[:1].expand_as(x)},
            "noise centred over the rows": {"noise": lambda x: noise(x) - noise(x).mean(0)},
        }
        options = {"score": score, "sde": sde, "noise": noise} | handed.get(self.fault, {})
        moved = self.inner.step(x=x, t=t, s=s, **options)
        return moved + 0.3 * (t - s) if self.fault == "tilted" else moved


@dataclass(frozen=True, kw_only=True)
class Heun(Faulty):
    """StochasticHeun once more."""

    def step(self, score: Score, sde: SDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        dt, g_t, g_s = t - s, sde.diffusion(t), sde.diffusion(s)
        g2 = {"g at t": g_t**2, "g at s": g_s**2}
        root = (g2.get(self.fault, 0.5 * (g_t**2 + g_s**2)) * dt).sqrt()
        ε = noise(x)
        d = reverse_drift(score, sde, x, t)
        second = noise(x) if self.fault == "other noise in the second stage" else ε
        second = 0 * ε if self.fault == "second stage without noise" else second
        later = t if self.fault == "second stage at t" else s
        ahead = reverse_drift(score, sde, x - d * dt + root * second, later)
        half = 1.0 if self.fault == "without ½" else 0.5
        return x - half * (d + ahead) * dt + root * ε


@dataclass(frozen=True, kw_only=True)
class SRA1(Faulty):
    """StochasticRungeKutta once more."""

    def step(self, score: Score, sde: SDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        dt, g_t, g_s = t - s, sde.diffusion(t), sde.diffusion(s)
        first, second = noise(x), noise(x)
        sign = {"sign of ε₂ flipped": -1.0, "without ε₂": 0.0}.get(self.fault, 1.0)
        z = 0.5 * dt.sqrt() * (first + sign * second / math.sqrt(3))
        if self.fault == "without I":
            z = torch.zeros_like(z)
        if self.fault == "sign of I flipped":
            z = -z
        if self.fault == "I doubled":
            z = 2 * z
        if self.fault == "I for increasing time":  # of W from its other end
            z = dt.sqrt() * first - z
        d = reverse_drift(score, sde, x, t)
        ahead = reverse_drift(score, sde, x - 0.75 * d * dt + 1.5 * g_s * z, t - 0.75 * dt)
        one, two = (2, 1) if self.fault == "weights swapped" else (1, 2)
        if self.fault == "g swapped":
            g_t, g_s = g_s, g_t
        return x - (one * d + two * ahead) * dt / 3 + g_s * (dt.sqrt() * first - z) + g_t * z


@dataclass(frozen=True, kw_only=True)
class Ancestral(Faulty):
    """AncestralSampling and ReverseDiffusion once more, by `mean` and `variance`."""

    mean: str = "ancestral"
    variance: str = "posterior"

    def step(self, score: Score, sde: SDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        (alpha, sigma), (_, std_t), (_, std_s) = sde.transition_kernel(s, t), sde.marginal(t), sde.marginal(s)
        std = {
            "posterior": sigma * std_s / std_t,
            "transition": sigma,
            "inverted": sigma * std_t / std_s,
            "marginal": std_s,
            "squared": sigma**2,
        }[self.variance]
        step = sigma**2 * score(x, t)
        mean = {
            "ancestral": (x + step) / alpha,
            "multiplied by α": (x + step) * alpha,
            "α of x alone": x / alpha + step,
            "σ for σ²": (x + sigma * score(x, t)) / alpha,
            "reverse diffusion": (2 - alpha) * x + step,
            "forward diffusion": alpha * x + step,
        }[self.mean]
        return mean + align(std, x) * noise(x)


def weak(order: int, sde: SDE = VP, draws: int = 1) -> Contract:
    def contract(sampler: OneStepSampler) -> None:
        options = {"t_min": 0.3, "steps": (25, 50), "draws": draws, "mean": 0.7}
        samplers.weak_order_is(lambda n: replace(sampler, steps=n, t_min=0.3, denoise=False), sde, order, **options)

    return contract


def strong(order: float) -> Contract:
    def contract(sampler: OneStepSampler) -> None:
        steps = (8, 16, 32, 64)
        convergence.strong_order_is(partial(replace, sampler), VP, order, steps=steps, finest=512, excess=0.35)

    return contract


def exact_on_one_point(sampler: OneStepSampler) -> None:
    expected = samplers.marginal_moments(VP, 0.1, mean=0.7, variance=0.0)
    short = replace(sampler, steps=4, t_min=0.1, denoise=False)
    samplers.moments_are(short, VP, expected, mean=0.7, variance=0.0, draws=4)


def exact_on_normal_data(sampler: OneStepSampler) -> None:
    short = replace(sampler, steps=4, denoise=False)
    samplers.moments_are(short, VP, (0.0, 1.0), mean=0.0, variance=1.0, draws=4)


def mixture(sampler: OneStepSampler) -> None:
    samplers.reaches_a_mixture(replace(sampler, steps=30), SubVPSDE(), bias=0.05, generator=rng(1))


def rows(sampler: OneStepSampler) -> None:
    samplers.row_is_its_own(replace(sampler, steps=3), VP)


HEUN, RUNGE_KUTTA, ANCESTRAL, TRANSITION = Heun(), SRA1(), Ancestral(), Ancestral(variance="transition")
REVERSE_DIFFUSION = Ancestral(mean="reverse diffusion", variance="transition")
PAIRS: dict[str, tuple[OneStepSampler, Faulty]] = {
    "Heun": (StochasticHeun(), HEUN),
    "SRA1": (StochasticRungeKutta(), RUNGE_KUTTA),
    "ancestral": (AncestralSampling(), ANCESTRAL),
    "transition": (AncestralSampling(variance="transition"), TRANSITION),
    "reverse diffusion": (ReverseDiffusion(), REVERSE_DIFFUSION),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_broken_here_is_what_is_there(name: str) -> None:
    """Without a fault each class above moves as the solver does, so that its faults are faults of that."""
    x_T, score = torch.randn(5, 2, generator=rng(0)).double(), samplers.mixture_score(VP, samplers.modes())
    paths = [replace(sampler, steps=6, t_min=0.1)(score, VP, x_T, generator=rng(1)) for sampler in PAIRS[name]]
    torch.testing.assert_close(*paths, rtol=1e-10, atol=1e-10)


CASES: dict[str, tuple[Contract, Faulty, dict[str, str]]] = {
    **{
        f"Heun, {fault}": (weak(2, draws=2), HEUN, {"fault": fault})
        for fault in (
            "without ½",
            "other noise in the second stage",
            "second stage without noise",
            "second stage at t",
            "g at t",
            "g at s",
        )
    },
    "Heun, without ½, by its paths": (strong(1.0), HEUN, {"fault": "without ½"}),
    **{
        f"SRA1, {fault}, by its paths": (strong(1.5), RUNGE_KUTTA, {"fault": fault})
        for fault in (
            "without I",
            "sign of I flipped",
            "I doubled",
            "I for increasing time",
            "without ε₂",
            "sign of ε₂ flipped",
            "g swapped",
        )
    },
    **{
        f"SRA1, {fault}": (weak(2, draws=2), RUNGE_KUTTA, {"fault": fault})
        for fault in ("without I", "sign of I flipped", "I doubled", "weights swapped")
    },
    **{
        f"ancestral, std {variance}": (exact_on_one_point, ANCESTRAL, {"variance": variance})
        for variance in ("transition", "inverted", "marginal", "squared")
    },
    **{
        f"ancestral, {mean}": (exact_on_one_point, ANCESTRAL, {"mean": mean})
        for mean in ("multiplied by α", "α of x alone", "σ for σ²", "reverse diffusion")
    },
    "ancestral, std of the posterior": (
        exact_on_normal_data,
        TRANSITION,
        {"variance": "posterior"},
    ),
    "reverse diffusion, forward": (weak(1), REVERSE_DIFFUSION, {"mean": "forward diffusion"}),
    "reverse diffusion, σ² for σ": (weak(1), REVERSE_DIFFUSION, {"variance": "squared"}),
    "reverse diffusion, forward, by its paths": (strong(1.0), REVERSE_DIFFUSION, {"mean": "forward diffusion"}),
}


@pytest.mark.parametrize("name", CASES)
def test_formula(name: str) -> None:
    contract, right, fault = CASES[name]
    Tooth(contract, lambda: right, lambda: replace(right, **fault)).bites()


@pytest.mark.parametrize(
    "fault",
    [
        "drift reversed",
        "score reversed",
        "time flipped",
        "noise doubled",
        "noise left out",
        "noise of the first row",
        "tilted",
    ],
)
def test_mixture(fault: str) -> None:
    right = Tampered(inner=StochasticHeun(), spacing="log_snr")
    Tooth(mixture, lambda: right, lambda: replace(right, fault=fault)).bites()


@pytest.mark.parametrize("fault", ["noise of the first row", "noise centred over the rows"])
def test_rows(fault: str) -> None:
    right = Tampered(inner=EulerMaruyama())
    Tooth(rows, lambda: right, lambda: replace(right, fault=fault)).bites()


@pytest.mark.parametrize("fault", ["drift reversed", "score reversed", "time flipped", "noise doubled"])
def test_path(fault: str) -> None:
    right = Tampered(inner=EulerMaruyama())
    Tooth(strong(1.0), lambda: right, lambda: replace(right, fault=fault)).bites()


def test_clean_counts_callbacks_and_knows_what_is_random() -> None:
    noisy, mean = EulerMaruyama(steps=3), EulerMaruyama(steps=1)  # the one step of the latter is denoised
    for options in ({"steps": 2}, {"steps": 4}, {"steps": 3, "random": False}):
        Tooth(lambda o: samplers.is_clean(noisy, VP, **o), lambda: {"steps": 3}, partial(dict, options)).bites()
    samplers.is_clean(noisy, VP, steps=None)
    Tooth(lambda r: samplers.is_clean(mean, VP, steps=1, random=r), lambda: False, lambda: True).bites()
