import math
from dataclasses import replace

import pytest
import torch
from cases import SAMPLERS, SDES
from contracts import samplers, wrappers
from helpers import rng
from torch import Tensor

from cflows import VPSDE, EulerMaruyama
from cflows.samplers.predictor_corrector import PredictorCorrector
from cflows.samplers.reverse_diffusion import ReverseDiffusion
from cflows.samplers.sampler import OneStepSampler, Orders
from core.rng import RowGenerators

PREDICTORS = {name: sampler for name, sampler in SAMPLERS.items() if isinstance(sampler, OneStepSampler)}


@pytest.mark.parametrize("name", SDES)
def test_moments_follow_the_recursion(name: str) -> None:
    def build(steps: int, corrections: int) -> PredictorCorrector:
        predictor = ReverseDiffusion(steps=steps, t_min=0.1)
        return PredictorCorrector(predictor=predictor, snr=0.3, corrector_steps=corrections)

    wrappers.follows_the_correctors_recursion(build, SDES[name][0], snr=0.3)


@pytest.mark.parametrize("norms", ["expected", "batch"])
@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve-narrow"])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_every_predictor_with_every_sde(predictor: str, name: str, norms: str) -> None:
    samplers.reaches_gaussian_data(
        PredictorCorrector(predictor=replace(PREDICTORS[predictor], steps=60), norms=norms),
        SDES[name][0],
        mean=torch.tensor([0.5, -1.0], dtype=torch.float64),
        variance=torch.tensor([1.0, 0.25], dtype=torch.float64),
        rows=1000,
        bias=0.15,
        generator=rng(0),
    )


@pytest.mark.parametrize("norms", ["expected", "batch"])
@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve"])
def test_a_correction_does_not_know_the_number_of_steps(name: str, norms: str) -> None:
    def build(predictor: OneStepSampler) -> PredictorCorrector:
        return PredictorCorrector(predictor=predictor, norms=norms)

    wrappers.corrections_do_not_know_the_steps(build, SDES[name][0])


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve-narrow"])
def test_bias_that_no_number_of_steps_removes(name: str) -> None:
    """The variance at t_min tends to V/(1 - ε/(2V)): the reason for which no order is claimed."""
    sde, t_min, snr, steps = SDES[name][0], 0.3, 0.16, 300
    total = samplers.marginal_moments(sde, t_min, variance=0.1)[1]
    eps = 2 * (snr * sde.marginal(torch.tensor(t_min).double())[1].item()) ** 2
    start = samplers.marginal_moments(sde, 1.0, variance=0.1)
    sampler = PredictorCorrector(predictor=ReverseDiffusion(steps=steps, t_min=t_min, denoise=False), snr=snr)
    _, variance = samplers.exact_moments(sampler, sde, variance=0.1, draws=2 * steps, start=start)
    limit = 1 / (1 - eps / (2 * total))
    assert limit > 1.004
    assert variance / total == pytest.approx(limit, abs=0.3 * (limit - 1))


@pytest.mark.parametrize(
    ("name", "alone", "once", "twice"), [("vp", 0.0283, 0.0160, 0.0121), ("ve", 0.0901, 0.0463, 0.0294)]
)
def test_what_corrections_are_good_for(name: str, alone: float, once: float, twice: float) -> None:
    """Relative error of the variance of N(0, 1) data after 100 steps of reverse diffusion, in closed form."""
    sde, predictor = SDES[name][0], ReverseDiffusion(steps=100, denoise=False)
    start, (_, target) = (
        samplers.marginal_moments(sde, 1.0, variance=1.0),
        samplers.marginal_moments(sde, 1e-3, variance=1.0),
    )
    for corrections, expected in enumerate((alone, once, twice)):
        sampler = PredictorCorrector(predictor=predictor, corrector_steps=corrections)
        _, variance = samplers.exact_moments(sampler, sde, variance=1.0, draws=300, start=start)
        assert variance / target - 1 == pytest.approx(expected, abs=1e-4)


def test_norms_of_the_batch() -> None:
    """ε = 2 (r ‖z‖/‖s‖)² with norms averaged before they are divided and squared."""
    x, still = torch.tensor([[3.0, 4.0], [0.0, 1.0]]).double(), wrappers.Still(steps=1)
    PredictorCorrector(predictor=still, norms="batch", snr=0.5)(lambda x, t: -2 * x, VPSDE(), x, generator=rng(0))
    z = torch.randn(2, 2, generator=rng(0), dtype=torch.float64)
    eps = 2 * (0.5 * (z[0].norm() + z[1].norm()) / (10 + 2)) ** 2
    torch.testing.assert_close(still.seen[0], x - 2 * eps * x + (2 * eps).sqrt() * z)


def test_corrector_acts_first_and_never_at_the_end() -> None:
    times: list[float] = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        times.append(t.item())
        return -x

    sampler = PredictorCorrector(predictor=EulerMaruyama(steps=2, t_min=0.5), corrector_steps=2)
    sampler(score, VPSDE(), torch.zeros(2, 1, dtype=torch.float64), generator=rng(0))
    assert times == [1.0, 1.0, 1.0, 0.75, 0.75, 0.75]


def test_no_corrections_leave_the_predictor() -> None:
    predictor, x_T = EulerMaruyama(steps=5), torch.ones(3, 2)
    alone = predictor(lambda x, t: -x, VPSDE(), x_T, generator=rng(0))
    sampler = PredictorCorrector(predictor=predictor, corrector_steps=0)
    assert torch.equal(sampler(lambda x, t: -x, VPSDE(), x_T, generator=rng(0)), alone)


def test_norms_of_the_batch_take_one_generator() -> None:
    sampler = PredictorCorrector(predictor=EulerMaruyama(steps=2), norms="batch")
    with pytest.raises(TypeError, match=r"PredictorCorrector.*not RowGenerators"):
        sampler(lambda x, t: -x, VPSDE(), torch.zeros(2, 1), generator=RowGenerators([0, 1]))


def test_predictor_by_default() -> None:
    assert PredictorCorrector().predictor == ReverseDiffusion()
    assert PredictorCorrector().orders == Orders(None, None)
    assert math.isclose(PredictorCorrector().snr, 0.16)


@pytest.mark.parametrize("norms", ["expected", "batch"])
def test_runs_on_meta(norms: str) -> None:
    sampler = PredictorCorrector(predictor=EulerMaruyama(steps=2), norms=norms)
    x = sampler(lambda x, t: -x, VPSDE(), torch.zeros(3, 2, device="meta"))
    assert (x.shape, x.device.type) == ((3, 2), "meta")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"snr": 0.0}, "snr within"),
        ({"snr": 1.0}, "snr within"),
        ({"corrector_steps": -1}, "0 corrector steps or more"),
    ],
)
def test_settings_that_make_no_sense(keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PredictorCorrector(**keywords)
