"""Solvers whose times are set beforehand: no value is read from the device, and no row depends on another."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from cflows.ode.field import Field, Report, Rows, Solution
from cflows.ode.tableaus import Tableau, combine

Times = Float[Tensor, " times"]  # float64, on the CPU, rising or falling
ADAMS_ORDER = 3
QUADRATURE_ORDERS = {1: 4, 2: 6}  # of the rates, at every node or at every second one


def runge_kutta(
    field: Field, x: Rows, times: Times, tableau: Tableau, *, columns: int, report: Report | None = None
) -> Solution:
    """One step of the tableau from each time to the next; the integrals weigh their rates as x weighs its slopes.

    Args:
        field: velocity and rates.
        x: where it starts, `(rows, *event)`.
        times: N + 1 times.
        tableau: the method.
        columns: integrals a row.
        report: hears of every step.
    """
    share = torch.tensor(tableau.nodes, dtype=times.dtype)
    clock = torch.lerp(times[:-1, None], times[1:, None], share).to(x)
    integrals, increments = x.new_zeros(len(x), columns), list[Tensor]()
    for step, h in enumerate(times.diff().tolist()):
        slopes, rates, y = list[Tensor](), list[Tensor](), x
        for stage, (t, row) in enumerate(zip(clock[step], tableau.rows, strict=True)):
            slope, rate = field(y, t) if tableau.weighs_rate(stage) else (field.slope(y, t), integrals)
            slopes.append(slope)
            rates.append(rate)
            y = combine(x, h, row, slopes)
        added = combine(torch.zeros_like(integrals), h, tableau.rows[-1], rates)
        x, integrals = y, integrals + added
        increments.append(_mean(added))
        if report is not None:
            report(step, x)
    nfe = (len(times) - 1) * len(tableau.nodes)
    return Solution(x, integrals, torch.full_like(x.flatten(1)[:, 0], nfe, dtype=torch.long), torch.stack(increments))


def adams(
    field: Field, x: Rows, times: Times, *, columns: int, every: int = 1, report: Report | None = None
) -> Solution:
    """Adams' methods of order 3 on any grid, one evaluation a step: predict, evaluate, correct.

    The predictor integrates the parabola through the last three slopes, the corrector that through the new slope, taken
    at the predicted place, and the last two. The first steps have the order that their past allows: let them be short.
    The rates do not act on x: they are integrated by a cubic through the four nodes about each step. Where they are
    taken at every second node alone, which spares half of the divergences, by a quintic through six of those.

    References:
        Hairer, Nørsett, Wanner, "Solving ordinary differential equations I", 1993, section III.1, eq. 1.5 and 1.8, and
        III.5 for grids that are not even.

    Checked by tests/cflows/test_ode_solvers.py (order, closed forms).

    Args:
        field: velocity and rates.
        x: where it starts, `(rows, *event)`.
        times: N + 1 times.
        columns: integrals a row.
        every: 1 or 2, at which nodes the rates are taken: the first and the last are among them.
        report: hears of every step.
    """
    nodes, clock = times.tolist(), times.to(x)
    weighed = [*range(0, len(nodes) - 1, every), len(nodes) - 1]
    slope, rate = field(x, clock[0])
    slopes, rates = [slope], [rate]
    for i in range(len(nodes) - 1):
        past, reached = nodes[max(0, i + 1 - ADAMS_ORDER) : i + 1], nodes[i + 1]
        predicted = combine(x, 1.0, _weights(past, nodes[i], reached), slopes[-len(past) :])
        if i + 1 in weighed:
            slope, rate = field(predicted, clock[i + 1])
            rates.append(rate)
        else:
            slope = field.slope(predicted, clock[i + 1])
        slopes = [*slopes, slope][-ADAMS_ORDER:]
        recent = nodes[max(0, i + 2 - ADAMS_ORDER) : i + 2]
        x = combine(x, 1.0, _weights(recent, nodes[i], reached), slopes[-len(recent) :])
        if report is not None:
            report(i, x)
    quadrature = _quadrature(times[weighed], QUADRATURE_ORDERS[every]).to(x)
    increments = torch.einsum("sn,nrc->src", quadrature, torch.stack(rates))
    nfe = torch.full_like(x.flatten(1)[:, 0], len(nodes), dtype=torch.long)
    return Solution(x, increments.sum(0), nfe, _mean(increments))


def _weights(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """∫ from start to end of the polynomial through values at the nodes, as weights of the values."""
    # Moments in units of the step keep the system well scaled.
    h = end - start
    places = (torch.tensor(nodes, dtype=torch.float64) - start) / h
    powers = torch.arange(len(nodes), dtype=torch.float64)
    return (h * torch.linalg.solve(places ** powers[:, None], 1 / (powers + 1))).tolist()


def _quadrature(times: Times, order: int) -> Float[Tensor, "steps times"]:
    """Weights of the values at all times: each step integrates the polynomial through the nodes about it."""
    nodes = times.tolist()
    weights, order = times.new_zeros(len(nodes) - 1, len(nodes)), min(order, len(nodes))
    for i, (start, end) in enumerate(pairwise(nodes)):
        first = max(0, min(i + 1 - order // 2, len(nodes) - order))
        about = slice(first, first + order)
        weights[i, about] = times.new_tensor(_weights(nodes[about], start, end))
    return weights


def _mean(columns: Tensor) -> Tensor:
    return columns.detach().mean(-1)
