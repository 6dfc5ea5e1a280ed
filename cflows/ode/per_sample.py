"""Step sizes of its own for every row: a row's result and cost are what they would be alone."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cflows.ode.field import Field, Report, Rows, Solution, local_error
from cflows.ode.tableaus import Tableau, combine
from core.shapes import align

MAX_STEPS = 20_000  # far beyond any solve that ends: a tolerance out of reach stops here
FIRST, SAFETY, SHRINK, GROW = 0.15, 0.9, 0.2, 5.0


class StepVanishesError(RuntimeError):
    """An adaptive solver cannot go on; the message names rows and times."""


class _State(NamedTuple):
    """Rows on their way: index among all, time, next step, whether it is a second try, place, and what is there."""

    row: Tensor
    t: Tensor
    h: Tensor
    again: Tensor
    x: Tensor
    integrals: Tensor
    slope: Tensor
    rate: Tensor
    local_error: Tensor


def per_sample(
    field: Field,
    x: Rows,
    start: float,
    end: float,
    tableau: Tableau,
    *,
    rtol: float,
    atol: float,
    columns: int,
    report: Report | None = None,
) -> Solution:
    """Each row steps as its own error allows, and leaves the batch when it arrives.

    A step is taken again, shorter, where the local error exceeds 1 in its root mean square over the row, in units of
    atol + rtol |x|, or where that of an integral exceeds D · atol: `atol` nats a dimension. The step after such a one
    is no longer than it. The host reads once a round which rows are left.

    References:
        Hairer, Nørsett, Wanner, "Solving ordinary differential equations I", 1993, section II.4, eq. 4.11 to 4.13, and
        the rule after them for the step that follows a rejected one.

    Checked by tests/cflows/test_ode_solvers.py (tolerance, and rows alone as among others) and
    tests/cflows/test_solver_error.py (errors of the steps, and what follows a second try).

    Args:
        field: velocity and rates; `rows` serves those that are left, each at its own time.
        x: where it starts, `(rows, *event)`.
        start: first time.
        end: last time, before or after it.
        tableau: a method with an error estimate.
        rtol: relative tolerance on x.
        atol: absolute tolerance.
        columns: integrals a row.
        report: hears of every round, with the rows that have arrived where they are.

    Raises:
        StepVanishesError: a row's step vanishes, or too many rounds; it names rows and times.
    """
    t = x.new_full((len(x),), start)
    slope, rate = field(x, t)
    # Of the same power of the tolerance as later steps: two tolerances never take the same ones.
    first = FIRST * atol ** (1 / tableau.order) * (end - start)
    state = _State(
        torch.arange(len(x), device=x.device), t, torch.full_like(t, first), torch.zeros_like(t, dtype=torch.bool), x,
        x.new_zeros(len(x), columns), slope, rate, torch.zeros_like(t),
    )  # fmt: skip
    arrived, integrals, errors, nfe = x, state.integrals, torch.zeros_like(t), torch.zeros_like(state.row)
    for count in range(MAX_STEPS):
        state = _round(field, state, end, tableau, rtol=rtol, atol=atol)
        if report is not None:
            report(count, arrived.index_copy(0, state.row, state.x))
        done, stalled = state.t == torch.full_like(state.t, end), state.t + state.h == state.t
        some_done, some_stalled = torch.stack([done.any(), (stalled & ~done).any()]).tolist()
        if some_stalled:
            rows = (stalled & ~done).nonzero()[:, 0]
            raise StepVanishesError(f"the step vanishes on {name_rows(state.row[rows], state.t[rows])}")
        if some_done:
            there, left = done.nonzero()[:, 0], (~done).nonzero()[:, 0]
            rows = state.row[there]
            arrived = arrived.index_copy(0, rows, state.x[there])
            integrals = integrals.index_copy(0, rows, state.integrals[there])
            errors[rows] = state.local_error[there]
            nfe[rows] = 1 + (count + 1) * len(tableau.nodes)
            if not len(left):
                return Solution(arrived, integrals, nfe, local_error=errors)
            state, field = _State(*(part[left] for part in state)), field.rows(left)
    raise StepVanishesError(f"{MAX_STEPS} rounds are not enough for {name_rows(state.row, state.t)}")


def _round(field: Field, state: _State, end: float, tableau: Tableau, *, rtol: float, atol: float) -> _State:
    """One step tried by every row, taken where its error is small enough."""
    row, t, h, again, x, integrals, slope, rate, errors = state
    last = (h.abs() >= (end - t).abs()) | (t + h == end)
    h = torch.where(last, end - t, h)
    t_next = torch.where(last, torch.full_like(t, end), t + h)
    slopes, rates, y = [slope], [rate], x
    for i, weights in enumerate(tableau.rows):
        y = _add(x, h, weights, slopes)
        node = tableau.nodes[i + 1] if i + 1 < len(tableau.nodes) else 1.0
        clock = torch.lerp(t, t_next, node)  # exactly the end at the end
        slope, rate = field(y, clock) if tableau.weighs_rate(i + 1) else (field.slope(y, clock), integrals)
        slopes.append(slope)
        rates.append(rate)
    total = _add(integrals, h, tableau.rows[-1], rates[:-1])
    with torch.no_grad():
        off = _add(torch.zeros_like(x), h, tableau.error, slopes)
        nats = _add(torch.zeros_like(integrals), h, tableau.error, rates)
        share = off / (atol + rtol * torch.maximum(x.abs(), y.abs()))
        shares = share.flatten(1).square().mean(1, keepdim=True).sqrt(), nats.abs() / (atol * x[0].numel())
        error = torch.cat(shares, 1).amax(1)
        taken = error <= 1  # not where it is NaN
        factor = (SAFETY * error ** (-1 / tableau.order)).clamp(SHRINK, GROW).nan_to_num(SHRINK)
        h_next = h * torch.where(taken & ~again, factor, factor.clamp(max=1.0))
    keep = lambda new, old: torch.where(align(taken, new), new, old)  # noqa: E731
    return _State(
        row, keep(t_next, t), h_next, ~taken, keep(y, x), keep(total, integrals),
        keep(slopes[-1], slopes[0]), keep(rates[-1], rates[0]), keep(errors + local_error(off, nats), errors),
    )  # fmt: skip


def _add(x: Tensor, h: Tensor, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + h Σ wᵢ kᵢ with a step for every row."""
    return x + align(h, x) * combine(torch.zeros_like(x), 1.0, weights, slopes)


def name_rows(rows: Tensor, t: Tensor) -> str:
    """`row 3 at t=0.25, row 7 at t=0.5 and 12 more`."""
    named = ", ".join(f"row {i} at t={time:.6g}" for i, time in zip(rows[:5].tolist(), t[:5].tolist(), strict=True))
    return f"{named} and {len(rows) - 5} more" if len(rows) > 5 else named
