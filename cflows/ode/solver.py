from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from cflows.ode.batch_adaptive import batch_adaptive
from cflows.ode.field import Field, Report, Rows, Solution
from cflows.ode.fixed_grid import ADAMS_ORDER, Times, adams, runge_kutta
from cflows.ode.per_sample import StepVanishesError, per_sample
from cflows.ode.tableaus import DORMAND_PRINCE, FIXED_TABLEAUS

Together = Literal["dopri5", "dopri8", "bosh3", "adaptive_heun"]
Fixed = Literal["euler", "midpoint", "heun2", "heun3", "rk4", "adams", "adams_sparse"]
Method = Literal[Together, "dopri5_per_sample", Fixed]
ADAPTIVE, FIXED, METHODS = get_args(Together), get_args(Fixed), get_args(Method)
PER_SAMPLE = "dopri5_per_sample"
ADAMS = {"adams": 1, "adams_sparse": 2}  # at every node or every second one an integral's rate


@dataclass(frozen=True, kw_only=True)
class ODESolver:
    """How an ODE is solved.

    - `dopri5`, `dopri8`, `bosh3`, `adaptive_heun`: adaptive, by torchdiffeq. One step size for all rows of a call,
      small enough for the worst of them: a row depends on its neighbours within the solver error.
    - `dopri5_per_sample`: adaptive, with a step size for each row, which leaves when it arrives; the velocity is called
      with a time for each row.
    - `euler`, `midpoint`, `heun2`, `heun3`, `rk4`, `adams`: on a fixed grid, 1, 2, 2, 3, 4 and 1 evaluations a step, of
      order 1, 2, 2, 3, 4 and 3. No row depends on another, and no value is read from the device.
    - `adams_sparse`: `adams` with the divergence at every second evaluation, for fields that are smooth; its error is
      known from 24 steps on.

    Attributes:
        method: as above.
        rtol: relative tolerance on x of an adaptive method.
        atol: absolute tolerance of an adaptive method, in units of x, and in nats a dimension on the log-density.
        steps: of a fixed method.

    Raises:
        ValueError: an unknown method, a tolerance that is not positive, or no step.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int = 100

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, but is {self.method!r}.")
        if self.steps < 1 or not (self.rtol > 0 and self.atol > 0):
            raise ValueError(
                f"the solver needs positive tolerances and 1 step or more, but has rtol={self.rtol}, "
                f"atol={self.atol}, steps={self.steps}."
            )

    @property
    def fixed(self) -> bool:
        """Whether the times are set beforehand."""
        return self.method in FIXED

    @property
    def order(self) -> float | None:
        """Of a fixed method; None of an adaptive one, whose error follows the tolerances."""
        if self.method in ADAMS:
            return float(ADAMS_ORDER)
        return FIXED_TABLEAUS[self.method].order if self.fixed else None

    @property
    def fewest_steps(self) -> int:
        """Of a fixed method, from which on twice the step tells its error."""
        return 24 if self.method == "adams_sparse" else 2

    @property
    def floor(self) -> float:
        """Smallest error to claim, nats a dimension: two adaptive solves can agree by taking the same steps."""
        return 0.0 if self.fixed else self.atol

    def coarser(self, factor: float) -> "ODESolver":
        """Tolerances looser by `factor`, and half the steps."""
        return replace(self, rtol=self.rtol * factor, atol=self.atol * factor, steps=max(1, self.steps // 2))

    def grid(self, start: float, end: float) -> Times:
        """Evenly spaced times of a fixed method, and the two ends of an adaptive one; float64, on the CPU."""
        return torch.linspace(start, end, self.steps + 1 if self.fixed else 2, dtype=torch.float64)

    def solve(self, field: Field, x: Rows, times: Times, *, columns: int = 0, report: Report | None = None) -> Solution:
        """Place and integrals at times[-1] from x and zeros at times[0].

        Args:
            field: velocity and rates.
            x: where it starts, `(rows, *event)`.
            times: float64, on the CPU: the steps of a fixed method; of an adaptive one the first and last alone count.
            columns: integrals a row.
            report: hears of x after every step that is taken.

        Raises:
            ValueError: an adaptive method with a tolerance below the dtype's own.
            RuntimeError: an adaptive method drives its step to zero, as on a field that is not finite.
        """
        if len(x) == 0:
            return Solution(x, x.new_zeros(0, columns), torch.zeros(0, dtype=torch.long, device=x.device))
        if self.method in ADAMS:
            return adams(field, x, times, columns=columns, every=ADAMS[self.method], report=report)
        if self.fixed:
            return runge_kutta(field, x, times, FIXED_TABLEAUS[self.method], columns=columns, report=report)
        eps = torch.finfo(x.dtype).eps
        if self.rtol < eps:
            raise ValueError(
                f"rtol={self.rtol:g} is below the precision {eps:g} of {x.dtype}; loosen it or use float64."
            )
        ends, tolerances = (times[0].item(), times[-1].item()), {"rtol": self.rtol, "atol": self.atol}
        try:
            if self.method == PER_SAMPLE:
                return per_sample(field, x, *ends, DORMAND_PRINCE, **tolerances, columns=columns, report=report)
            return batch_adaptive(field, x, *ends, self.method, **tolerances, columns=columns, report=report)
        except StepVanishesError as error:
            raise RuntimeError(
                f"{self.method} stopped at rtol={self.rtol:g}: {error}; the field is not finite or too rough there, so "
                "loosen the tolerance, raise t_min or use a fixed method such as rk4."
            ) from error
