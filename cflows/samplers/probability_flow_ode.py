from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cflows.probability_flow import ADAPTIVE, ODESolver, Velocity
from cflows.samplers.posterior_mean import posterior_mean
from cflows.samplers.sampler import Callback, Orders, Sampler
from cflows.sde import SDE, Rows, Score, probability_flow
from cflows.time_grid import Spacing, check_grid, time_grid
from core.rng import Rng


class _Tableau(NamedTuple):
    """An explicit Runge-Kutta method: row i weighs slopes 0 to i into the place of slope i + 1, the last into x."""

    order: float
    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]


TABLEAUS = {
    "euler": _Tableau(1.0, (0.0,), ((1.0,),)),
    "midpoint": _Tableau(2.0, (0.0, 1 / 2), ((1 / 2,), (0.0, 1.0))),
    "heun2": _Tableau(2.0, (0.0, 1.0), ((1.0,), (1 / 2, 1 / 2))),
    "heun3": _Tableau(3.0, (0.0, 1 / 3, 2 / 3), ((1 / 3,), (0.0, 2 / 3), (1 / 4, 0.0, 3 / 4))),
    "rk4": _Tableau(
        4.0, (0.0, 1 / 3, 2 / 3, 1.0), ((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0), (1 / 8, 3 / 8, 3 / 8, 1 / 8))
    ),
}


@dataclass(frozen=True, kw_only=True)
class ProbabilityFlow(Sampler):
    """dx/dt = f(x, t) - ½ g(t)² s(x, t) solved from t = 1 to t_min, and back by `encode`.

    Each x_T has its x_0 and each x_0 its latent x_T, which depends on the data and the process alone once the score is
    exact. An adaptive method (`dopri5`, `dopri8`, `bosh3`, `adaptive_heun`, `fehlberg2`) keeps the error of a step
    within its tolerances for the worst row; on a mixture the error at the end was below 20 of them (`fehlberg2`: 500).
    Its step is one for all rows, so that a row depends on its neighbours within that error. A fixed one takes 1
    (`euler`), 2 (`midpoint`, `heun2`), 3 (`heun3`) or 4 (`rk4`) evaluations a step of `time_grid`.

    References:
        Song et al., 2021, section 4.3 and eq. 13. Hairer, Nørsett, Wanner, "Solving ordinary
        differential equations I", 1993, table 1.1 (midpoint, heun3) and table 1.2 (rk4, the 3/8 rule).

    Checked by tests/cflows/test_probability_flow_sampler.py (orders and round trips, Gaussians and mixtures).

    Attributes:
        method: as above.
        rtol: relative tolerance on x of an adaptive method.
        atol: absolute tolerance of an adaptive method, in units of x.
        steps: number of steps of a fixed method.
        t_min: time of the data's end; above 0 for a score network.
        spacing: how the times of a fixed method are spread, as in `time_grid`.
        denoise: end with E[x_0 | x_{t_min}] instead of x at t_min, for one more evaluation; `encode` takes what it is
            given for x at t_min.

    Raises:
        ValueError: an unknown method or spacing, a tolerance that is not positive, fewer than one step, t_min outside
            [0, 1); when called, a tolerance below the precision of x.
        RuntimeError: when called, an adaptive method whose step vanishes.

    Note:
        The callback hears of every step of a fixed method and of every accepted step of an adaptive one. An adaptive
        method reads its step size from the device once a step; a fixed one never waits for it.

    Example:
        Data N(0, 2²) under the VP process: x is a fixed multiple of its latent, a little less than 2 of it.

        >>> from cflows import VPSDE
        >>> def score(x, t):
        ...     scale, std = VPSDE().marginal(t)
        ...     return -x / (4 * scale**2 + std**2)
        >>> flow = ProbabilityFlow()
        >>> x = flow(score, VPSDE(), torch.ones(1, 1))
        >>> round(x.item(), 3), round(flow.encode(score, VPSDE(), x).item(), 3)
        (2.0, 1.0)
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int = 100
    t_min: float = 1e-3
    spacing: Spacing = "time"
    denoise: bool = False

    def __post_init__(self) -> None:
        self._solver()
        check_grid("ProbabilityFlow", steps=self.steps, t_min=self.t_min, spacing=self.spacing)

    @property
    def orders(self) -> Orders:
        """That of a fixed method; none of an adaptive one, whose error follows the tolerances."""
        order = None if self.method in ADAPTIVE else TABLEAUS[self.method].order
        return Orders(order, order)

    @torch.no_grad()
    def __call__(
        self, score: Score, sde: SDE, x_T: Rows, *, generator: Rng = None, callback: Callback | None = None
    ) -> Rows:
        """x_0 like `x_T`; nothing is drawn from the generator."""

        def finish(x: Tensor) -> Tensor:
            return posterior_mean(score, sde, x, x.new_tensor(self.t_min)) if self.denoise else x

        return self._solve(score, sde, x_T, self._times(sde), finish, callback)

    @torch.no_grad()
    def encode(self, score: Score, sde: SDE, x_0: Rows, *, callback: Callback | None = None) -> Rows:
        """The latent x_T like `x_0`, without gradient: the same ODE from t_min up to 1."""
        return self._solve(score, sde, x_0, self._times(sde).flip(0), lambda x: x, callback)

    def _times(self, sde: SDE) -> Tensor:
        return time_grid(sde, steps=self.steps, t_min=self.t_min, spacing=self.spacing)

    def _solver(self) -> ODESolver:
        return ODESolver(method=self.method, rtol=self.rtol, atol=self.atol, steps=self.steps)

    def _solve(
        self,
        score: Score,
        sde: SDE,
        x: Tensor,
        times: Tensor,
        finish: Callable[[Tensor], Tensor],
        callback: Callback | None,
    ) -> Tensor:
        velocity = probability_flow(score, sde)
        solve = self._adaptive if self.method in ADAPTIVE else self._fixed
        return solve(velocity, x, times, finish, callback or (lambda step, x: None))

    def _fixed(
        self, velocity: Velocity, x: Tensor, times: Tensor, finish: Callable[[Tensor], Tensor], report: Callback
    ) -> Tensor:
        _, nodes, rows = TABLEAUS[self.method]
        share = torch.tensor(nodes, dtype=times.dtype)
        stages = torch.lerp(times[:-1, None], times[1:, None], share).to(x)
        for step, h in enumerate(times.diff().tolist()):
            slopes, y = [], x
            for t, row in zip(stages[step], rows, strict=True):
                slopes.append(velocity(y, t))
                y = x + h * sum(weight * slope for weight, slope in zip(row, slopes, strict=True) if weight)
            x = finish(y) if step == self.steps - 1 else y
            report(step, x)
        return x

    def _adaptive(
        self, velocity: Velocity, x: Tensor, times: Tensor, finish: Callable[[Tensor], Tensor], report: Callback
    ) -> Tensor:
        if len(x) == 0:
            return x
        accepted = 0

        # The first step is chosen by a trial that may be far too long where x hardly moves: no score is asked outside.
        def field(t: Tensor, state: tuple[Tensor]) -> tuple[Tensor]:
            return (velocity(state[0], t.clamp(self.t_min, 1.0)),)

        def accept(t: Tensor, state: tuple[Tensor], dt: Tensor) -> None:
            nonlocal accepted
            if accepted:  # the state is that before the step
                report(accepted - 1, state[0])
            accepted += 1

        field.callback_accept_step = accept  # type: ignore[attr-defined]
        ends = times[[0, -1]].to(x)
        x = finish(self._solver().integrate(field, (x,), ends, rtol=(self.rtol,))[0])
        report(accepted - 1, x)
        return x
