"""The tails of the normal law beside mpmath, and the search of a root where Newton's steps do not end."""

import math

import mpmath
import torch
from torch import Tensor

from discrete.bijections.quantiles import Residual, bracketed_newton, hazard, log_ndtr, newton_step


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


def test_the_few_that_still_move_go_on_alone_to_the_same_roots() -> None:
    """x⁵ = c, from where some roots are farther off than others: they are taken out twice."""
    c = torch.cat([torch.full((900,), 1e24), torch.full((90,), 1e20), torch.full((10,), 1e6)]).double().reshape(4, 250)
    asked: list[int] = []

    def fifth(c: Tensor) -> Residual:
        return lambda x: (x**5 - c, (5 * x**4).clamp(min=1e-300).log())

    def select(index: Tensor) -> Residual:
        asked.append(len(index))
        return fifth(c.flatten()[index])

    tolerance = 1e-12 * c
    start, low, high = (torch.full_like(c, value) for value in (1e5, 0.0, 1e5))
    alone, slopes = bracketed_newton(fifth(c), start, low, high, tolerance=tolerance, select=select)
    together, same = bracketed_newton(fifth(c), start, low, high, tolerance=tolerance)
    assert asked == [100, 10]
    torch.testing.assert_close(alone, c**0.2, rtol=1e-12, atol=0)
    assert torch.equal(alone, together)
    assert torch.equal(slopes, same)


def test_one_step_of_newton_tells_what_is_left() -> None:
    """A root, one a step away, and one that is not: x² = 2 from √2, from close by and from 1."""
    root = math.sqrt(2)
    x = torch.tensor([root, root + 1e-16, root + 1e-4, 1.0, torch.nan], dtype=torch.float64)
    found, log_slope, moves = newton_step(lambda x: (x.square() - 2, (2 * x).log()), x, torch.full_like(x, 1e-15))
    torch.testing.assert_close(found[:4], x[:4] - (x[:4].square() - 2) / (2 * x[:4]), rtol=0, atol=1e-15)
    torch.testing.assert_close(log_slope[:4], (2 * x[:4]).log())
    assert moves.tolist() == [False, False, True, True, True]
