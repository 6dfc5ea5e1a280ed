"""Whether a density of one or two values integrates to 1."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from core import DensityModel
from core.density import Context

POINTS = {1: 1025, 2: 113}  # a dimension, odd: every second one makes the grid of half as many intervals
REACH = 1.8  # in the variable u; the data fill |u| ≤ 1
BATCH_ROWS = 1000


class Integral(NamedTuple):
    """∫ p(x) dx over the grid, and its difference from that over every second point."""

    value: float
    error: float


@torch.no_grad()
def integral(model: DensityModel, x: Tensor, context: Context = None, *, seed: int = 0) -> Integral | None:
    """∫ p(x) dx by the trapezoidal rule in u, xᵢ = cᵢ + Rᵢ sinh(u)/sinh(1): even where the data are, wider beyond.

    c and R are middle and half the range of the rows, so that the grid reaches 2.5 R to either side. The rule's error
    falls faster than any power of its step for smooth densities; mass beyond the grid is missing.

    Checked by tests/experiment/likelihood/test_normalization_check.py.

    Args:
        model: a density of continuous rows.
        x: rows that say where it lies, `(rows, *event)`.
        context: `(rows, features)`, of which the first is integrated over.
        seed: of trace probes, where the density has any.

    Returns:
        The integral; None for more than two values, or rows all of which share a value.

    Raises:
        RuntimeError: a density that cannot be computed or is not finite somewhere on the grid.
    """
    size = x[0].numel()
    low, high = x.flatten(1).double().aminmax(dim=0)
    if size not in POINTS or not bool((high > low).all()):
        return None
    axes, weights = zip(*(_axis(*ends, POINTS[size]) for ends in zip(low, high, strict=True)), strict=True)
    grid = torch.cartesian_prod(*axes).reshape(-1, size).to(x).reshape(-1, *x.shape[1:])
    condition = None if context is None else context[:1].expand(len(grid), -1)
    density = _log_prob(model, grid, condition, seed).exp().reshape([POINTS[size]] * size)
    if not density.isfinite().all():
        raise RuntimeError("the density is not finite everywhere around the data")
    full, half = (_sum(density, weights, every) for every in (1, 2))
    return Integral(full, abs(full - half))


def _axis(low: Tensor, high: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Places and their trapezoidal weights, `(points,)`, float64."""
    u = torch.linspace(-REACH, REACH, points, dtype=low.dtype, device=low.device)
    stretch = 0.5 * (high - low) / math.sinh(1)
    return 0.5 * (low + high) + stretch * u.sinh(), stretch * u.cosh() * (u[1] - u[0])


def _sum(density: Tensor, weights: tuple[Tensor, ...], every: int) -> float:
    """Over every point, or every second one with twice the weight; the ends count half."""
    for weight in reversed(weights):
        along = every * weight[::every].clone()
        along[[0, -1]] *= 0.5
        density = density[..., ::every] @ along
    return density.item()


def _log_prob(model: DensityModel, x: Tensor, context: Context, seed: int) -> Tensor:
    generator = torch.Generator(x.device).manual_seed(seed)
    contexts = [None] * len(x) if context is None else context.split(BATCH_ROWS)
    parts = zip(x.split(BATCH_ROWS), contexts, strict=False)
    return torch.cat([model.log_prob(rows, of_rows, generator=generator).double() for rows, of_rows in parts])
