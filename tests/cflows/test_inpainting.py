import math

import pytest
import torch
from cases import SDES
from contracts import wrappers
from helpers import rng

from cflows import VPSDE, EulerMaruyama
from cflows.samplers.ancestral import AncestralSampling
from cflows.samplers.inpainting import Inpainting
from cflows.samplers.reverse_diffusion import ReverseDiffusion
from cflows.samplers.sampler import Orders
from core.rng import RowGenerators

FIRST = torch.tensor([True, False])
DATA = (
    torch.tensor([0.2, -0.5], dtype=torch.float64),
    torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64),
)


def inpainting(*, steps: int, resample: int = 1, known: float = 1.2, t_min: float = 0.1) -> Inpainting:
    predictor = ReverseDiffusion(steps=steps, t_min=t_min)
    return Inpainting(predictor, torch.tensor([known, math.nan], dtype=torch.float64), FIRST, resample=resample)


@pytest.mark.parametrize("resample", [1, 3])
@pytest.mark.parametrize("name", SDES)
def test_law_follows_the_recursion(name: str, resample: int) -> None:
    """Mean and covariance step by step, the known part among them, to nine digits."""
    sampler = inpainting(steps=6, resample=resample)
    wrappers.follows_the_inpainting_recursion(sampler, SDES[name][0], DATA, known=1.2, steps=6, resample=resample)


def test_bias_and_what_resampling_leaves_of_it() -> None:
    """The law of the hidden coordinate given x = 1.2 is N(0.3, 0.36), of correlation 0.8 with what is known."""
    mean, variance = wrappers.conditional_law(DATA, 1.2)
    assert (mean, variance) == pytest.approx((0.3, 0.36))
    found = {}
    for resample in (1, 3, 10):
        sampler = inpainting(steps=25, resample=resample, t_min=1e-3)
        law = wrappers.inpainted_law(sampler, VPSDE(), DATA, steps=25, resample=resample)
        assert law[0][0].item() == pytest.approx(1.2, abs=1e-12)
        assert law[1][0].tolist() == [0.0, 0.0]
        found[resample] = (law[0][1].item() - mean, law[1][1, 1].item() - variance)
    assert found[1] == pytest.approx((-0.337, 0.245), abs=2e-3)
    assert found[3] == pytest.approx((-0.151, 0.080), abs=2e-3)
    assert found[10] == pytest.approx((-0.055, 0.022), abs=2e-3)


def test_more_steps_do_not_end_the_bias() -> None:
    """The reason for which no order is claimed."""
    off = []
    for steps in (25, 50, 100):
        sampler = inpainting(steps=steps, t_min=1e-3)
        off.append(wrappers.inpainted_law(sampler, VPSDE(), DATA, steps=steps, resample=1)[0][1].item() - 0.3)
    assert off[0] < off[1] < off[2] < -0.3
    assert off[2] / off[1] > 0.95
    assert sampler.orders == Orders(None, None)


@pytest.mark.parametrize("resample", [1, 2])
def test_exact_where_nothing_depends_on_the_known(resample: int) -> None:
    """Independent coordinates: once through, the hidden one is what the predictor alone makes of it, to ten digits."""
    data = DATA[0], torch.diag(DATA[1].diagonal())
    sampler = inpainting(steps=50, resample=resample, t_min=1e-3)
    mean, covariance = wrappers.inpainted_law(sampler, VPSDE(), data, steps=50, resample=resample)
    score, start = wrappers.plane_score(VPSDE(), data), (torch.zeros(2, dtype=torch.float64), wrappers.EYE)
    alone = wrappers.affine_law(lambda x: sampler.predictor(score, VPSDE(), x), draws=49, start=start)
    if resample == 1:
        assert mean[1].item() == pytest.approx(alone[0][1].item(), abs=1e-10)
        assert covariance[1, 1].item() == pytest.approx(alone[1][1, 1].item(), abs=1e-10)
    assert mean[1].item() == pytest.approx(-0.5, abs=0.02)
    assert covariance[1, 1].item() == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("predictor", [EulerMaruyama(steps=3), AncestralSampling(steps=3)])
def test_images(predictor: EulerMaruyama | AncestralSampling) -> None:
    """The known pixels come out bit for bit, whatever is in the hidden ones; the mask broadcasts over the channels."""
    known = torch.rand(4, 3, 2, 2, generator=rng(0))
    mask = torch.tensor([[True, False], [False, True]])
    known[:, :, 0, 1] = math.inf
    x_T = torch.randn(4, 3, 2, 2, generator=rng(1))
    x = Inpainting(predictor, known, mask, resample=2)(lambda x, t: -x, VPSDE(), x_T, generator=rng(2))
    assert torch.equal(x[..., mask], known[..., mask])
    assert x.isfinite().all()
    assert not torch.equal(x[..., ~mask], x_T[..., ~mask])


def test_rows_with_generators_and_data_of_their_own() -> None:
    known, x_T = torch.tensor([[1.0, 0.0], [2.0, 0.0]]).double(), torch.zeros(2, 2, dtype=torch.float64)
    predictor, score = EulerMaruyama(steps=4), wrappers.plane_score(VPSDE(), DATA)
    both = Inpainting(predictor, known, FIRST, resample=3)(score, VPSDE(), x_T, generator=RowGenerators([3, 4]))
    alone = Inpainting(predictor, known[1:], FIRST, resample=3)(score, VPSDE(), x_T[1:], generator=RowGenerators([4]))
    torch.testing.assert_close(both[1:], alone, rtol=1e-12, atol=1e-12)


def test_runs_on_meta() -> None:
    sampler = Inpainting(EulerMaruyama(steps=2), torch.zeros(2), FIRST, resample=2)
    x = sampler(lambda x, t: -x, VPSDE(), torch.zeros(3, 2, device="meta"))
    assert (x.shape, x.device.type) == ((3, 2), "meta")


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"broadcast to x_T's \(3, 2\), but one is \(3,\)"):
        Inpainting(EulerMaruyama(steps=2), torch.zeros(3), FIRST)(lambda x, t: -x, VPSDE(), torch.zeros(3, 2))


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="once or more, but resample is 0"):
        Inpainting(EulerMaruyama(), torch.zeros(2), FIRST, resample=0)
