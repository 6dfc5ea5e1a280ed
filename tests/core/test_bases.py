import math

import numpy as np
import pytest
import scipy.stats as st
import torch
from cases import COVARIANCES, MEANS, WEIGHTS
from helpers import normal, rng

from core import DiagonalNormal, GaussianMixture, StandardLogistic, StandardUniform

MIXTURE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)


def perturbed_reference(x: torch.Tensor, scale: float, std: float) -> torch.Tensor:
    """Log-density of scale·x₀ + std·ε from scipy, component by component."""
    density = 0.0
    for w, mean, covariance in zip((0.25, 0.75), MEANS.numpy(), COVARIANCES.numpy(), strict=True):
        law = st.multivariate_normal(scale * mean, scale**2 * covariance + std**2 * np.eye(2))
        density = density + w * law.pdf(x.numpy())
    return torch.as_tensor(density).log()


@pytest.mark.parametrize(("scale", "std"), [(1.0, 0.0), (0.9, 0.3), (0.1, 1.0), (1.0, 50.0)])
def test_perturbed_mixture(scale: float, std: float) -> None:
    x = 2 * normal(20, (2,), rng(0))
    found = MIXTURE.perturbed_log_prob(x, x.new_tensor(scale), x.new_tensor(std))
    torch.testing.assert_close(found, perturbed_reference(x, scale, std), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize(("scale", "std"), [(1.0, 0.0), (0.9, 0.3), (0.1, 1.0)])
def test_perturbed_score_is_the_gradient(scale: float, std: float, features: int) -> None:
    root = normal(3, (features, features), rng(6))
    covariances = root @ root.mT + 0.1 * torch.eye(features, dtype=torch.float64)
    mixture = GaussianMixture(normal(3, (features,), rng(7)), covariances, torch.ones(3, dtype=torch.float64))
    x = (2 * normal(20, (features,), rng(1))).requires_grad_()
    parts = x.new_tensor(scale), x.new_tensor(std)
    (gradient,) = torch.autograd.grad(mixture.perturbed_log_prob(x, *parts).sum(), x)
    torch.testing.assert_close(mixture.perturbed_score(x, *parts), gradient, rtol=1e-9, atol=1e-9)


def test_mixture_in_many_dimensions() -> None:
    """In five dimensions, where eigenvectors are no symmetric matrix, against scipy."""
    root = normal(1, (5, 5), rng(8))
    covariance = root @ root.mT + 0.1 * torch.eye(5, dtype=torch.float64)
    mixture = GaussianMixture(normal(1, (5,), rng(9)), covariance, torch.ones(1, dtype=torch.float64))
    x = mixture.sample((20_000,), generator=rng(10))
    law = st.multivariate_normal(mixture.means[0].numpy(), covariance[0].numpy())
    torch.testing.assert_close(mixture.log_prob(x[:50]), torch.as_tensor(law.logpdf(x[:50].numpy())))
    torch.testing.assert_close(torch.cov(x.T), covariance[0], rtol=0, atol=0.15 * covariance.max().item())


def test_perturbation_may_differ_by_row() -> None:
    x, scale, std = (
        normal(3, (2,), rng(2)),
        torch.tensor([1.0, 0.5, 0.1]).double(),
        torch.tensor([0.0, 0.5, 1.0]).double(),
    )
    for function in (MIXTURE.perturbed_log_prob, MIXTURE.perturbed_score):
        each = torch.cat([function(x[i : i + 1], scale[i], std[i]) for i in range(3)])
        torch.testing.assert_close(function(x, scale, std), each, rtol=1e-12, atol=1e-12)


def test_score_of_the_mixture_itself() -> None:
    x = normal(4, (2,), rng(3))
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    torch.testing.assert_close(MIXTURE.score(x), MIXTURE.perturbed_score(x, one, zero), rtol=0, atol=0)


# log p_t under VP of eight Gaussians of std 0.05 on the unit circle, at t = 0, 1e-5, 0.1, 0.5, 1.
GOLD = {
    (1.0, 0.0): (2.074145939, 2.0737466219, -1.5494542033, -2.318291761, -2.337866324),
    (0.0, 0.0): (-195.8464125193, -195.7667642472, -3.8225699534, -1.7986437122, -1.8378555815),
    (0.3, 0.02): (-96.005854061, -95.9669560954, -2.9137735174, -1.8456088644, -1.8830565526),
    (1.05, 0.03): (1.394145939, 1.3940080973, -1.6044241854, -2.3720385173, -2.3895674348),
}


@pytest.mark.parametrize("point", GOLD)
def test_gold_mixture_of_eight(point: tuple[float, float]) -> None:
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    eye = torch.eye(2, dtype=torch.float64)
    mixture = GaussianMixture(
        torch.stack([angle.cos(), angle.sin()], 1), (0.05**2 * eye).expand(8, 2, 2), torch.ones(8, dtype=torch.float64)
    )
    t = torch.tensor([0.0, 1e-5, 0.1, 0.5, 1.0], dtype=torch.float64)
    integral = 0.1 * t + 0.5 * 19.9 * t.square()
    x = torch.tensor([point], dtype=torch.float64).expand(5, 2)
    found = mixture.perturbed_log_prob(x, torch.exp(-0.5 * integral), torch.sqrt(-torch.expm1(-integral)))
    assert found.tolist() == pytest.approx(GOLD[point], abs=1e-8)


def test_mixture_samples_have_its_moments() -> None:
    x = MIXTURE.sample((40_000,), generator=rng(4))
    w = (WEIGHTS / WEIGHTS.sum())[:, None]
    mean = (w * MEANS).sum(0)
    second = (w[..., None] * (COVARIANCES + MEANS[:, :, None] * MEANS[:, None])).sum(0)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=5 * 1.5 / 200)
    torch.testing.assert_close(torch.cov(x.T), second - mean[:, None] * mean, rtol=0, atol=5 * 3 / 200)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"covariances": -COVARIANCES}, "positive definite"),
        ({"covariances": COVARIANCES + torch.tensor([[0.0, 0.1], [0.0, 0.0]])}, "symmetric"),
        ({"weights": torch.tensor([1.0, 0.0]).double()}, "positive weights"),
    ],
)
def test_mixture_refuses_what_is_no_density(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**({"means": MEANS, "covariances": COVARIANCES, "weights": WEIGHTS} | change))


def test_logistic_samples_stay_finite_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator's extreme draws, 0 and the largest below 1, give finite values of like size."""
    extremes = torch.tensor([[0.0], [1 - 2.0**-24]])
    monkeypatch.setattr(torch, "rand", lambda *args, **keywords: extremes)
    low, high = StandardLogistic(1).sample((2,)).flatten().tolist()
    assert -17 < low < -15
    assert 15 < high < 17


def test_uniform_is_minus_infinity_outside() -> None:
    x = torch.tensor([[0.0, 0.5], [1.0, 0.5], [-1e-9, 0.5], [0.5, 1e6]])
    assert StandardUniform(2).log_prob(x).tolist() == [0.0, -math.inf, -math.inf, -math.inf]


def test_scale_and_location_broadcast_and_may_be_fixed() -> None:
    base = DiagonalNormal((2, 1, 2), loc=torch.tensor([1.0, -1.0]), scale=0.1, learnable=False)
    assert list(base.parameters()) == []
    assert base.loc.shape == (2, 1, 2)
    x = base.sample((10_000,), generator=rng(5))
    torch.testing.assert_close(x.mean((0, 1, 2)), torch.tensor([1.0, -1.0]), rtol=0, atol=0.005)
    with pytest.raises(ValueError, match="positive scale"):
        DiagonalNormal(2, scale=0.0)


@pytest.mark.parametrize(("covariances", "weights"), [((2, 3, 3), (3,)), ((2, 3, 2), (2,)), ((3, 3, 3), (2,))])
def test_mixture_of_shapes_that_do_not_fit_is_refused(covariances, weights) -> None:
    # Called past the shape hook of the test suite, as a user calls it.
    build = getattr(GaussianMixture.__init__, "__wrapped__", GaussianMixture.__init__)
    with pytest.raises(ValueError, match="needs covariances"):
        build(GaussianMixture.__new__(GaussianMixture), torch.zeros(2, 3), torch.ones(covariances), torch.ones(weights))
