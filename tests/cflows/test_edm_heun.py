import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from cases import COVARIANCES, MEANS, SDES, WEIGHTS
from contracts import deterministic, samplers
from helpers import rng
from torch import Tensor

from cflows import VESDE, VPSDE
from cflows.samplers import edm_heun
from cflows.samplers.edm_heun import EDMHeun
from cflows.time_grid import time_grid
from core import GaussianMixture

PLANE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)
NAMES = ["vp", "sub-vp", "ve-narrow"]
SPACINGS = ["karras", "log_snr", "quadratic", "time"]
# Noise levels of 18 steps from 80 to .002, as published; the last step leads from .002 to 0.
LEVELS = [80.0, 57.585985, 40.785574, 28.374585, 19.352453, 12.910082, 8.400935, 5.315195, 3.256822]
LEVELS += [1.92334, 1.088171, 0.585348, 0.296442, 0.139516, 0.059947, 0.022935, 0.007528, 0.002]


@pytest.mark.parametrize(
    ("name", "spacing"), [*((name, "karras") for name in NAMES), *(("vp", s) for s in SPACINGS[1:])]
)
def test_order_on_a_mixture(name: str, spacing: str) -> None:
    build = partial(EDMHeun, spacing=spacing, t_min=0.02, denoise=False)
    deterministic.order_is(lambda n: build(steps=n), SDES[name][0], 2, t_min=0.02, mixture=PLANE, steps=(40, 80))


def test_order_on_a_rough_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edm_heun, "time_grid", deterministic.rough_grid)
    build = partial(EDMHeun, t_min=0.02, denoise=False)
    deterministic.order_is(lambda n: build(steps=n), VPSDE(), 2, t_min=0.02, mixture=PLANE, steps=(40, 80))


@pytest.mark.parametrize("name", [*NAMES, "cosine-vp", "affine-edm"])
def test_order_on_gaussian_data(name: str) -> None:
    build = partial(EDMHeun, t_min=1e-3, denoise=False)
    deterministic.order_is(lambda n: build(steps=n), SDES[name][0], 2, t_min=1e-3, steps=(40, 80))


@pytest.mark.parametrize(
    ("name", "spacing", "churn"), [*((name, "karras", 10.0) for name in NAMES), ("vp", "time", 1.0)]
)
def test_weak_order_with_churn(name: str, spacing: str, churn: float) -> None:
    """Noise of the exact kernel leaves the law to the ODE alone."""
    build = partial(EDMHeun, churn=churn, spacing=spacing, t_min=0.02, denoise=False)
    samplers.weak_order_is(lambda n: build(steps=n), SDES[name][0], 2, t_min=0.02, steps=(100, 200))


def test_orders_are_claimed() -> None:
    assert EDMHeun().orders == (2, 2)
    assert EDMHeun(churn=1.0).orders == (None, 2)
    assert EDMHeun(churn=1.0, s_noise=1.01).orders == (None, None)


def published() -> tuple[VESDE, float]:
    """σ(t) from 0 to 80, and the t at which it is .002."""
    sde = VESDE(sigma_min=0.002, sigma_max=math.hypot(80, 0.002))
    return sde, sde.time(torch.tensor(-2 * math.log(0.002), dtype=torch.float64)).item()


def asked(sampler: EDMHeun, sde: VESDE) -> list[float]:
    """σ̃ at which the score is asked, one after another."""
    seen: list[float] = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        seen.append(torch.exp(-0.5 * sde.log_snr(t)).item())
        return samplers.gaussian_score(sde, 0.0, 1.0)(x, t)

    sampler(score, sde, deterministic.latents(sde), generator=rng(0))
    return seen


def test_published_noise_levels() -> None:
    """Each twice, but the first and, to denoise, the last."""
    sde, t_min = published()
    twice = [level for level in LEVELS[1:] for _ in range(2)]
    assert asked(EDMHeun(t_min=t_min), sde) == pytest.approx([LEVELS[0], *twice], rel=1e-6, abs=1e-6)
    assert asked(EDMHeun(steps=17, t_min=t_min, denoise=False), sde) == pytest.approx(
        [LEVELS[0], *twice[:-1]], rel=1e-6, abs=1e-6
    )


def test_churn_raises_the_level_within_its_interval_and_never_beyond_the_start() -> None:
    """Published settings of ImageNet-64: γ = min(40/256, √2 - 1) for σ̃ within [.05, 50]; beside them γ at its most."""
    sde, t_min = published()
    levels = torch.exp(-0.5 * sde.log_snr(time_grid(sde, steps=255, t_min=t_min, spacing="karras")))
    for churn, gamma in ((40.0, 40 / 256), (1e3, math.sqrt(2) - 1)):
        starts = asked(EDMHeun(steps=256, churn=churn, s_min=0.05, s_max=50.0, t_min=t_min), sde)[::2]
        within = (levels >= 0.05) & (levels <= 50)
        expected = torch.where(within, (1 + gamma) * levels, levels)
        assert starts == pytest.approx(expected.tolist(), rel=1e-8)
    starts = asked(EDMHeun(steps=18, churn=1e3, t_min=t_min), sde)[::2]
    expected = [min(80.0, math.sqrt(2) * level) for level in LEVELS]
    assert starts == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("churn", [0.0, 3.0, 30.0])
@pytest.mark.parametrize("name", NAMES)
def test_moments_follow_the_algorithm(name: str, churn: float, denoise: bool) -> None:
    """Mean and variance step by step: dx̃/dσ̃ = k (x̃ - m) with k = σ̃/(c + σ̃²) on N(m, c) data, to ten digits."""
    sde, steps, mean, c, t_min = SDES[name][0], 12, 0.7, 0.4, 0.01
    grid = time_grid(sde, steps=steps - denoise, t_min=t_min, spacing="karras")
    (scale, std), (location, variance) = sde.marginal(grid), samplers.marginal_moments(sde, 1.0, mean=mean, variance=c)
    levels = [*(std / scale).tolist(), *([0.0] if denoise else [])]
    offset, variance = location / scale[0].item() - mean, variance / scale[0].item() ** 2

    def k(level: float) -> float:
        return level / (c + level**2)

    for level, low in pairwise(levels):
        inside = 0.1 <= level <= 10
        hat = min(level * (1 + inside * min(churn / steps, math.sqrt(2) - 1)), levels[0])
        variance += 1.1**2 * (hat**2 - level**2)
        euler = 1 + (low - hat) * k(hat)
        factor = euler if low == 0 else 1 + (low - hat) * (k(hat) + k(low) * euler) / 2
        offset, variance = factor * offset, factor**2 * variance
    back = 1.0 if denoise else scale[-1].item()
    sampler = EDMHeun(steps=steps, churn=churn, s_min=0.1, s_max=10.0, s_noise=1.1, t_min=t_min, denoise=denoise)
    expected = back * (mean + offset), back**2 * variance
    samplers.moments_are(sampler, sde, expected, mean=mean, variance=c, draws=steps)


@pytest.mark.parametrize("name", SDES)
def test_denoised_is_the_mean_of_the_data(name: str) -> None:
    """The last step is E[x_0 | x_{t_min}] of what the steps before it reach."""
    sde = SDES[name][0]
    x_T, score = deterministic.latents(sde), samplers.gaussian_score(sde, 0.7, 0.4)
    x = EDMHeun(steps=9, t_min=0.1, denoise=False)(score, sde, x_T)
    scale, std = sde.marginal(torch.tensor(0.1, dtype=torch.float64))
    expected = 0.7 + scale * 0.4 * (x - scale * 0.7) / (scale.square() * 0.4 + std.square())
    torch.testing.assert_close(EDMHeun(steps=10, t_min=0.1)(score, sde, x_T), expected)


@pytest.mark.parametrize(("denoise", "count"), [(False, 36), (True, 35)])
@pytest.mark.parametrize("churn", [0.0, 10.0])
def test_evaluations(churn: float, denoise: bool, count: int) -> None:
    deterministic.evaluations_are(EDMHeun(churn=churn, denoise=denoise), VPSDE(), count, t_min=1e-3)


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("churn", [0.0, 5.0])
def test_clean(churn: float, denoise: bool) -> None:
    samplers.is_clean(EDMHeun(steps=7, churn=churn, denoise=denoise), VPSDE(), steps=7, random=churn > 0)


def test_row_is_its_own() -> None:
    samplers.row_is_its_own(EDMHeun(steps=7, churn=3.0), VPSDE())


@pytest.mark.parametrize("name", SDES)
def test_float32_keeps_up(name: str) -> None:
    sde = SDES[name][0]
    x_T, score = deterministic.latents(sde, 100), samplers.gaussian_score(sde, 0.7, 0.4)
    torch.testing.assert_close(
        EDMHeun()(score, sde, x_T.float()), EDMHeun()(score, sde, x_T).float(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("churn", [0.0, 5.0])
def test_runs_on_meta(churn: float) -> None:
    x = EDMHeun(steps=4, churn=churn)(lambda x, t: -x, VPSDE(), torch.zeros(3, 2, device="meta"))
    assert (x.shape, x.device.type) == ((3, 2), "meta")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"steps": 0}, "1 step or more"),
        ({"steps": 1}, "2 to denoise"),
        ({"t_min": 0.0}, "t_min above 0"),
        ({"churn": -1.0}, "churn and s_noise of 0 or more"),
        ({"s_noise": math.nan}, "churn and s_noise of 0 or more"),
        ({"s_min": 2.0, "s_max": 1.0}, "0 <= s_min <= s_max"),
    ],
)
def test_settings_that_make_no_sense(keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EDMHeun(**keywords)
