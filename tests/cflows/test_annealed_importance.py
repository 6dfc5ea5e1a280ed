import math
from functools import partial

import pytest
import torch
from cases import COVARIANCES, MEANS, WEIGHTS
from contracts import langevin as contracts
from helpers import rng
from torch import Tensor

from cflows import annealed_importance_sampling
from core import DiagonalNormal, GaussianMixture, StandardNormal

PLANE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)
WIDE = DiagonalNormal(2, scale=2.0, learnable=False).double()
SETTINGS = {"particles": 150, "temperatures": 6, "step_size": 0.15}


def bell(x: Tensor) -> Tensor:
    """exp(-2 ‖x - 1‖²), Z = π/2 in two dimensions."""
    return -2 * (x - 1).square().sum(1)


def hills(x: Tensor) -> Tensor:
    """A mixture times e³."""
    return PLANE.log_prob(x) + 3


@pytest.mark.parametrize(("log_density", "log_z"), [(bell, math.log(math.pi / 2)), (hills, 3.0)])
def test_error_bars_cover_and_the_mean_is_right(log_density: object, log_z: float) -> None:
    weighted = partial(annealed_importance_sampling, **SETTINGS)
    contracts.normalizer_is_covered(weighted, log_density, WIDE, log_z=log_z)


@pytest.mark.parametrize("betas", [[0.0, 1.0], [0.0, 0.05, 0.3, 1.0]])
def test_any_temperatures_are_unbiased(betas: list[float]) -> None:
    """Without transitions it is importance sampling."""
    found = annealed_importance_sampling(
        bell, WIDE, particles=20_000, temperatures=betas, step_size=0.1, generator=rng(0)
    )
    assert abs(found.log_z_nats.item() - math.log(math.pi / 2)) < 4 * found.std_error_nats.item()
    assert found.acceptance.isnan().item() == (len(betas) == 2)


def test_importance_sampling_in_closed_form() -> None:
    """One temperature, q = N(0, 1), p̃ = exp(-x²): E[w²]/Z² = 2/√3, so the error and the effective size are known."""
    n = 40_000
    found = annealed_importance_sampling(
        lambda x: -x.square().sum(1),
        StandardNormal(1).double(),
        particles=n,
        temperatures=1,
        step_size=0.1,
        generator=rng(0),
    )
    second = 2 / math.sqrt(3)
    assert found.log_z_nats.item() == pytest.approx(0.5 * math.log(math.pi), abs=4 * math.sqrt((second - 1) / n))
    assert found.std_error_nats.item() == pytest.approx(math.sqrt((second - 1) / n), rel=0.03)
    assert found.effective_sample_size.item() == pytest.approx(n / second, rel=0.01)


def test_temperatures_help() -> None:
    """A narrow density under a wide base: the error falls with the temperatures at equal particles."""
    errors = [
        annealed_importance_sampling(
            lambda x: -50 * x.square().sum(1), WIDE, particles=300, temperatures=k, step_size=0.01, generator=rng(0)
        ).std_error_nats.item()
        for k in (1, 40)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_same_density_needs_no_help() -> None:
    """p̃ = c q: every weight is c, whatever is drawn."""
    found = annealed_importance_sampling(
        lambda x: WIDE.log_prob(x) + 2.0, WIDE, particles=16, temperatures=4, transitions=2, step_size=0.5
    )
    assert found.log_z_nats.item() == pytest.approx(2.0, abs=1e-12)
    assert found.std_error_nats.item() < 1e-12
    assert found.effective_sample_size.item() == pytest.approx(16.0)
    assert 0.5 < found.acceptance.item() <= 1


def test_weights_beyond_floating_point() -> None:
    """Constants whose exponential overflows leave the error as it is."""
    low, high = (
        annealed_importance_sampling(
            lambda x, c=c: bell(x) + c, WIDE, particles=50, temperatures=3, step_size=0.1, generator=rng(0)
        )
        for c in (0.0, 1000.0)
    )
    assert high.log_z_nats.item() - low.log_z_nats.item() == pytest.approx(1000.0)
    assert high.std_error_nats.item() == pytest.approx(low.std_error_nats.item(), rel=1e-6)


def test_the_generator_alone_decides() -> None:
    def once(seed: int) -> float:
        return annealed_importance_sampling(bell, WIDE, **SETTINGS, generator=rng(seed)).log_z_nats.item()

    state = torch.get_rng_state()
    assert once(0) == once(0)
    assert once(0) != once(1)
    assert torch.equal(state, torch.get_rng_state())


def test_runs_on_meta() -> None:
    found = annealed_importance_sampling(bell, StandardNormal(2).to("meta"), **SETTINGS)
    assert found.log_z_nats.device.type == "meta"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"particles": 1}, "2 particles or more"),
        ({"temperatures": 0}, "rise strictly from 0 to 1"),
        ({"temperatures": [0.0, 0.5]}, "rise strictly from 0 to 1"),
        ({"temperatures": [0.0, 0.7, 0.5, 1.0]}, "rise strictly from 0 to 1"),
        ({"step_size": 0.0}, "positive step_size"),
        ({"transitions": 0}, "1 step or more"),
    ],
)
def test_settings_that_make_no_sense(keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        annealed_importance_sampling(bell, WIDE, **{**SETTINGS, **keywords})
