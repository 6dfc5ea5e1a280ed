"""The cheapest solver within a share of the standard error: on errors that are known, and on an ODE."""

import math
from collections.abc import Callable

import pytest
import torch
from contracts import solvers
from helpers import Tooth, rng, unit

from cflows import ODESolver, choose_solver, ode_log_prob
from cflows.ode.budget import SolverChoice
from core import LikelihoodEstimate, StandardNormal

EXACT = torch.linspace(-3, -1, 50, dtype=torch.float64)


def known(error: Callable[[ODESolver], float], *, own: bool = False, seen: list[ODESolver] | None = None):
    """Log-likelihoods off by a known error, of either sign."""

    def estimate(solver: ODESolver) -> LikelihoodEstimate:
        if seen is not None:
            seen.append(solver)
        off = error(solver) * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(25)
        claimed = off.abs() if own else None
        return LikelihoodEstimate(EXACT + off, solver_error=claimed, nfe=torch.full((50,), 10))

    return estimate


@pytest.mark.parametrize("share", [1.0, 0.1, 0.003])
def test_the_choice_keeps_the_share_and_one_ten_times_looser_does_not(share: float) -> None:
    """Off by 3 tolerances, and hence by 27 from the solve before: the largest power of ten with 27 tol ≤ 0.02 share."""
    choice = choose_solver(known(lambda s: 3 * s.rtol), ODESolver(), share=share, standard_error=lambda e: 0.02)
    tolerance = choice.solver.rtol
    assert choice.met
    assert choice.solver_error == pytest.approx(27 * tolerance)
    assert 3 * tolerance <= 27 * tolerance <= share * 0.02 < 270 * tolerance
    assert choice.solver == ODESolver(rtol=tolerance, atol=tolerance)
    assert (choice.allowed, choice.nfe) == (pytest.approx(0.02 * share), 10)


def test_every_solve_is_compared_with_the_one_before() -> None:
    seen: list[ODESolver] = []
    solver = ODESolver(rtol=1e-3, atol=1e-5)
    choose_solver(known(lambda s: s.rtol, seen=seen), solver, share=0.1, standard_error=lambda e: 0.1)
    assert [s.rtol for s in seen] == [1e-1, 1e-2, 1e-3]
    assert [s.atol for s in seen] == pytest.approx([1e-3, 1e-4, 1e-5])  # in their ratio


def test_an_adaptive_method_claims_no_less_than_its_tolerance_a_dimension() -> None:
    choice = choose_solver(known(lambda s: 0.0), ODESolver(), share=1.0, standard_error=lambda e: 0.05, dimensions=100)
    assert (choice.solver.rtol, choice.solver_error) == (1e-4, pytest.approx(0.01))


def test_a_fixed_grid_is_judged_by_its_own_error() -> None:
    """Order 4 with error steps⁻⁴: 0.001 allows 8 steps, 0.0001 takes 16."""
    fixed = ODESolver(method="rk4", steps=100)
    for allowed, steps in ((1e-3, 8), (1e-4, 16)):
        choice = choose_solver(
            known(lambda s: s.steps**-4.0, own=True), fixed, share=1.0, standard_error=lambda e, a=allowed: a
        )
        assert (choice.solver.steps, choice.met) == (steps, True)


def test_the_tightest_is_returned_where_none_is_good_enough() -> None:
    choice = choose_solver(known(lambda s: 1 + s.rtol), ODESolver(), share=1e-9, standard_error=lambda e: 1.0)
    assert (choice.solver.rtol, choice.met) == (1e-6, False)
    fixed = choose_solver(
        known(lambda s: 1.0, own=True), ODESolver(method="euler"), share=0.1, standard_error=lambda e: 1.0
    )
    assert (fixed.solver.steps, fixed.met) == (1024, False)
    not_finite = choose_solver(known(lambda s: math.nan), ODESolver(), share=1.0, standard_error=lambda e: 1.0)
    assert not not_finite.met


def test_a_solve_that_fails_sends_the_search_on() -> None:
    def estimate(solver: ODESolver) -> LikelihoodEstimate:
        if solver.rtol > 2e-3:
            raise RuntimeError("too loose")
        return known(lambda s: s.rtol)(solver)

    choice = choose_solver(estimate, ODESolver(), share=1.0, standard_error=lambda e: 1.0)
    assert choice.solver.rtol == 1e-4  # 10⁻³ has none to be compared with

    def failing(solver: ODESolver) -> LikelihoodEstimate:
        raise RuntimeError("never")

    with pytest.raises(RuntimeError, match="never"):
        choose_solver(failing, ODESolver(), share=1.0, standard_error=lambda e: 1.0)
    with pytest.raises(ValueError, match="no two tolerances"):
        choose_solver(known(lambda s: 0.0), ODESolver(), share=1.0, standard_error=lambda e: 1.0, tightest=0.05)
    with pytest.raises(ValueError, match="share above 0"):
        choose_solver(estimate, ODESolver(), share=0.0, standard_error=lambda e: 1.0)


Search = Callable[[ODESolver], SolverChoice]
GROWTH, BASE = 0.1 + 0.7 * unit(50, (2,), rng(4)), StandardNormal(2).double()
STANDARD_ERROR = 0.02


@torch.no_grad()
def growth(solver: ODESolver) -> LikelihoodEstimate:
    options = {"method": solver.method, "rtol": solver.rtol, "atol": solver.atol, "steps": solver.steps}
    factor = 10.0 if solver.fixed else None
    return ode_log_prob(solvers.logistic_growth, BASE, GROWTH, error_factor=factor, **options)


def search(solver: ODESolver, factor: float = 1.0) -> SolverChoice:
    return choose_solver(growth, solver, share=0.1 * factor, standard_error=lambda e: STANDARD_ERROR, dimensions=2)


def true_error_keeps_the_share(choose: Search) -> None:
    """Against the closed form, for adaptive methods and fixed grids; and nothing is spent in vain."""
    exact = solvers.logistic_log_prob(BASE, GROWTH)
    for method in ("dopri5", "dopri5_per_sample", "rk4", "midpoint"):
        solver = choose(ODESolver(method=method)).solver
        error = (growth(solver).log_prob - exact).abs().mean()
        assert error <= 0.1 * STANDARD_ERROR, f"{method}: {error:.1e} with {solver}"
        assert error > 1e-7 * STANDARD_ERROR, f"{method}: {error:.1e} with {solver}"


def test_the_true_error_keeps_the_share() -> None:
    true_error_keeps_the_share(search)


def test_a_search_that_allows_too_much_is_noticed() -> None:
    Tooth(true_error_keeps_the_share, lambda: search, lambda: lambda solver: search(solver, 1000.0)).bites()
