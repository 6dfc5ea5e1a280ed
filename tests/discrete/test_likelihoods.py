"""Laws of one whole number against other libraries and closed forms."""

import math
from functools import partial

import pytest
import torch
from contracts import masses
from helpers import normal, rng
from torch import Tensor

from discrete.likelihoods import Categorical, DiscretizedLogisticMixture, _invert, build_likelihood

LAWS = {
    "categorical-2": partial(Categorical, bins=2),
    "categorical-256": partial(Categorical, bins=256),
    "mixture-2": partial(DiscretizedLogisticMixture, bins=2, components=1),
    "mixture-3": partial(DiscretizedLogisticMixture, bins=3, components=3),
    "mixture-256": partial(DiscretizedLogisticMixture, bins=256, components=10),
    "mixture-65536": partial(DiscretizedLogisticMixture, bins=65536, components=2),
}


def theta(name: str, *, rows: int, std: float) -> Tensor:
    return std * normal(rows, (LAWS[name]().parameters_per_value,), rng(0))


def one(bins: int, mu: float, a: float) -> tuple[Tensor, Tensor]:
    """Every level, and the θ of a single logistic beside each."""
    k = torch.arange(bins, dtype=torch.float64)
    return k, torch.tensor([0.0, mu, a], dtype=torch.float64).expand(bins, 3)


@pytest.mark.parametrize("std", [0.1, 1.0, 5.0, 50.0])
@pytest.mark.parametrize("name", LAWS)
def test_masses_sum_to_one(name: str, std: float) -> None:
    masses.law_sums_to_one(LAWS[name](), theta(name, rows=8, std=std))


@pytest.mark.parametrize("bins", [2, 5, 256])
def test_mixture_is_equation_2(bins: int) -> None:
    masses.law_is_a_mixture_of_logistics(DiscretizedLogisticMixture(bins=bins, components=3), normal(4, (9,), rng(1)))


def test_far_bins_decay_as_the_logistic() -> None:
    """Far to the right of the mean P(k) = exp(-(k - ½ - m) t) (1 - exp(-t)) up to a relative exp(-(k - m) t)."""
    law = DiscretizedLogisticMixture(bins=256, components=1)
    k, parameters = one(256, -1.0, -8.0)  # the mean is level 0
    t = 2 * math.exp(-law.log_scale_bound * math.tanh(-8.0 / law.log_scale_bound)) / 255
    k, parameters = k[60:-1], parameters[60:-1]
    expected = -(k - 0.5) * t + math.log(-math.expm1(-t))
    torch.testing.assert_close(law.log_prob(k, parameters), expected, rtol=1e-12, atol=1e-12)
    assert expected[-1] < -1000, "not far enough to underflow"


def test_narrowest_and_widest_logistic() -> None:
    """A scale without bound in the parameter leaves all mass but 4e-9 in the bin of the mean, or nearly none within."""
    law = DiscretizedLogisticMixture(bins=256, components=1)
    narrow = law.log_prob(*one(256, 2 * 100 / 255 - 1, -1e6)).exp()
    assert 1e-9 < 1 - narrow[100].item() < 5e-9
    wide = law.log_prob(*one(256, 0.0, 1e6)).exp()
    torch.testing.assert_close(wide[[0, -1]], torch.full((2,), 0.5, dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(wide[1:-1], wide[1].expand(254), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAWS)
def test_extreme_parameters_stay_finite(name: str, dtype: torch.dtype) -> None:
    law = LAWS[name]()
    parameters = theta(name, rows=400, std=1e3).to(dtype).requires_grad_()
    k = torch.randint(law.bins, (400,), generator=rng(2)).to(dtype)
    values = law.log_prob(k, parameters)
    (gradient,) = torch.autograd.grad(values.sum(), parameters)
    assert values.isfinite().all()
    assert gradient.isfinite().all()
    assert (values <= 0).all()


@pytest.mark.parametrize("bins", [5, 256])
def test_gradient_of_tiny_scales(bins: int) -> None:
    masses.tiny_scales_have_gradient(DiscretizedLogisticMixture(bins=bins, components=2))


def test_float32_agrees() -> None:
    law = DiscretizedLogisticMixture(bins=65536, components=2)
    parameters = normal(500, (6,), rng(3)).float()
    k = torch.randint(65536, (500,), generator=rng(4)).float()
    found, expected = law.log_prob(k, parameters), law.log_prob(k.double(), parameters.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_categorical_is_that_of_torch() -> None:
    logits, k = normal(50, (2, 7), rng(5)), torch.randint(7, (50, 2), generator=rng(6))
    expected = torch.distributions.Categorical(logits=logits).log_prob(k)
    torch.testing.assert_close(Categorical(bins=7).log_prob(k.double(), logits), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["categorical-2", "mixture-2", "mixture-3", "mixture-256"])
def test_draws_follow_the_law(name: str) -> None:
    masses.draws_follow_the_law(LAWS[name](), theta(name, rows=4, std=1.0), generator=rng(7))


def test_draws_of_a_narrow_law_are_its_level() -> None:
    """In float32 as well, at the ends as within, and wherever the mean lies beyond the ends."""
    law = DiscretizedLogisticMixture(bins=256, components=2)
    for mean, level in ((-5.0, 0), (-1.0, 0), (2 * 7 / 255 - 1, 7), (1.0, 255), (40.0, 255)):
        parameters = torch.tensor([0.0, -1e4, mean, 0.0, -1e6, 0.0]).expand(1000, 6)
        assert (law.sample(parameters, generator=rng(8)) == level).all(), f"mean {mean}"
    sure = torch.zeros(1000, 256)
    sure[:, 9] = 1e4
    assert (Categorical(bins=256).sample(sure, generator=rng(9)) == 9).all()


def test_a_level_without_mass_is_never_drawn() -> None:
    """Not even by a uniform on its edge, the rounding of the sum included."""
    masses_of = torch.tensor([[0.0, 0.5, 0.0, 0.4999999]])
    found = [_invert(masses_of, torch.tensor([[u]])).item() for u in (0.0, 0.49, 0.5, 1 - 2**-24)]
    assert found == [1, 1, 3, 3]


@pytest.mark.parametrize("name", ["categorical-256", "mixture-256"])
def test_draws_are_whole_without_gradient(name: str) -> None:
    parameters = theta(name, rows=6, std=1.0).reshape(2, 3, -1).float().requires_grad_()
    law = LAWS[name]()
    draws = law.sample(parameters, generator=rng(10))
    assert draws.shape == (2, 3)
    assert draws.dtype == torch.float32
    assert not draws.requires_grad
    assert torch.equal(draws, law.sample(parameters, generator=rng(10)))


@pytest.mark.parametrize("name", ["categorical-2", "mixture-256"])
def test_off_the_levels(name: str) -> None:
    law = LAWS[name]()
    k = torch.tensor([-1.0, law.bins, 0.5, math.inf, -math.inf], dtype=torch.float64)
    parameters = theta(name, rows=5, std=1.0).requires_grad_()
    values = law.log_prob(k, parameters)
    assert (values == -math.inf).all()
    (gradient,) = torch.autograd.grad(values.sum(), parameters)
    assert torch.count_nonzero(gradient) == 0
    assert law.log_prob(torch.tensor([math.nan], dtype=torch.float64), parameters[:1]).isnan().all()
    assert torch.equal(law.rescale(k), torch.zeros_like(k))


def test_rescale_fills_the_interval() -> None:
    scaled = Categorical(bins=5).rescale(torch.arange(5.0))
    assert scaled.tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="Categorical needs 2 bins or more, but has bins=1"):
        Categorical(bins=1)
    with pytest.raises(ValueError, match="1 component or more, but has components=0"):
        DiscretizedLogisticMixture(bins=2, components=0)
    with pytest.raises(ValueError, match="mixture or categorical, but is 'normal'"):
        build_likelihood("normal", bins=2, components=1)
