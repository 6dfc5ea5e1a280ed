"""The tails of the normal law beside mpmath, and the search of a root where Newton's steps do not end."""

import math

import mpmath
import torch
from torch import Tensor

from discrete.bijections.quantiles import bracketed_newton, hazard, log_ndtr


def test_the_continued_fraction_is_good_to_rounding_from_where_it_is_taken() -> None:
    z = torch.tensor([-37.3, -38.0, -41.0, -60.0, -1e5], dtype=torch.float64)
    with mpmath.workdps(40):
        lam = [mpmath.npdf(v) / (mpmath.erfc(-mpmath.mpf(v) / mpmath.sqrt(2)) / 2) for v in z.tolist()]
    expected = torch.tensor([float(v) for v in lam], dtype=torch.float64)
    torch.testing.assert_close(hazard(z, log_ndtr(z)), expected, rtol=4 * torch.finfo(z.dtype).eps, atol=0)


def test_a_root_about_which_newton_goes_to_and_fro_is_found_by_halves() -> None:
    """r = ±√|x - c|: Newton's step is 2 (c - x), there and back for ever."""
    c = torch.tensor([0.3, -0.7, 1.9], dtype=torch.float64)

    def residual(x: Tensor) -> tuple[Tensor, Tensor]:
        v = x - c
        return v.sign() * v.abs().sqrt(), -math.log(2) - 0.5 * v.abs().log()

    low, high = torch.full_like(c, -1.0), torch.full_like(c, 2.0)
    x, _ = bracketed_newton(residual, torch.full_like(c, 0.9), low, high, tolerance=torch.full_like(c, 1e-6))
    torch.testing.assert_close(x, c, rtol=0, atol=1e-12)
