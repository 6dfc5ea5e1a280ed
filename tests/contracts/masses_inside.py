"""What lines of equal density around a share of the mass promise."""

from collections.abc import Callable, Sequence
from math import exp
from typing import Any

import numpy as np
from scipy.optimize import brentq


def hold_their_share(levels_of_mass: Callable[[Any, Sequence[float]], Any]) -> None:
    """Of p ∝ exp(-r) in two dimensions a share q lies within r where 1 - (1 + r) exp(-r) = q."""
    x = np.linspace(-16, 16, 321)
    p = np.exp(-np.hypot(x[:, None], x))
    shares = (0.5, 0.9, 0.99)
    levels = levels_of_mass(p, shares)
    expected = [exp(-brentq(lambda r, q=q: 1 - (1 + r) * exp(-r) - q, 0, 20)) for q in shares]
    np.testing.assert_allclose(levels, expected, rtol=0.02)
    np.testing.assert_allclose([p[p >= level].sum() / p.sum() for level in levels], shares, atol=2e-3)
