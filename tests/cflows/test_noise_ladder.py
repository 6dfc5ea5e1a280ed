import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contracts.samplers import affine_moments
from helpers import normal, rng
from scipy.stats import norm
from torch import Tensor

from cflows import annealed_langevin, geometric_ladder, ladder_levels, largest_distance, matched_step_size
from cflows.noise_ladder import as_ladder

# σ₁, L, T, published ε and the side of a colour image. Church's (140, 788, 4, 4.9e-6) is left out: the formula has its
# minimum at 2.3e-6 there, and what was published is not on it.
PUBLISHED = {
    "cifar": (50.0, 232, 5, 6.2e-6, 32),
    "celeba": (90.0, 500, 5, 3.3e-6, 64),
    "bedroom": (190.0, 1086, 3, 1.8e-6, 128),
    "ffhq": (348.0, 2311, 3, 9e-7, 256),
}


def test_ladder_of_ncsn() -> None:
    expected = [1.0, 0.599484, 0.359381, 0.215443, 0.129155, 0.077426, 0.046416, 0.027826, 0.016681, 0.01]
    assert geometric_ladder(1.0, 0.01, levels=10).tolist() == pytest.approx(expected, abs=5e-7)


def test_ladder_is_geometric_and_keeps_its_ends() -> None:
    ladder = geometric_ladder(50.0, 0.01, levels=232)
    ratio = ladder[:-1].double() / ladder[1:].double()
    assert ratio.min().item() == pytest.approx(1.037559, abs=1e-6)
    assert ratio.max().item() == pytest.approx(1.037559, abs=1e-6)
    assert ladder[0].item() == pytest.approx(50.0, rel=1e-7)
    assert ladder[-1].item() == pytest.approx(0.01, rel=1e-7)
    assert ladder.shape == (232,)
    assert ladder.dtype == torch.get_default_dtype()


def test_a_single_level_is_the_smallest() -> None:
    assert geometric_ladder(50.0, 0.5, levels=1).tolist() == [0.5]
    assert geometric_ladder(50.0, 0.5, levels=2).tolist() == pytest.approx([50.0, 0.5])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_step_size(name: str) -> None:
    """Half of ε: the paper's update is α s + √(2α) z."""
    sigma, levels, steps, published, _ = PUBLISHED[name]
    found = matched_step_size(geometric_ladder(sigma, 0.01, levels=levels), steps=steps) / 2
    assert found == pytest.approx(published, rel=0.02)


def test_step_size_of_a_single_step() -> None:
    """T = 1: γ² (1 - r/2)² + r has its minimum at r = 2 (1 - 1/γ²), and r is ε/σ_L²."""
    for gamma, sigma in ((2.0, 1.0), (1.1, 0.5), (1000.0, 3.0)):
        ladder = torch.tensor([gamma * sigma, sigma], dtype=torch.float64)
        assert matched_step_size(ladder, steps=1) == pytest.approx(2 * (1 - gamma**-2) * sigma**2, rel=1e-5)


def point_score(x: Tensor, sigma: Tensor) -> Tensor:
    """Of a point mass at 0 under noise σ."""
    return -x / sigma.square()[:, None]


@pytest.mark.parametrize("steps", [1, 5, 100])
@pytest.mark.parametrize("ratio", [1.037559, 2.0])
def test_step_size_against_the_sampler(ratio: float, steps: int) -> None:
    """Where the update itself leaves a level closest to its own variance: to both sides of ε it is farther."""
    sigmas = [ratio * 0.01, 0.01]
    step_size = matched_step_size(torch.tensor(sigmas, dtype=torch.float64), steps=steps)

    def mismatch(factor: float) -> float:
        # One level, started from the variance of the one above; by impulses, the update being affine.
        def run(x: Tensor) -> Tensor:
            return annealed_langevin(point_score, sigmas[1:], x, step_size=factor * step_size, steps=steps)

        _, variance = affine_moments(run, draws=steps, start=(0.0, sigmas[0] ** 2))
        return abs(variance / sigmas[1] ** 2 - 1)

    best = mismatch(1.0)
    assert all(mismatch(factor) > best for factor in (0.8, 0.95, 0.99, 1.01, 1.05, 1.2))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_number_of_levels(name: str) -> None:
    """Theirs belong to overlaps of 0.53 to 0.55, "about 0.5"."""
    sigma, levels, _, _, side = PUBLISHED[name]
    assert ladder_levels(3 * side**2, sigma, 0.01) == pytest.approx(levels, rel=0.06)


@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dimensions", [6, 64, 3072, 196_608])
def test_levels_solve_their_equation(dimensions: int, overlap: float) -> None:
    """The ratio of the ladder found, and those of one level fewer and more, embrace the overlap asked for."""

    def found(levels: int) -> float:
        gamma = (1e6 / 1e-6) ** (1 / (levels - 1))
        shift = math.sqrt(2 * dimensions) * (gamma - 1)
        return norm.cdf(shift + 3 * gamma) - norm.cdf(shift - 3 * gamma)

    levels = ladder_levels(dimensions, 1e6, 1e-6, overlap=overlap)
    assert found(levels - 1) < overlap < found(levels + 1)
    nearest = min((levels - 1, levels, levels + 1), key=lambda n: abs(found(n) - overlap))
    assert nearest == levels or levels < 10  # few levels: the overlap is not linear between them


def test_overlap_is_what_samples_of_a_point_mass_have() -> None:
    """Of N(0, σᵢ² I) so many draws have a norm within three deviations of that of N(0, σᵢ₋₁² I)."""
    dimensions, gamma = 1000, 1.05
    radius = normal(20_000, (dimensions,), rng(0)).norm(dim=1)
    centre, spread = gamma * math.sqrt(dimensions), gamma / math.sqrt(2)
    share = ((radius - centre).abs() < 3 * spread).double().mean().item()
    # Levels whose ratio is γ: log(σ₁/σ_L)/log γ of them.
    levels = ladder_levels(dimensions, gamma**1000, 1.0, overlap=share)
    assert levels - 1 == pytest.approx(1000, rel=0.01)


def test_every_pair_is_looked_at() -> None:
    data = normal(2500, (2, 3), rng(0))
    flat = data.flatten(1)
    brute = max((flat - row).norm(dim=1).max().item() for row in flat)
    assert largest_distance(data).item() == pytest.approx(brute, rel=1e-7)
    assert largest_distance(data[:1]).item() == 0.0
    # The farthest pair falls into different parts of the computation.
    data[0], data[-1] = 100.0, -100.0
    assert largest_distance(data).item() == pytest.approx(200 * 6**0.5, rel=1e-12)


def test_distance_of_data_far_from_the_origin() -> None:
    """In float32 squares of what the data have in common must not drown what tells them apart."""
    data = normal(300, (3,), rng(2)) + 1e4
    assert largest_distance(data.float()).item() == pytest.approx(largest_distance(data).item(), rel=1e-3)


def test_a_subset_gives_a_lower_bound() -> None:
    data = normal(3000, (4,), rng(1))
    whole = largest_distance(data).item()
    part, again, other = (largest_distance(data, rows=500, generator=rng(seed)).item() for seed in (2, 2, 3))
    assert 0.7 * whole < part <= whole
    assert part == again
    assert part != other
    assert largest_distance(data, rows=3000).item() == whole


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: geometric_ladder(0.01, 1.0, levels=3), "sigma_min < sigma_max"),
        (lambda: geometric_ladder(1.0, 1.0, levels=3), "sigma_min < sigma_max"),
        (lambda: geometric_ladder(1.0, 0.0, levels=3), "sigma_min < sigma_max"),
        (lambda: geometric_ladder(1.0, 0.1, levels=0), "1 level or more"),
        (lambda: ladder_levels(10, 0.01, 1.0), "sigma_min < sigma_max"),
        (lambda: ladder_levels(10, 1.0, 0.01, overlap=1.0), "overlap"),
        (lambda: ladder_levels(10, 1.0, 0.01, overlap=0.0), "overlap"),
        (lambda: ladder_levels(10, 1.0, 0.01, overlap=0.999), "ladder_levels finds no ratio"),
        (lambda: ladder_levels(2, 1.0, 0.01), "ladder_levels finds no ratio"),
        (lambda: ladder_levels(4, 1.0, 0.01), "ladder_levels finds no ratio"),
        (lambda: matched_step_size((1.0,), steps=5), "2 levels or more"),
        (lambda: matched_step_size((2.0, 1.0), steps=0), "1 step or more"),
        (lambda: matched_step_size((1.0, 2.0), steps=5), "fall strictly"),
        (lambda: largest_distance(torch.zeros(0, 2)), "at least one row"),
        (lambda: as_ladder(()), "noise levels"),
        (lambda: as_ladder((2.0, math.nan)), "noise levels"),
        (lambda: as_ladder(torch.ones(2, 2)), "noise levels"),
        (lambda: as_ladder(torch.tensor(1.0)), "noise levels"),
    ],
)
def test_errors(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_ladder_takes_numbers_and_tensors() -> None:
    assert as_ladder((3.0, 2.0, 1.0)).tolist() == as_ladder(torch.tensor([3, 2, 1])).tolist() == [3.0, 2.0, 1.0]
    assert as_ladder(torch.tensor([2.0, 1.0], dtype=torch.float64)).dtype == torch.float64
