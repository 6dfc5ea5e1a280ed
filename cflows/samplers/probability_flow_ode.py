from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cflows.ode.field import Plain
from cflows.ode.solver import ODESolver
from cflows.samplers.posterior_mean import posterior_mean
from cflows.samplers.sampler import Callback, Orders, Sampler
from cflows.sde import SDE, Rows, Score, probability_flow
from cflows.time_grid import Spacing, check_grid, time_grid
from core.rng import Rng


@dataclass(frozen=True, kw_only=True)
class ProbabilityFlow(Sampler):
    """dx/dt = f(x, t) - ½ g(t)² s(x, t) solved from t = 1 to t_min, and back by `encode`.

    Each x_T has its x_0 and each x_0 its latent x_T, which depends on the data and the process alone once the score is
    exact. An adaptive method (`dopri5`, `dopri8`, `bosh3`, `adaptive_heun`) keeps the error of a step within its
    tolerances for the worst row; on a mixture the error at the end was below 20 of them. Its step is one for all rows,
    so that a row depends on its neighbours within that error; that of `dopri5_per_sample` is its own, and the score is
    called with a time for each row. A fixed one takes 1 (`euler`, `adams`), 2 (`midpoint`, `heun2`), 3 (`heun3`) or 4
    (`rk4`) evaluations a step of `time_grid`; `adams` 1 more at the start.

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
        order = self._solver().order
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
        flow = Plain(probability_flow(score, sde))
        if callback is None or len(x) == 0:
            return finish(self._solver().solve(flow, x, times).x) if len(x) else x
        held: list[tuple[int, Tensor]] = []

        # A step is reported when the next one is there: the last one only after `finish`.
        def report(step: int, x: Tensor) -> None:
            if held:
                callback(*held.pop())
            held.append((step, x))

        x = finish(self._solver().solve(flow, x, times, report=report).x)
        callback(held[-1][0], x)
        return x
