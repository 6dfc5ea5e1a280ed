import math

import pytest
import torch
from cases import COUPLE_ROWS, DRAW_NOTHING, SAMPLERS, SDES, callbacks, shortened
from contracts import samplers
from helpers import rng

from cflows import SDE, VPSDE, EulerMaruyama

# Relative error of the variance on N(0, c) data from N(0, 1) noise, times linspace(1, 1e-3, N) and then 0.
GOLD = {
    (1.0, 100): 0.0143,
    (1.0, 1000): 0.0014,
    (0.1, 100): 0.0184,
    (0.1, 1000): 0.0015,
    (0.01, 100): 0.1053,
    (0.01, 1000): 0.0057,
}


def coefficients(sde: SDE, t: float) -> tuple[float, float]:
    """a(t) and g(t)² of dx = a x dt + g dw."""
    time = torch.tensor(t, dtype=torch.float64)
    return sde.drift(torch.ones(1, 1, dtype=torch.float64), time).item(), sde.diffusion(time).item() ** 2


def one_step(
    sde: SDE, t: float, dt: float, moments: tuple[float, float], *, mean: float, variance: float, noise: float = 1.0
) -> tuple[float, float]:
    """Mean and variance after x ← x - (a x - g² s) Δt + g √Δt ε with s = -(x - α m)/V."""
    a, g2 = coefficients(sde, t)
    location, total = samplers.marginal_moments(sde, t, mean=mean, variance=variance)
    slope = 1 - a * dt - g2 * dt / total
    return slope * moments[0] + g2 * dt * location / total, slope**2 * moments[1] + noise * g2 * dt


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_clean(sampler: str, name: str) -> None:
    short = shortened(SAMPLERS[sampler])
    samplers.is_clean(short, SDES[name][0], steps=callbacks(short), random=sampler not in DRAW_NOTHING)


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve-narrow"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_gaussian_data(sampler: str, name: str) -> None:
    samplers.reaches_gaussian_data(
        SAMPLERS[sampler],
        SDES[name][0],
        mean=torch.tensor([0.5, -1.0], dtype=torch.float64),
        variance=torch.tensor([1.0, 0.25], dtype=torch.float64),
        rows=20_000,
        bias=0.1,
        generator=rng(0),
    )


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_mixture(sampler: str, name: str) -> None:
    samplers.reaches_a_mixture(SAMPLERS[sampler], SDES[name][0], bias=0.05, generator=rng(0))


@pytest.mark.parametrize("name", ["vp", "ve"])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in COUPLE_ROWS])
def test_rows_with_generators_of_their_own(sampler: str, name: str) -> None:
    samplers.row_is_its_own(shortened(SAMPLERS[sampler]), SDES[name][0])


@pytest.mark.parametrize("sampler", COUPLE_ROWS)
def test_coupled_rows_refuse_generators_of_their_own(sampler: str) -> None:
    with pytest.raises(TypeError, match="RowGenerators"):
        samplers.row_is_its_own(SAMPLERS[sampler], VPSDE())


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("name", SDES)
def test_moments_follow_the_recursion(name: str, denoise: bool) -> None:
    """Mean and variance of Euler-Maruyama step by step, no Monte Carlo: bias included, to ten digits."""
    sde, steps, t_min, data = SDES[name][0], 50, 1e-3, {"mean": 0.7, "variance": 0.4}
    dt = (1 - t_min) / steps
    moments = samplers.marginal_moments(sde, 1.0, **data)
    for step in range(steps):
        noise = 0.0 if denoise and step == steps - 1 else 1.0
        moments = one_step(sde, 1 - step * dt, dt, moments, noise=noise, **data)
    sampler = EulerMaruyama(steps=steps, t_min=t_min, denoise=denoise)
    samplers.moments_are(sampler, sde, moments, draws=steps, **data)


@pytest.mark.parametrize(("c", "count"), GOLD)
def test_gold_bias(c: float, count: int) -> None:
    """The published grid has its last step from 1e-3 to 0, which is taken here in closed form."""
    sampler = EulerMaruyama(steps=count - 1, t_min=1e-3, denoise=False)
    moments = samplers.exact_moments(sampler, VPSDE(), variance=c, draws=count, start=(0.0, 1.0))
    _, variance = one_step(VPSDE(), 1e-3, 1e-3, moments, mean=0.0, variance=c)
    assert variance / c - 1 == pytest.approx(GOLD[c, count], abs=6e-5)


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve-narrow"])
def test_weak_order(name: str) -> None:
    t_min = 0.3

    def build(steps: int) -> EulerMaruyama:
        return EulerMaruyama(steps=steps, t_min=t_min, denoise=False)

    samplers.weak_order_is(build, SDES[name][0], build(1).orders.weak, t_min=t_min, steps=(100, 200, 400))


def test_last_time_is_not_asked() -> None:
    """Steps start at 1 and the last one starts one step above t_min: a network never sees less."""
    seen: list[float] = []

    def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t.item())
        return -x

    EulerMaruyama(steps=4, t_min=0.2)(score, VPSDE(), torch.zeros(2, 1, dtype=torch.float64), generator=rng(0))
    assert seen == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_runs_on_meta() -> None:
    x = EulerMaruyama(steps=2)(lambda x, t: -x, VPSDE(), torch.zeros(3, 2, device="meta"))
    assert (x.shape, x.device.type) == ((3, 2), "meta")


@pytest.mark.parametrize("keywords", [{"steps": 0}, {"t_min": 1.0}, {"t_min": -0.1}])
def test_settings_that_make_no_sense(keywords: dict) -> None:
    with pytest.raises(ValueError, match="1 step or more and t_min within"):
        EulerMaruyama(**keywords)


def test_noise_of_the_last_step_is_left_out_on_request() -> None:
    """Denoised and not differ by g √Δt ε of the last step alone."""
    x_T = torch.zeros(5000, 1, dtype=torch.float64)
    drawn, mean = (
        EulerMaruyama(steps=10, t_min=0.1, denoise=denoise)(lambda x, t: -x, VPSDE(), x_T, generator=rng(1))
        for denoise in (False, True)
    )
    g2 = coefficients(VPSDE(), 0.19)[1]
    assert (drawn - mean).std().item() == pytest.approx(math.sqrt(g2 * 0.09), rel=0.05)
