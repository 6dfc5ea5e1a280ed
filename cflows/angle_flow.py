"""The probability-flow ODE in the angle between signal and noise, where it is as smooth as the data allow."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from cflows.ode.field import rows_of
from cflows.ode.fixed_grid import Times
from cflows.ode.solver import ODESolver
from cflows.sde import SDE, Rows, Score
from core.shapes import align

WARP, SPREAD = 0.01, 1.0  # of the grid: where its steps stop shrinking, and how many go to large angles
ADAPTIVE_WARP = 0.3
HALVINGS = 60


@dataclass(frozen=True, kw_only=True, eq=False)
class AngleFlow:
    """dy/dφ = -tan φ (y + r s(r y, t)) with φ = atan(σ/α), y = x/r and r = √(α² + σ²).

    It is dx/dt = f - ½ g² s for any (α, σ), brought to the unit sphere of signal and noise: with the noise prediction
    ε = -σ s and the data prediction x₀ it reads dy/dφ = cos φ ε - sin φ x₀. Every process of the same φ(t_min) has the
    same curves, and y keeps its size. With `warp` k the variable is u instead, φ = k sinh u: the smaller the angle, the
    shorter a step of u.

    References:
        Salimans and Ho, "Progressive distillation", 2022, app. D (the angle, for VP).

    Checked by tests/cflows/test_angle_flow.py (the ODE in t, for every process).

    Attributes:
        score: s(x, t).
        sde: the noising process.
        warp: k, or 0 for φ itself.

    Example:
        Data N(0, 1) stay N(0, 1) under the VP process: nothing moves.

        >>> from cflows import VPSDE
        >>> flow = AngleFlow(score=lambda x, t: -x, sde=VPSDE())
        >>> flow(torch.ones(1, 1), torch.tensor(0.7)).abs().item() < 1e-6
        True
    """

    score: Score
    sde: SDE
    warp: float = 0.0

    def __call__(self, y: Rows, u: Float[Tensor, "*rows"]) -> Rows:
        """dy/du, like `y`; u is 0-dimensional or `(rows,)`."""
        # A few numbers a call: float64 keeps the digits of small angles.
        u = u.double()
        phi, rate = (self.warp * u.sinh(), self.warp * u.cosh()) if self.warp else (u, torch.ones_like(u))
        tangent = phi.tan()
        t = self.sde.time(-2 * tangent.log()).clamp(0, 1)
        radius = align(torch.hypot(*self.sde.marginal(t)).to(y), y)
        return -align((rate * tangent).to(y), y) * (y + radius * self.score(radius * y, t.to(y)))

    @classmethod
    def solved_by(cls, solver: ODESolver, score: Score, sde: SDE) -> "AngleFlow":
        """The flow in the variable that suits the solver: φ on a fixed grid, u with k = 0.3 for an adaptive one."""
        return cls(score=score, sde=sde, warp=0.0 if solver.fixed else ADAPTIVE_WARP)

    def times(self, solver: ODESolver, t_min: float) -> Times:
        """Where the solver stops on its way from t_min to 1, in the flow's variable."""
        ends = self.ends(t_min)
        return angle_grid(*ends, solver.steps) if solver.fixed else solver.grid(*ends)

    def rows(self, index: Tensor) -> "AngleFlow":
        """The same flow for some of the rows."""
        return replace(self, score=rows_of(self.score, index))

    def ends(self, t_min: float) -> tuple[float, float]:
        """u at t_min and at 1."""
        low, high = self.angles(t_min)
        return (math.asinh(low / self.warp), math.asinh(high / self.warp)) if self.warp else (low, high)

    def angles(self, t_min: float) -> tuple[float, float]:
        """φ at t_min and at 1."""
        scale, std = self.sde.marginal(torch.tensor([t_min, 1.0], dtype=torch.float64))
        low, high = torch.atan2(std, scale).tolist()
        return low, high

    def radii(self, t_min: float) -> tuple[float, float]:
        """r at t_min and at 1."""
        low, high = torch.hypot(*self.sde.marginal(torch.tensor([t_min, 1.0], dtype=torch.float64))).tolist()
        return low, high


@lru_cache(maxsize=64)
def angle_grid(start: float, end: float, steps: int) -> Float[Tensor, " times"]:
    """Angles from start to end, evenly spaced in asinh(φ/k) + w φ with k = 0.01 and w = 1, float64, on the CPU.

    Evenly in log φ where the data's own width decides, and in φ where modes part. k is to be no larger than the width
    of the narrowest structure of the data, in units of α.

    Checked by tests/cflows/test_angle_flow.py. k and w were chosen by trial on the problems of
    `benchmarks/ode_problems.py`, which therefore flatter them.
    """
    low, high = (math.asinh(phi / WARP) + SPREAD * phi for phi in (start, end))
    target = torch.linspace(low, high, steps + 1, dtype=torch.float64)
    below, above = torch.full_like(target, min(start, end)), torch.full_like(target, max(start, end))
    for _ in range(HALVINGS):
        middle = 0.5 * (below + above)
        short = torch.asinh(middle / WARP) + SPREAD * middle < target
        below, above = torch.where(short, middle, below), torch.where(short, above, middle)
    phi = 0.5 * (below + above)
    phi[0], phi[-1] = start, end  # exact, whatever the rounding on the way
    return phi
