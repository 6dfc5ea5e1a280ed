import math
from functools import partial

import pytest
import torch
from contracts import solvers
from helpers import normal, rng, unit
from torch import Tensor

from cflows import ode_log_prob
from cflows.probability_flow import ADAPTIVE, FIXED, ODESolver
from core import StandardNormal
from core.density import DensityModel

ORDERS = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}


@pytest.mark.parametrize("method", ORDERS)
def test_order(method: str) -> None:
    def fixed(velocity: solvers.Velocity, base: DensityModel, x: Tensor, steps: float) -> Tensor:
        return ode_log_prob(velocity, base, x, method=method, steps=int(steps), error_factor=None).log_prob

    solvers.order_is(fixed, ORDERS[method])


@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_tolerance(method: str) -> None:
    def adaptive(velocity: solvers.Velocity, base: DensityModel, x: Tensor, tolerance: float) -> Tensor:
        return ode_log_prob(
            velocity, base, x, method=method, rtol=tolerance, atol=tolerance, error_factor=None
        ).log_prob

    # The low-order pairs need very many steps at a tight tolerance.
    tight = method in ("dopri5", "dopri8")
    solvers.error_follows_the_tolerance(adaptive, tolerances=(1e-4, 1e-6, 1e-8) if tight else (1e-2, 1e-4))


@pytest.mark.parametrize("method", ADAPTIVE + FIXED)
def test_velocity_is_asked_within_its_times(method: str) -> None:
    solvers.time_stays_inside(partial(ode_log_prob, method=method, steps=7, t_min=0.1), t_min=0.1)


def test_no_row_hides_behind_its_neighbours() -> None:
    """x = (k, y) with dy/dt = -k y cos kt: log p = log N(k, y exp(-sin k)) - sin k, hard for large k alone."""
    base, tolerance = StandardNormal(2).double(), 1e-5

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        k, y = x.unbind(1)
        return torch.stack([torch.zeros_like(k), -k * y * torch.cos(k * t)], 1)

    x = torch.tensor([[0.1, 1.0]], dtype=torch.float64).repeat(500, 1)
    x[0, 0] = 15.0
    k, y = x.unbind(1)
    exact = base.log_prob(torch.stack([k, y * torch.exp(-k.sin())], 1)) - k.sin()
    options = {"rtol": tolerance, "atol": tolerance, "error_factor": None}
    together, alone = (ode_log_prob(velocity, base, rows, **options).log_prob for rows in (x, x[:1]))
    assert (together - exact)[0].abs() < 2 * (alone - exact[:1])[0].abs() + tolerance


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4", "midpoint"])
def test_solver_error_on_growth(method: str, tolerance: float) -> None:
    x, base = 0.1 + 0.7 * unit(20, (2,), rng(4)), StandardNormal(2).double()
    estimate = ode_log_prob(solvers.logistic_growth, base, x, method=method, steps=20, rtol=tolerance, atol=tolerance)
    solvers.solver_error_is_not_small(estimate, solvers.logistic_log_prob(base, x))


def test_nfe_counts_every_call() -> None:
    calls = 0

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        assert t.ndim == 0
        return -x

    x, base = normal(3, (2,), rng(12)), StandardNormal(2).double()
    for method, expected in (("rk4", 40), ("euler", 10), ("dopri5", None)):
        calls = 0
        estimate = ode_log_prob(velocity, base, x, method=method, steps=10, error_factor=None)
        assert estimate.nfe.tolist() == [calls] * 3
        assert expected in (None, calls)


@pytest.mark.parametrize("t_min", [1e-5, 1e-3, 0.1, 1 / 3, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fixed_grid_ends_where_it_should(t_min: float, dtype: torch.dtype) -> None:
    x = torch.ones(1, 1, dtype=dtype)
    estimate = ode_log_prob(lambda x, t: -x, StandardNormal(1).to(dtype), x, method="rk4", steps=7, t_min=t_min)
    expected = StandardNormal(1).to(dtype).log_prob(x * math.exp(t_min - 1)) + t_min - 1
    torch.testing.assert_close(estimate.log_prob, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("keywords", [{"method": "runge"}, {"steps": 0}, {"rtol": 0.0}, {"atol": -1.0}])
def test_solver_refuses_what_makes_no_sense(keywords: dict) -> None:
    with pytest.raises(ValueError, match=r"method must be one of|needs positive tolerances"):
        ODESolver(**keywords)


def test_a_field_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="not finite or too rough"):
        ode_log_prob(lambda x, t: x * math.nan, StandardNormal(1), torch.ones(1, 1))


@pytest.mark.parametrize("t_min", [-0.5, 1.0, 1.5])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_start_must_lie_before_the_end(method: str, t_min: float) -> None:
    with pytest.raises(ValueError, match="t_min"):
        ode_log_prob(lambda x, t: -x, StandardNormal(1), torch.ones(1, 1), method=method, t_min=t_min)


def test_one_fixed_step_has_no_solver_error() -> None:
    x, base = torch.ones(1, 2, dtype=torch.float64), StandardNormal(2).double()
    with pytest.raises(ValueError, match="needs 2 or more"):
        ode_log_prob(lambda x, t: -3 * x, base, x, method="euler", steps=1)
    assert ode_log_prob(lambda x, t: -3 * x, base, x, method="euler", steps=1, error_factor=None).nfe.item() == 1


def test_a_tolerance_below_the_dtype_is_refused() -> None:
    x = torch.ones(1, 2)
    with pytest.raises(ValueError, match="below the precision"):
        ode_log_prob(lambda x, t: -x, StandardNormal(2), x, rtol=1e-12, atol=1e-12)
