"""Ladders of noise levels σ₁ > ... > σ_L for annealed Langevin sampling, and how to choose them from the data.

References:
    Song and Ermon, "Improved techniques for training score-based generative models", 2020, techniques 1, 2 and 4.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from core.rng import Rng, for_all_rows
from core.shapes import as_float


def as_ladder(sigmas: Sequence[float] | Tensor) -> Float[Tensor, " levels"]:
    """The levels as a tensor.

    Raises:
        ValueError: no level, one that is not positive, or levels that do not fall.
    """
    ladder = as_float(torch.as_tensor(sigmas))
    falls = ladder.ndim == 1 and len(ladder) > 0 and bool((ladder.diff() < 0).all())
    if not falls or not 0 < ladder[-1] <= ladder[0] < math.inf:
        raise ValueError(f"noise levels must be positive and finite and fall strictly, but are {ladder.tolist()}.")
    return ladder


def geometric_ladder(sigma_max: float, sigma_min: float, *, levels: int) -> Float[Tensor, " levels"]:
    """σᵢ = σ_max (σ_min/σ_max)^((i-1)/(L-1)), `(levels,)`; a single level is σ_min.

    Checked by tests/cflows/test_noise_ladder.py (published values).

    Args:
        sigma_max: σ₁.
        sigma_min: σ_L, below σ₁.
        levels: number L of levels.

    Raises:
        ValueError: levels that would not fall.

    Example:
        >>> geometric_ladder(1.0, 0.01, levels=3)
        tensor([1.0000, 0.1000, 0.0100])
    """
    if not 0 < sigma_min < sigma_max < math.inf or levels < 1:
        raise ValueError(
            "a ladder needs 0 < sigma_min < sigma_max and 1 level or more, but has "
            f"{sigma_min}, {sigma_max} and {levels}."
        )
    if levels == 1:
        return torch.tensor([sigma_min])
    log_sigmas = torch.linspace(math.log(sigma_max), math.log(sigma_min), levels, dtype=torch.float64)
    return log_sigmas.exp().to(torch.get_default_dtype())


def largest_distance(
    data: Float[Tensor, "rows ..."], *, rows: int = 10_000, generator: Rng = None
) -> Float[Tensor, ""]:
    """max ‖xᵢ - xⱼ‖ over pairs of data: σ₁, so that any mode can be reached from any other (technique 1).

    Checked by tests/cflows/test_noise_ladder.py.

    Args:
        data: `(n, *event)`, one row or more.
        rows: of more data than this, so many are drawn; the result then is a lower bound, and close to it.
        generator: of that choice.

    Raises:
        ValueError: no data.

    Example:
        >>> largest_distance(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])).item()
        3.162...
    """
    if len(data) == 0:
        raise ValueError("the largest distance needs at least one row, but there is none.")
    x = data.flatten(1)
    if len(x) > rows:
        one = for_all_rows(generator, owner="largest_distance")
        x = x[torch.randperm(len(x), generator=one, device=x.device)[:rows]]
    # cdist squares its points: in float32 the mean that they share would take their digits.
    x = x - x.mean(0)
    return torch.stack([torch.cdist(part, x).max() for part in x.split(1000)]).max()


def ladder_levels(dimensions: int, sigma_max: float, sigma_min: float, *, overlap: float = 0.5) -> int:
    """Levels L whose ratio γ = σᵢ₋₁/σᵢ solves Φ(√(2D)(γ - 1) + 3γ) - Φ(√(2D)(γ - 1) - 3γ) = overlap (technique 2).

    The share of a level's samples that lie where the level before has most of its own.

    Checked by tests/cflows/test_noise_ladder.py (published numbers of levels).

    Args:
        dimensions: D of the data.
        sigma_max: σ₁.
        sigma_min: σ_L.
        overlap: within (0, 0.997); the paper takes about 0.5.

    Returns:
        L, rounded to the nearest whole number of levels.

    Raises:
        ValueError: levels that would not fall, an overlap outside (0, 1) or above Φ(3) - Φ(-3) = 0.997, that of a level
            with itself, or one that no ratio has: below 5 dimensions none has less than 0.997.

    Example:
        >>> ladder_levels(3 * 32 * 32, 50.0, 0.01)  # CIFAR-10, where the paper takes 232
        219
    """
    if not 0 < sigma_min < sigma_max or not 0 < overlap < 1:
        raise ValueError(
            "ladder_levels needs 0 < sigma_min < sigma_max and overlap within (0, 1), but has "
            f"{sigma_min}, {sigma_max} and {overlap}."
        )
    from scipy.optimize import brentq  # half as long to import as torch

    width, cdf = math.sqrt(2 * dimensions), NormalDist().cdf

    def excess(gamma: float) -> float:
        shift = width * (gamma - 1)
        return cdf(shift + 3 * gamma) - cdf(shift - 3 * gamma) - overlap

    high = 2.0
    while excess(high) > 0 and high < 1e6:
        high *= 2
    if not excess(high) < 0 < excess(1.0):
        raise ValueError(
            f"ladder_levels finds no ratio of levels with an overlap of {overlap} in {dimensions} dimensions: it needs "
            "5 dimensions or more and an overlap below 0.997."
        )
    gamma = brentq(excess, 1.0, high)
    return 1 + max(1, round(math.log(sigma_max / sigma_min) / math.log(gamma)))


def matched_step_size(sigmas: Sequence[float] | Tensor, *, steps: int) -> float:
    """ε of `annealed_langevin` for which T steps take each level closest to its own variance (technique 4).

    On a point mass a level starts from variance γ² σᵢ² and ends at σᵢ² [q^{2T} (γ² - w) + w] with q = 1 - ε/(2σ_L²),
    w = (ε/σ_L²)/(1 - q²), the paper's proposition 3; its step size is half of this ε, since its algorithm counts steps
    as α s + √(2α) z.

    Checked by tests/cflows/test_noise_ladder.py (published step sizes, and the variance recursion of the sampler).

    Args:
        sigmas: a geometric ladder.
        steps: T.

    Raises:
        ValueError: fewer than two levels, or no steps.

    Example:
        >>> cifar10 = geometric_ladder(50.0, 0.01, levels=232)
        >>> round(matched_step_size(cifar10, steps=5) / 2, 8)  # 6.2e-6 in the paper
        6.18e-06
    """
    ladder = as_ladder(sigmas).double()
    if len(ladder) < 2 or steps < 1:
        raise ValueError(
            f"matched_step_size needs 2 levels or more and 1 step or more, but has {len(ladder)} and {steps}."
        )
    ratio = float(ladder[0] / ladder[-1]) ** (2 / (len(ladder) - 1))

    def mismatch(log_relative: float) -> float:
        relative = math.exp(log_relative)  # ε/σ_L²
        q = (1 - relative / 2) ** 2
        noise = relative / (1 - q)
        return abs(q**steps * (ratio - noise) + noise - 1)

    from scipy.optimize import minimize_scalar  # half as long to import as torch

    grid = [math.log(2.0) * (i / 400) + math.log(1e-6) * (1 - i / 400) for i in range(401)]
    best = min(range(401), key=lambda i: mismatch(grid[i]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, 400)]
    found = minimize_scalar(mismatch, bounds=bounds, method="bounded", options={"xatol": 1e-12})
    return math.exp(found.x) * float(ladder[-1]) ** 2
