import math
from functools import partial

import pytest
import torch
from contracts import solvers
from helpers import normal, rng, unit
from torch import Tensor

from cflows import ode_log_prob
from cflows.ode.field import Field
from cflows.ode.fixed_grid import _quadrature, adams
from cflows.ode.solver import ADAPTIVE, METHODS, PER_SAMPLE, ODESolver
from cflows.ode.tableaus import DORMAND_PRINCE, FIXED_TABLEAUS
from core import StandardNormal
from core.density import DensityModel
from core.shapes import align

ORDERS = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "adams": 3, "adams_sparse": 3}


@pytest.mark.parametrize("method", ORDERS)
def test_order(method: str) -> None:
    def fixed(velocity: solvers.Velocity, base: DensityModel, x: Tensor, steps: float) -> Tensor:
        return ode_log_prob(velocity, base, x, method=method, steps=int(steps), error_factor=None).log_prob

    # The quintic's error, of a higher order, is as large as that of the path until then.
    steps = (64, 128, 256) if method == "adams_sparse" else (16, 32, 64)
    solvers.order_is(fixed, ORDERS[method], steps=steps)


@pytest.mark.parametrize("method", [*ADAPTIVE, PER_SAMPLE])
def test_adaptive_tolerance(method: str) -> None:
    def adaptive(velocity: solvers.Velocity, base: DensityModel, x: Tensor, tolerance: float) -> Tensor:
        return ode_log_prob(
            velocity, base, x, method=method, rtol=tolerance, atol=tolerance, error_factor=None
        ).log_prob

    # The low-order pairs need very many steps at a tight tolerance.
    tight = method in ("dopri5", "dopri8", PER_SAMPLE)
    tolerances = (1e-4, 1e-6, 1e-8) if tight else (1e-2, 1e-4)
    # With steps of its own a row leaves less at the loose end, where the first ones are short anyway.
    solvers.error_follows_the_tolerance(adaptive, tolerances=(1e-5, 1e-7, 1e-9) if method == PER_SAMPLE else tolerances)


@pytest.mark.parametrize("method", METHODS)
def test_velocity_is_asked_within_its_times(method: str) -> None:
    solvers.time_stays_inside(partial(ode_log_prob, method=method, steps=25, t_min=0.1), t_min=0.1)


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
@pytest.mark.parametrize("method", ["dopri5", "dopri8", PER_SAMPLE, "rk4", "midpoint", "adams", "adams_sparse"])
def test_solver_error_on_growth(method: str, tolerance: float) -> None:
    x, base = 0.1 + 0.7 * unit(20, (2,), rng(4)), StandardNormal(2).double()
    estimate = ode_log_prob(solvers.logistic_growth, base, x, method=method, steps=24, rtol=tolerance, atol=tolerance)
    solvers.solver_error_is_not_small(estimate, solvers.logistic_log_prob(base, x))


def test_nfe_counts_every_call() -> None:
    calls = 0

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        assert t.ndim == 0
        return -x

    x, base = normal(3, (2,), rng(12)), StandardNormal(2).double()
    for method, expected in (("rk4", 40), ("euler", 10), ("adams", 11), ("adams_sparse", 11), ("dopri5", None)):
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
    with pytest.raises(ValueError, match=r"adams_sparse .* needs 24 or more, not 23"):
        ode_log_prob(lambda x, t: -3 * x, base, x, method="adams_sparse", steps=23)
    assert ode_log_prob(lambda x, t: -3 * x, base, x, method="euler", steps=1, error_factor=None).nfe.item() == 1


def test_a_tolerance_below_the_dtype_is_refused() -> None:
    x = torch.ones(1, 2)
    with pytest.raises(ValueError, match="below the precision"):
        ode_log_prob(lambda x, t: -x, StandardNormal(2), x, rtol=1e-12, atol=1e-12)


class Twisted:
    """dx/dt = ½ k cos(k t) x with a k of each row's own: log x grows by ½ sin k."""

    def __init__(self, k: Tensor) -> None:
        self.k = k

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        k = self.k[:, None]
        return 0.5 * k * torch.cos(k * align(t, x)) * x

    def rows(self, index: Tensor) -> "Twisted":
        return Twisted(self.k[index])


@pytest.mark.parametrize("method", [PER_SAMPLE, "adams", "adams_sparse", "rk4"])
def test_a_row_is_what_it_is_alone(method: str) -> None:
    """To 1e-6 nats, with easy and hard neighbours and something of its own for each row; so is its cost."""
    k, x = torch.tensor([0.1, 30.0, 1.0, 8.0], dtype=torch.float64), normal(4, (2,), rng(20))
    base, options = StandardNormal(2).double(), {"method": method, "rtol": 1e-4, "atol": 1e-4, "steps": 30}
    together = ode_log_prob(Twisted(k), base, x, **options)
    for i in range(4):
        alone = ode_log_prob(Twisted(k[i : i + 1]), base, x[i : i + 1], **options)
        torch.testing.assert_close(alone.log_prob, together.log_prob[i : i + 1], rtol=0, atol=1e-9)
        torch.testing.assert_close(alone.solver_error, together.solver_error[i : i + 1], rtol=0, atol=1e-9)
        assert alone.nfe == together.nfe[i]
    if method == PER_SAMPLE:
        assert together.nfe[0] < together.nfe[1] / 3, "the hard row makes the easy one pay"


def test_neighbours_move_a_row_by_less_than_the_solver_errors() -> None:
    """The coupling of torchdiffeq's methods, one step size for all rows, is within what the two solves report."""
    k, x = torch.tensor([0.1, 30.0, 1.0, 8.0], dtype=torch.float64), normal(4, (2,), rng(21))
    base = StandardNormal(2).double()
    for method, tolerance in (("dopri5", 1e-3), ("dopri5", 1e-5), ("dopri8", 1e-4)):
        options = {"method": method, "rtol": tolerance, "atol": tolerance}
        together, moved = ode_log_prob(Twisted(k), base, x, **options), []
        for i in range(4):
            alone = ode_log_prob(Twisted(k[i : i + 1]), base, x[i : i + 1], **options)
            moved.append((alone.log_prob - together.log_prob[i : i + 1]).abs())
            assert moved[-1] <= alone.solver_error + together.solver_error[i : i + 1]
        assert max(moved) > 0


@pytest.mark.parametrize("method", ["heun2", "heun3", "rk4", "adams", "adams_sparse"])
def test_no_error_hides_behind_one_of_the_other_sign(method: str) -> None:
    steps = max(12, ODESolver(method=method).fewest_steps)
    solvers.no_error_hides(partial(ode_log_prob, method=method, steps=steps), generator=rng(22))


@pytest.mark.parametrize("method", ["dopri5", PER_SAMPLE])
def test_an_error_names_rows_and_time(method: str) -> None:
    """Row 2 blows up at t = ½: dx/dt = x² from x = 2."""
    x = torch.tensor([[0.1], [0.2], [2.0]], dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"row 2.* at t=0\.[45]"):
        ode_log_prob(lambda x, t: x**2, StandardNormal(1).double(), x, method=method)


@pytest.mark.parametrize("method", ["dopri5", PER_SAMPLE])
def test_rows_that_are_not_finite_are_named(method: str) -> None:
    x = torch.tensor([[0.1], [math.nan], [2.0]], dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"row 1 at t=0"):
        ode_log_prob(lambda x, t: -x, StandardNormal(1).double(), x, method=method)


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 9, 24, 25])
def test_steps_of_any_number_have_a_solver_error(steps: int) -> None:
    x, base = torch.full((3, 2), 0.4, dtype=torch.float64), StandardNormal(2).double()
    for method in ("euler", "rk4", "adams"):
        estimate = ode_log_prob(solvers.logistic_growth, base, x, method=method, steps=steps)
        error = (estimate.log_prob - solvers.logistic_log_prob(base, x)).abs()
        assert (error <= 3 * estimate.solver_error).all()


def test_adams_is_exact_on_parabolas() -> None:
    """dx/dt = 3 t² on an uneven grid: exact once the past is there, and the cubic rate is throughout."""
    times = torch.tensor([0.0, 0.1, 0.4, 0.5, 1.1, 1.2], dtype=torch.float64)

    class Cubic(Field):
        def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return (3 * t**2).expand_as(x), (4 * t**3).expand(len(x), 1)

        def slope(self, x: Tensor, t: Tensor) -> Tensor:
            return self(x, t)[0]

        def rows(self, index: Tensor) -> "Cubic":
            return self

    x = torch.zeros(2, 1, dtype=torch.float64)
    start = adams(Cubic(), x, times[:2], columns=1).x
    found = adams(Cubic(), x, times, columns=1)
    torch.testing.assert_close(found.x - start, torch.full_like(x, 1.2**3 - 0.1**3), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.integrals, torch.full_like(x, 1.2**4), rtol=1e-12, atol=1e-12)
    assert found.nfe.tolist() == [6, 6]
    torch.testing.assert_close(found.increments.sum(0), found.integrals[:, 0])


@pytest.mark.parametrize("steps", [10, 11])
def test_sparse_rates(steps: int) -> None:
    """Every second node has its rate, and the last: six of them on an uneven grid are exact on a quintic."""
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 1.5
    asked = list[float]()

    class Quintic(Field):
        def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            asked.append(t.item())
            return -x, (6 * t**5).expand(len(x), 1)

        def slope(self, x: Tensor, t: Tensor) -> Tensor:
            return -x

        def rows(self, index: Tensor) -> "Quintic":
            return self

    x = torch.ones(2, 1, dtype=torch.float64)
    found = adams(Quintic(), x, times, columns=1, every=2)
    assert asked == [*times[:-1:2].tolist(), 1.0]
    torch.testing.assert_close(found.integrals, torch.ones_like(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.x, adams(Quintic(), x, times, columns=1).x, rtol=0, atol=0)
    assert found.nfe.tolist() == [steps + 1] * 2
    assert len(found.increments) == (steps + 1) // 2


def test_a_fixed_grid_never_reads_the_device() -> None:
    """On meta no value can be read."""
    x, base = torch.ones(3, 2, device="meta"), StandardNormal(2).to("meta")
    for method in ("euler", "rk4", "adams", "adams_sparse"):
        estimate = ode_log_prob(lambda x, t: -x * t, base, x, method=method, steps=24)
        assert estimate.log_prob.device.type == "meta"


@pytest.mark.parametrize("order", [4, 6])
def test_a_step_is_integrated_through_the_nodes_on_both_sides(order: int) -> None:
    weights = _quadrature(torch.linspace(0, 1, 12, dtype=torch.float64), order)
    for i in range(order // 2 - 1, 12 - order // 2):
        first = i + 1 - order // 2
        assert weights[i].nonzero().flatten().tolist() == list(range(first, first + order))
        torch.testing.assert_close(weights[i, first : first + order], weights[i, first : first + order].flip(0))


@pytest.mark.parametrize("name", [*FIXED_TABLEAUS, "dopri5"])
def test_tableaus_are_consistent(name: str) -> None:
    """Each row sums to its node, the weights to 1, those of the error to 0: a slip in one entry shows here."""
    tableau = DORMAND_PRINCE if name == "dopri5" else FIXED_TABLEAUS[name]
    sums = [sum(row) for row in tableau.rows]
    assert sums == pytest.approx([*tableau.nodes[1:], 1.0], abs=1e-14)
    assert sum(tableau.error or ()) == pytest.approx(0.0, abs=1e-14)


def test_a_coarser_solver_has_a_step_left() -> None:
    assert ODESolver(method="euler", steps=1).coarser(10.0).steps == 1
    assert ODESolver(method="euler", steps=9).coarser(10.0).steps == 4
