"""Reverse diffusion, ancestral sampling, stochastic Heun and Rößler's SRA1, and the orders of all one-step solvers."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from cases import SDES
from contracts import convergence, samplers
from helpers import rng
from torch import Tensor

from cflows import SDE, VESDE, VPSDE, EulerMaruyama
from cflows.samplers.ancestral import AncestralSampling
from cflows.samplers.reverse_diffusion import ReverseDiffusion
from cflows.samplers.sampler import OneStepSampler
from cflows.samplers.stochastic_heun import StochasticHeun
from cflows.samplers.stochastic_runge_kutta import StochasticRungeKutta


class Solver(NamedTuple):
    build: Callable[..., OneStepSampler]
    draws: int  # of noise a step
    times: tuple[float, ...]  # that two steps from 1 to 0.2 ask the score at


EULER = (1.0, 0.6)
SOLVERS = {
    "euler-maruyama": Solver(EulerMaruyama, 1, EULER),
    "reverse-diffusion": Solver(ReverseDiffusion, 1, EULER),
    "ancestral": Solver(AncestralSampling, 1, EULER),
    "ancestral-transition": Solver(partial(AncestralSampling, variance="transition"), 1, EULER),
    "stochastic-heun": Solver(StochasticHeun, 1, (1.0, 0.6, 0.6, 0.2)),
    "stochastic-runge-kutta": Solver(StochasticRungeKutta, 2, (1.0, 0.7, 0.6, 0.3)),
}
MEAN, VARIANCE = 0.7, 0.4


class Line(NamedTuple):
    """A process with N(0.7, c) data in plain numbers at a time: a, g², α, σ² and the score."""

    sde: SDE
    t: float
    c: float = VARIANCE

    def coefficients(self) -> tuple[float, float, float, float]:
        t, one = torch.tensor(self.t, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        scale, std = self.sde.marginal(t)
        return self.sde.drift(one, t).item(), self.sde.diffusion(t).item() ** 2, scale.item(), std.item() ** 2

    def score(self, x: float) -> float:
        _, _, scale, square = self.coefficients()
        return -(x - scale * MEAN) / (scale**2 * self.c + square)

    def reverse_drift(self, x: float) -> float:
        a, g2, _, _ = self.coefficients()
        return a * x - g2 * self.score(x)

    def slope(self) -> float:
        return self.reverse_drift(1.0) - self.reverse_drift(0.0)


Step = tuple[Callable[[float], float], float]  # where x goes without noise, and the variance of the noise


def kernel(t: Line, s: Line) -> tuple[float, float]:
    """α_{t|s} and σ_{t|s}²."""
    (_, _, scale_t, square_t), (_, _, scale_s, square_s) = t.coefficients(), s.coefficients()
    alpha = scale_t / scale_s
    return alpha, square_t - alpha**2 * square_s


def reverse_diffusion(t: Line, s: Line) -> Step:
    alpha, square = kernel(t, s)
    return lambda x: (2 - alpha) * x + square * t.score(x), square


def ancestral(t: Line, s: Line) -> Step:
    mean, square = ancestral_transition(t, s)
    return mean, square * s.coefficients()[3] / t.coefficients()[3]


def ancestral_transition(t: Line, s: Line) -> Step:
    alpha, square = kernel(t, s)
    return lambda x: (x + square * t.score(x)) / alpha, square


def heun(t: Line, s: Line) -> Step:
    """The noise reaches x directly and through the slope of the second drift."""
    dt = t.t - s.t

    def mean(x: float) -> float:
        d = t.reverse_drift(x)
        return x - 0.5 * dt * (d + s.reverse_drift(x - d * dt))

    g2 = 0.5 * (t.coefficients()[1] + s.coefficients()[1])
    return mean, g2 * dt * (1 - 0.5 * dt * s.slope()) ** 2


def runge_kutta(t: Line, s: Line) -> Step:
    """Noise g_s ΔW + (g_t - g_s - g_s k Δt) Z, k the second drift's slope; E[ΔW²], E[ΔW Z], E[Z²] = Δt (1, ½, ⅓)."""
    dt = t.t - s.t
    between = Line(t.sde, t.t - 0.75 * dt)

    def mean(x: float) -> float:
        d = t.reverse_drift(x)
        return x - dt * (d + 2 * between.reverse_drift(x - 0.75 * dt * d)) / 3

    g_t, g_s = t.coefficients()[1] ** 0.5, s.coefficients()[1] ** 0.5
    z = g_t - g_s - g_s * between.slope() * dt
    return mean, dt * (g_s**2 + g_s * z + z**2 / 3)


STEPS: dict[str, Callable[[Line, Line], Step]] = {
    "reverse-diffusion": reverse_diffusion,
    "ancestral": ancestral,
    "ancestral-transition": ancestral_transition,
    "stochastic-heun": heun,
    "stochastic-runge-kutta": runge_kutta,
}


@pytest.mark.parametrize(("name", "denoise"), [*((name, False) for name in SDES), ("vp", True)])
@pytest.mark.parametrize("solver", STEPS)
def test_moments_follow_the_recursion(solver: str, name: str, denoise: bool) -> None:
    """Mean and variance step by step in closed form, no Monte Carlo: bias included, to ten digits."""
    sde, steps, t_min, (build, draws, _) = SDES[name][0], 8, 1e-3, SOLVERS[solver]
    dt, (location, variance) = (1 - t_min) / steps, samplers.marginal_moments(sde, 1.0, mean=MEAN, variance=VARIANCE)
    for step in range(steps):
        last = step == steps - 1
        mean, noise = STEPS[solver](Line(sde, 1 - step * dt), Line(sde, t_min if last else 1 - (step + 1) * dt))
        slope = mean(1.0) - mean(0.0)
        location, variance = mean(location), slope**2 * variance + noise * (not (denoise and last))
    sampler = build(steps=steps, t_min=t_min, denoise=denoise)
    samplers.moments_are(sampler, sde, (location, variance), mean=MEAN, variance=VARIANCE, draws=draws * steps)


@pytest.mark.parametrize("steps", [1, 4])
def test_transition_variance_is_exact_on_normal_data(steps: int) -> None:
    """Under VP each x_t is N(0, 1): E[x_s | x_t] = α x and the variance 1 - α² is that of the kernel."""
    sampler = AncestralSampling(variance="transition", steps=steps, denoise=False)
    samplers.moments_are(sampler, VPSDE(), (0.0, 1.0), mean=0.0, variance=1.0, draws=steps)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", SDES)
def test_posterior_variance_is_exact_on_one_point(name: str, steps: int) -> None:
    sde = SDES[name][0]
    expected = samplers.marginal_moments(sde, 0.1, mean=MEAN, variance=0.0)
    sampler = AncestralSampling(steps=steps, t_min=0.1, denoise=False)
    samplers.moments_are(sampler, sde, expected, mean=MEAN, variance=0.0, draws=steps)


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve"])
def test_ancestral_mean_is_the_conditional_mean(name: str) -> None:
    """E[x_s | x_t] on a mixture by quadrature over x_s, over a long step."""
    sde, data, t, s = SDES[name][0], convergence.two_modes(), torch.tensor(0.5).double(), torch.tensor(0.3).double()
    alpha, sigma = sde.transition_kernel(s, t)
    x_t, x_s = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], torch.linspace(-6, 6, 4001, dtype=torch.float64)
    log_joint = data.perturbed_log_prob(x_s[:, None], *sde.marginal(s)) - 0.5 * ((x_t - alpha * x_s) / sigma).square()
    expected = (torch.softmax(log_joint, 1) * x_s).sum(1, keepdim=True)
    found = AncestralSampling().step(samplers.mixture_score(sde, data), sde, x_t, t, s, torch.zeros_like)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_reverse_diffusion_under_ve_is_ancestral_with_the_variance_of_the_transition() -> None:
    x_T, score = 50 * torch.ones(3, 2, dtype=torch.float64), samplers.gaussian_score(VESDE(), 0.0, 1.0)
    a = ReverseDiffusion(steps=10)(score, VESDE(), x_T, generator=rng(1))
    b = AncestralSampling(steps=10, variance="transition")(score, VESDE(), x_T, generator=rng(1))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "spacing"),
    [("vp", "time"), ("vp", "log_snr"), ("vp", "karras"), ("sub-vp", "time"), ("ve-narrow", "time")],
)
@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "euler-maruyama"])
def test_weak_order(solver: str, name: str, spacing: str) -> None:
    build, draws, _ = SOLVERS[solver]

    def sampler(steps: int) -> OneStepSampler:
        return build(steps=steps, t_min=0.3, spacing=spacing, denoise=False)

    options = {"t_min": 0.3, "steps": (25, 50, 100), "draws": draws, "mean": MEAN}
    samplers.weak_order_is(sampler, SDES[name][0], build().orders.weak, **options)


@pytest.mark.parametrize(("name", "spacing"), [("vp", "time"), ("sub-vp", "karras"), ("ve-narrow", "time")])
@pytest.mark.parametrize("solver", SOLVERS)
def test_strong_order(solver: str, name: str, spacing: str) -> None:
    """Under VE the mean-square error of SRA1 is still that of its drift, of order 2, at these steps."""
    build, order = SOLVERS[solver].build, SOLVERS[solver].build().orders.strong
    excess = 0.5 if (solver, name) == ("stochastic-runge-kutta", "ve-narrow") else 0.15
    convergence.strong_order_is(build, SDES[name][0], order, spacing=spacing, excess=excess)


@pytest.mark.parametrize("solver", SOLVERS)
def test_evaluations(solver: str) -> None:
    build, _, times = SOLVERS[solver]
    seen: list[float] = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t.item())
        return -x

    build(steps=2, t_min=0.2)(score, VPSDE(), torch.zeros(2, 1, dtype=torch.float64), generator=rng(0))
    assert seen == pytest.approx(times)


@pytest.mark.parametrize("solver", SOLVERS)
def test_last_step_draws_on_request_alone(solver: str) -> None:
    x_T = torch.ones(2, 3, dtype=torch.float64)

    def run(seed: int, *, denoise: bool) -> Tensor:
        sampler = SOLVERS[solver].build(steps=1, t_min=0.5, denoise=denoise)
        return sampler(lambda x, t: -x, VPSDE(), x_T, generator=rng(seed))

    assert torch.equal(run(0, denoise=True), run(1, denoise=True))
    assert not torch.equal(run(0, denoise=False), run(1, denoise=False))


@pytest.mark.parametrize("solver", SOLVERS)
def test_runs_on_meta(solver: str) -> None:
    x = SOLVERS[solver].build(steps=2)(lambda x, t: -x, VPSDE(), torch.zeros(3, 2, device="meta"))
    assert (x.shape, x.device.type) == ((3, 2), "meta")


@pytest.mark.parametrize(("solver", "factor"), [("stochastic-heun", 480), ("stochastic-runge-kutta", 19)])
def test_narrow_data_need_steps_in_log_snr(solver: str, factor: float) -> None:
    """100 steps even in time are too long near t_min for two stages on one point; even in log-SNR they are not."""
    build, draws, _ = SOLVERS[solver]
    start, (_, target) = (samplers.marginal_moments(VPSDE(), t, mean=0.0, variance=0.0) for t in (1.0, 1e-3))
    even, log_snr = (
        samplers.exact_moments(
            build(steps=100, spacing=spacing, denoise=False), VPSDE(), variance=0.0, draws=100 * draws, start=start
        )[1]
        for spacing in ("time", "log_snr")
    )
    assert even == pytest.approx(factor * target, rel=0.03)
    assert log_snr == pytest.approx(target, rel=0.03)


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="AncestralSampling's variance is posterior or transition, not 'both'"):
        AncestralSampling.__post_init__(SimpleNamespace(variance="both"))
    with pytest.raises(ValueError, match="AncestralSampling needs 1 step or more"):
        AncestralSampling(steps=0)
