import math
from itertools import pairwise

import pytest
import torch
from contracts import adaptive, samplers
from contracts.samplers import gaussian_score
from helpers import rng
from torch import Tensor

from cflows import VPSDE, AffineSDE, EulerMaruyama
from cflows.guidance import ConditionalScore
from cflows.samplers.adaptive import AdaptiveSDE
from cflows.samplers.brownian_path import BrownianPath, bridge
from cflows.samplers.sampler import Orders


def test_halves_are_brownian() -> None:
    adaptive.halves_are_brownian(bridge)


def test_a_path_starts_with_the_increment_over_the_whole() -> None:
    """Of variance exp λ_1 - exp λ_0, from the same draws."""
    like = torch.zeros(3, 2, dtype=torch.float64)
    wide, narrow = (BrownianPath(low, 1.0, like=like, generator=rng(3), max_levels=2).increment for low in (-1.0, 0.5))
    ratio = math.sqrt((math.e - math.exp(-1)) / (math.e - math.exp(0.5)))
    torch.testing.assert_close(wide, ratio * narrow)


def test_walks_a_brownian_motion() -> None:
    adaptive.walks_a_brownian_motion(BrownianPath)


@pytest.mark.parametrize("variance", [1.0, 0.01])
def test_keeps_the_variance(variance: float) -> None:
    adaptive.keeps_the_variance(AdaptiveSDE(denoise=False), variance=variance, bias=0.02)


def test_error_follows_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    adaptive.error_follows_the_tolerance(lambda rtol: AdaptiveSDE(rtol=rtol, atol=rtol / 5), VPSDE(), monkeypatch)


def test_fewer_evaluations_than_a_fixed_step() -> None:
    """N(0, 0.01) data: 48 evaluations a row, where Euler-Maruyama with 200 is 4 % off."""
    rows, calls = 2000, 0

    def score(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += len(x)
        return gaussian_score(VPSDE(), 0.0, 0.01)(x, t)

    x_T = torch.randn(rows, 1, generator=rng(0), dtype=torch.float64)
    AdaptiveSDE()(score, VPSDE(), x_T, generator=rng(1))
    assert 45 < calls / rows < 55
    fixed = EulerMaruyama(steps=200, denoise=False)
    _, variance = samplers.exact_moments(fixed, VPSDE(), variance=0.01, draws=200, start=(0.0, 1.0))
    assert variance / samplers.marginal_moments(VPSDE(), 1e-3, variance=0.01)[1] - 1 > 0.03


@pytest.mark.parametrize("denoise", [False, True])
def test_evaluations_of_a_row(denoise: bool) -> None:
    """One at the start of a piece, one at the end of what is tried, and one for the posterior mean at t_min."""
    times: list[float] = []
    rounds: list[int] = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        times.extend(t.tolist())
        return gaussian_score(VPSDE(), 0.0, 1.0)(x, t)

    sampler, x_T = AdaptiveSDE(rtol=0.03, t_min=0.01, denoise=denoise), torch.ones(1, 1, dtype=torch.float64)
    sampler(score, VPSDE(), x_T, generator=rng(0), callback=lambda step, x: rounds.append(step))
    tried = len(rounds) - denoise
    taken = sum(a == b for a, b in pairwise(times)) + (not denoise)  # the next piece starts where the last one ended
    assert len(times) == tried + taken + denoise
    assert 0 < tried - taken < tried / 4, "pieces were rejected, but few"
    assert (times[0], times[-1]) == pytest.approx((1.0, 0.01), abs=1e-12)
    assert (min(times), max(times)) == (times[-1], times[0])
    starts = [time for previous, time in pairwise(times) if time == previous]
    assert starts == sorted(starts, reverse=True)


def test_rows_leave_when_they_have_arrived() -> None:
    sizes: list[int] = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (len(x),) != (0,)
        sizes.append(len(x))
        return gaussian_score(VPSDE(), 0.0, 1.0)(x, t)

    x_T = torch.randn(30, 1, generator=rng(0), dtype=torch.float64)
    AdaptiveSDE(denoise=False)(score, VPSDE(), x_T, generator=rng(1))
    assert sizes[0] == 30
    assert sizes[-1] < 10
    assert sum(sizes) < 0.7 * 30 * len(sizes)


def test_steps_are_those_of_the_log_snr() -> None:
    """A process with the log-SNRs of VP, but α = 1, takes x/α through the same values."""
    vp = VPSDE()
    exploding = AffineSDE(scale=torch.ones_like, std=lambda t: torch.exp(-0.5 * vp.log_snr(t)))
    x_T = torch.randn(20, 2, generator=rng(0), dtype=torch.float64)
    scale = vp.marginal(torch.ones((), dtype=torch.float64))[0]
    sampler = AdaptiveSDE(t_min=0.1)
    one = sampler(gaussian_score(vp, 0.5, 0.3), vp, x_T, generator=rng(1))
    other = sampler(gaussian_score(exploding, 0.5, 0.3), exploding, x_T / scale, generator=rng(1))
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_denoised_is_the_posterior_mean() -> None:
    x_T, score = torch.randn(9, 1, generator=rng(0), dtype=torch.float64), gaussian_score(VPSDE(), 0.0, 0.1)
    drawn, mean = (AdaptiveSDE(denoise=d)(score, VPSDE(), x_T, generator=rng(1)) for d in (False, True))
    scale, std = VPSDE().marginal(torch.tensor(1e-3, dtype=torch.float64))
    torch.testing.assert_close(mean, 0.1 * scale / (0.1 * scale**2 + std**2) * drawn)


def test_rows_keep_their_contexts_when_others_have_left() -> None:
    means = torch.tensor([[-3.0], [0.0], [4.0]]).double().repeat(20, 1)

    def score(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        scale, std = (v[:, None] for v in VPSDE().marginal(t))
        return -(x - scale * context) / (0.01 * scale.square() + std.square())

    x_T = torch.randn(60, 1, generator=rng(0), dtype=torch.float64)
    x = AdaptiveSDE()(ConditionalScore(score, means), VPSDE(), x_T, generator=rng(1))
    assert (x - means).abs().max() < 0.5


def test_single_precision() -> None:
    x_T = torch.randn(500, 2, generator=rng(0))
    x = AdaptiveSDE()(gaussian_score(VPSDE(), 0.5, 0.3), VPSDE(), x_T, generator=rng(1))
    assert x.dtype == torch.float32
    assert (x.mean() - 0.5).abs() < 0.08
    assert (x.var() - 0.3).abs() < 0.05


def test_tolerance_out_of_reach_names_the_level() -> None:
    x_T = torch.ones(2, 1, dtype=torch.float64)
    with pytest.raises(
        RuntimeError, match=r"row 0 needs pieces finer than level 6, at log-SNR -10\.05: .*raise max_levels"
    ):
        AdaptiveSDE(rtol=1e-9, atol=1e-9, max_levels=6)(
            gaussian_score(VPSDE(), 0.0, 1.0), VPSDE(), x_T, generator=rng(0)
        )


def test_score_that_is_not_finite() -> None:
    def score(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(torch.arange(len(x))[:, None] == 1, torch.nan, -x)

    with pytest.raises(RuntimeError, match=r"finite score, but that of row 1 at log-SNR -10\.05 is not"):
        AdaptiveSDE()(score, VPSDE(), torch.ones(3, 2), generator=rng(0))


@pytest.mark.parametrize("keywords", [{"rtol": 0.0}, {"atol": -1.0}, {"t_min": 0.0}, {"t_min": 1.0}, {"max_levels": 0}])
def test_settings_that_make_no_sense(keywords: dict) -> None:
    with pytest.raises(ValueError, match="positive tolerances, t_min within"):
        AdaptiveSDE(**keywords)


def test_no_order_is_claimed() -> None:
    assert AdaptiveSDE().orders == Orders(None, None)


def test_levels_that_the_process_takes_at_least() -> None:
    with pytest.raises(ValueError, match="max_levels of 4 or more for a process over"):
        AdaptiveSDE(max_levels=2)(lambda x, t: -x, VPSDE(), torch.zeros(1, 1, dtype=torch.float64))
