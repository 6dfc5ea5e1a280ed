"""Noise that turns values of a grid into data with a density."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def resolution(x: Array) -> Array:
    """The smallest gap between two different values of each column of (rows, columns); 0 where all are equal.

    Example:
        >>> resolution(np.array([[0.0, 7.0], [2.0, 7.0], [0.5, 7.0]])).tolist()
        [0.5, 0.0]
    """
    gaps = np.diff(np.sort(x, axis=0), axis=0)
    smallest = np.where(gaps > 0, gaps, np.inf).min(0, initial=np.inf)
    return np.where(np.isfinite(smallest), smallest, 0.0)


def spread(x: Array, random: np.random.Generator) -> Array:
    """x + Δ (u - 1/2) with u uniform on [0, 1) and Δ the resolution of each column.

    A value that many rows share has no density: a model can put a spike there, and its likelihood grows without bound
    and says nothing. Values on a grid become a histogram with bars of the grid's width, which none can beat; values
    that hardly repeat hardly move. No value crosses the middle between itself and a neighbour.

    Args:
        x: float64, (rows, columns).
        random: source of u.

    Returns:
        As `x`.
    """
    return x + resolution(x) * (random.random(x.shape) - 0.5)
