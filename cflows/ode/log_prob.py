"""Likelihood of what an ODE moves to noise, with how wrong the number can be."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Shaped
from torch import Tensor

from cflows.ode.field import Field, Solution, rows_of
from cflows.ode.fixed_grid import Times
from cflows.ode.solver import ODESolver
from core.density import DensityModel, Kind, LikelihoodEstimate
from core.divergence import Divergence, ExactDivergence, Hutchinson
from core.precision import outside_autocast
from core.rng import Rng
from core.shapes import fold_batch

Velocity = Callable[[Tensor, Tensor], Tensor]
Events = Shaped[Tensor, "..."]  # (*batch, *event)


@dataclass(frozen=True, eq=False)
class VelocityAndDivergence(Field):
    """The field of a likelihood: v(x, t), and ∇·v as one rate a column of the divergence."""

    velocity: Velocity
    divergence: Divergence
    probes: Tensor

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Both from one call of the velocity."""
        return self.divergence(lambda y: self.velocity(y, t), x, self.probes)

    def slope(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t)."""
        return self.velocity(x, t)

    def rows(self, index: Tensor) -> "VelocityAndDivergence":
        """The same for some of the rows, each with its own probes."""
        return replace(self, velocity=rows_of(self.velocity, index), probes=self.probes[:, index])


def default_divergence(features: int) -> Divergence:
    """The exact trace below 8 dimensions, 8 Rademacher probes from there on."""
    return ExactDivergence() if features < 8 else Hutchinson(probes=8)


@outside_autocast
def ode_log_prob(
    velocity: Velocity,
    base: DensityModel,
    x: Events,
    *,
    divergence: Divergence | None = None,
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int = 100,
    t_min: float = 0.0,
    error_factor: float | None = 10.0,
    generator: Rng = None,
) -> LikelihoodEstimate:
    """log p(x) = log p_base(x(1)) + ∫ ∇·v(x(t), t) dt along dx/dt = v(x, t) from x(t_min) = x.

    Value and divergence come from one call of the velocity. Every probe is integrated on its own, so that the spread
    of the integrals gives the standard error. Gradients flow where they are enabled.

    References:
        Chen et al., "Neural ordinary differential equations", 2018, eq. 8; Grathwohl et al., "FFJORD", 2019, eq. 7.

    Checked by tests/cflows/test_ode_solvers.py and tests/cflows/test_probability_flow.py.

    Args:
        velocity: v(x, t), rows in, rows out, t 0-dimensional, or `(rows,)` for `dopri5_per_sample`; rows independent.
            One that holds something for each row has `rows(index)`, as `ConditionalScore`.
        base: density at t = 1.
        x: `(*batch, *event)`.
        divergence: estimator; exact below 8 dimensions and 8 Rademacher probes above where omitted.
        method: see `cflows.ode.solver.ODESolver`.
        rtol: relative tolerance on x.
        atol: absolute tolerance, in units of x and in nats a dimension.
        steps: steps of a fixed method.
        t_min: start, within [0, 1).
        error_factor: solves once more with tolerances looser by this factor (half the steps of a fixed method) and
            reports the difference as `solver_error`, for adaptive methods with the errors of the steps added and never
            below atol a dimension: it errs on the large side, and is larger than what neighbours do to a row. None
            skips it.
        generator: draws the probes.

    Returns:
        Log-density in nats with its errors, each `(*batch,)`; `nfe` counts the calls of the velocity for each row, in
        the solve whose number is given.

    Raises:
        ValueError: `x` does not end in the base's event shape, an unknown method, a tolerance that is not positive, or
            t_min outside [0, 1), too few steps of a fixed method for a solver error, a tolerance below the dtype's own.
        RuntimeError: the step size vanishes; it names rows and time.

    Example:
        >>> from core import StandardNormal
        >>> x = torch.tensor([[0.5]])  # dx/dt = -x takes N(0, e²) to N(0, 1)
        >>> estimate = ode_log_prob(lambda x, t: -x, StandardNormal(1), x)
        >>> exact = -0.5 * (0.5 / torch.e) ** 2 - 1 - 0.9189385
        >>> abs(estimate.log_prob.item() - exact) < 1e-4
        True
    """
    check_start(t_min)
    rows, batch_shape = fold_batch(x, base.event_shape, owner="ode_log_prob")
    solver = ODESolver(method=method, rtol=rtol, atol=atol, steps=steps)
    estimate = transported_log_prob(
        velocity,
        base.log_prob,
        rows,
        solver,
        solver.grid(t_min, 1.0),
        divergence=divergence,
        error_factor=error_factor,
        generator=generator,
    )
    return estimate.reshape(batch_shape)


def transported_log_prob(
    velocity: Velocity,
    log_prob: Callable[[Tensor], Tensor],
    x: Tensor,
    solver: ODESolver,
    times: Times,
    *,
    divergence: Divergence | None,
    error_factor: float | None,
    generator: Rng,
) -> LikelihoodEstimate:
    """`ode_log_prob` of rows, over any times and towards any density at their end.

    Args:
        velocity: v(x, t).
        log_prob: log-density where the ODE ends.
        x: where it starts, `(rows, *event)`.
        solver: the method.
        times: those that the solver stops at.
        divergence: estimator, or None for the default.
        error_factor: as in `ode_log_prob`.
        generator: draws the probes.
    """
    if error_factor is not None and solver.fixed and solver.steps < solver.fewest_steps:
        raise ValueError(
            f"the solver error of {solver.method} compares with half its steps and needs {solver.fewest_steps} or "
            f"more, not {solver.steps}."
        )
    divergence = default_divergence(x.shape[1:].numel()) if divergence is None else divergence
    field = VelocityAndDivergence(velocity, divergence, divergence.draw(x, generator))
    solution = solver.solve(field, x, times, columns=divergence.columns)
    at_end = log_prob(solution.x)
    solver_error = None if error_factor is None else x.new_zeros(len(x))
    if error_factor is not None and len(x):
        with torch.no_grad():
            half = torch.cat([times[:-1:2], times[-1:]])
            other = solver.coarser(error_factor).solve(field, x, half, columns=divergence.columns)
            ends = at_end - log_prob(other.x), (solution.integrals - other.integrals).mean(1)
            solver_error = _solver_error(*ends, solution, other).clamp(min=solver.floor * x[0].numel())
    kind: Kind = "exact" if divergence.exact else "estimate"
    std_error = _std_error(solution.integrals.detach(), exact=divergence.exact)
    value = at_end + solution.integrals.mean(1)
    return LikelihoodEstimate(value, std_error, solver_error, None, kind, solution.nfe)


def _solver_error(end: Tensor, integral: Tensor, fine: Solution, coarse: Solution) -> Tensor:
    """Difference of two solves, and what keeps it from being small by chance.

    On fixed grids the integrals are compared step by step, so that no error hides behind one of the other sign; to the
    difference of adaptive ones the errors of all their steps are added.

    Args:
        end: difference of the log-density at the end, `(rows,)`.
        integral: difference of the integral, likewise.
        fine: the solve whose number is given.
        coarse: that with looser tolerances, or half the steps.
    """
    if fine.increments is not None and coarse.increments is not None:
        steps = fine.increments
        pairs = torch.cat([steps, steps.new_zeros(len(steps) % 2, steps.shape[1])]).unflatten(0, (-1, 2)).sum(1)
        return end.abs() + (pairs - coarse.increments).abs().sum(0)
    of_steps = [solve.local_error for solve in (fine, coarse) if solve.local_error is not None]
    return (end + integral).abs() + torch.stack(of_steps).sum(0)


def check_start(t_min: float) -> None:
    """Refuses a start outside [0, 1)."""
    if not 0 <= t_min < 1:
        raise ValueError(f"t_min must lie within [0, 1), but is {t_min}.")


def _std_error(integrals: Tensor, *, exact: bool) -> Tensor:
    """Of the mean over columns; one column cannot tell its own."""
    rows, columns = integrals.shape
    if exact or rows == 0:
        return integrals.new_zeros(rows)
    if columns == 1:
        return integrals.new_full((rows,), torch.nan)
    return integrals.std(1) / columns**0.5
