"""Torchdiffeq's adaptive methods: one step size for all rows, small enough for the worst of them."""

import torch
from torch import Tensor

from cflows.ode.field import Field, Report, Rows, Solution, local_error
from cflows.ode.per_sample import MAX_STEPS, StepVanishesError, name_rows

State = tuple[Tensor, ...]  # x, and the integrals where there are any
Tolerances = tuple[tuple[float, ...], tuple[float, ...]]  # relative and absolute, a part of the state each


class _Watched:
    """The field as torchdiffeq calls it, counted, with the errors of the steps and when a row was first not finite."""

    def __init__(self, field: Field, x: Tensor, ends: Tensor, report: Report | None, tolerances: Tolerances) -> None:
        self.field, self.report, self.tolerances = field, report, tolerances
        self.low, self.high = ends.min(), ends.max()
        self.calls, self.accepted = 0, -1
        self.t, self.slope = ends[0], x
        self.state: State = (x,)
        self.shares: State = (x,)
        self.local_error = torch.zeros_like(x.detach().flatten(1)[:, 0])
        self.failed_at = torch.full_like(x.detach().flatten(1)[:, 0], torch.nan)

    def __call__(self, t: Tensor, state: State) -> State:
        """Slope and rates."""
        # The first step is chosen by a trial that may go far too long: nothing is asked for outside.
        self.t = torch.minimum(torch.maximum(t, self.low), self.high)
        self.calls += 1
        self.state = state
        self.slope, rates = self.field(state[0], self.t)
        with torch.no_grad():  # noted on the device, and read only when the solve fails
            bad = ~self.slope.flatten(1).sum(1).isfinite() & self.failed_at.isnan()
            self.failed_at = torch.where(bad, self.t, self.failed_at)
        return (self.slope, rates)[: len(state)]

    def norm(self, shares: State) -> Tensor:
        """Largest root-mean-square over the rows: no row's error hides behind its neighbours.

        Args:
            shares: errors of a step in units of the tolerances, x and the integrals where there are any.
        """
        self.shares = shares
        return torch.stack([part.flatten(1).square().mean(1).sqrt().max() for part in shares]).max()

    @torch.no_grad()
    def callback_accept_step(self, t: Tensor, state: State, dt: Tensor) -> None:
        """Torchdiffeq tells of the state before the step; its error, and the state at its end, are the last ones."""
        parts = zip(self.shares, state, self.state, *self.tolerances, strict=True)
        errors = [share * (atol + rtol * torch.maximum(old.abs(), new.abs())) for share, old, new, rtol, atol in parts]
        off, nats = errors if len(errors) == 2 else (errors[0], errors[0].new_zeros(len(errors[0]), 0))
        self.local_error = self.local_error + local_error(off, nats).to(self.local_error)  # tolerances are float64
        if self.report is not None and self.accepted >= 0:
            self.report(self.accepted, state[0])
        self.accepted += 1

    def where(self) -> str:
        """The rows that are at fault, and when."""
        bad = self.failed_at.isfinite().nonzero()[:, 0]
        if len(bad):
            return f"{name_rows(bad, self.failed_at[bad])}, where the velocity is not finite"
        worst = self.slope.detach().flatten(1).square().sum(1).argmax()[None]
        return f"{name_rows(worst, self.t[None])}, the fastest"


def batch_adaptive(
    field: Field,
    x: Rows,
    start: float,
    end: float,
    method: str,
    *,
    rtol: float,
    atol: float,
    columns: int,
    report: Report | None = None,
) -> Solution:
    """Steps as the worst row allows: the largest root mean square over a row, of x or of the integrals, counts.

    Args:
        field: velocity and rates.
        x: where it starts, `(rows, *event)`.
        start: first time.
        end: last time, before or after it.
        method: as torchdiffeq calls it.
        rtol: relative tolerance on x. The integrals have none: their error would grow with their size.
        atol: absolute tolerance on x; a dimension on the integrals.
        columns: integrals a row.
        report: hears of every step that is taken.

    Raises:
        StepVanishesError: the step vanishes, the field is not finite or the steps are too many.
    """
    from torchdiffeq import odeint  # it imports scipy, half as long as torch takes

    ends = x.new_tensor([start, end])
    state = (x, x.new_zeros(len(x), columns))[: 2 if columns else 1]
    relative = (rtol, 10 * torch.finfo(x.dtype).eps)[: len(state)]
    absolute = (atol, atol * x[0].numel())[: len(state)]
    watched = _Watched(field, x, ends, report, (relative, absolute))
    # An adaptive method would step past the end and interpolate: step_t makes it land there.
    options = {"norm": watched.norm, "step_t": ends[1:], "max_num_steps": MAX_STEPS}
    try:
        path = odeint(watched, state, ends, method=method, options=options, rtol=relative, atol=absolute)
    except AssertionError as error:
        raise StepVanishesError(f"{error} on {watched.where()}") from error
    if report is not None:
        report(watched.accepted, path[0][-1])
    integrals = path[1][-1] if columns else x.new_zeros(len(x), 0)
    nfe = torch.full((len(x),), watched.calls, dtype=torch.long, device=x.device)
    return Solution(path[0][-1], integrals, nfe, local_error=watched.local_error)
