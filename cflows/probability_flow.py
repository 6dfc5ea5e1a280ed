"""Likelihood of a model that moves data to noise along an ODE, with how wrong the number can be."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Shaped
from torch import Tensor
from torchdiffeq import odeint

from cflows.sde import SDE, Score, probability_flow
from core.density import DensityModel, Kind, LikelihoodEstimate
from core.divergence import Divergence, ExactDivergence, Hutchinson
from core.rng import Rng
from core.shapes import fold_batch, sum_event

Velocity = Callable[[Tensor, Tensor], Tensor]
Field = Callable[[Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]  # (t, (x, nats)) to their derivatives
Events = Shaped[Tensor, "..."]  # (*batch, *event)

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun", "fehlberg2")
MAX_STEPS = 20_000  # far beyond any solve that ends: a tolerance out of reach stops here
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")


@dataclass(frozen=True, kw_only=True)
class ODESolver:
    """How an ODE is solved: a method of torchdiffeq with tolerances, or on a fixed grid with steps.

    Attributes:
        method: adaptive `dopri5`, `dopri8`, `bosh3`, `adaptive_heun`, `fehlberg2`; fixed `euler`, `midpoint`, `heun2`,
            `heun3`, `rk4`.
        rtol: relative tolerance on x of an adaptive method.
        atol: absolute tolerance of an adaptive method, on x and on the log-density in nats.
        steps: equal steps of a fixed method.

    Note:
        An adaptive method takes one step size for all rows of a call, small enough for the worst of them: a row's
        result depends on its neighbours within the solver error.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int = 100

    def __post_init__(self) -> None:
        if self.method not in ADAPTIVE + FIXED:
            raise ValueError(f"method must be one of {', '.join(ADAPTIVE + FIXED)}, but is {self.method!r}.")
        if self.steps < 1 or not (self.rtol > 0 and self.atol > 0):
            raise ValueError(
                f"the solver needs positive tolerances and 1 step or more, but has rtol={self.rtol}, "
                f"atol={self.atol}, steps={self.steps}."
            )

    @property
    def floor(self) -> float:
        """Smallest error to claim, nats: two adaptive solves can agree by taking the same steps."""
        return self.atol if self.method in ADAPTIVE else 0.0

    def coarser(self, factor: float) -> "ODESolver":
        """Tolerances looser by `factor`, and half the steps."""
        return replace(self, rtol=self.rtol * factor, atol=self.atol * factor, steps=max(1, self.steps // 2))

    def solve(self, field: Field, x: Tensor, nats: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Position and log-density change at t[1] from those at t[0].

        The log-density is held to `atol` alone, above ten rounding units: a relative tolerance would let the error
        grow with the number of dimensions.

        Raises:
            RuntimeError: an adaptive method drives its step to zero, as on a field that is not finite.
        """
        # The log-density goes without a relative tolerance, but not below what its dtype can hold.
        rtol = (self.rtol, 10 * torch.finfo(x.dtype).eps)
        x, nats = self.integrate(field, (x, nats), t, rtol=rtol)
        return x, nats

    def integrate(
        self, field: Callable[..., tuple[Tensor, ...]], state: tuple[Tensor, ...], t: Tensor, *, rtol: tuple[float, ...]
    ) -> tuple[Tensor, ...]:
        """The state at t[1] from that at t[0], each part to its relative tolerance and all to `atol`.

        Raises:
            ValueError: an adaptive method with a tolerance below the dtype's own.
            RuntimeError: as `solve`.
        """
        grid = torch.linspace(0, 1, self.steps + 1, dtype=t.dtype, device=t.device) * (t[1] - t[0]) + t[0]
        # An adaptive method would step past the end and interpolate: step_t makes it land there.
        adaptive = {"norm": _worst_row, "step_t": t[1:], "max_num_steps": MAX_STEPS}
        options = {"grid_constructor": lambda *_: grid} if self.method in FIXED else adaptive
        dtype = state[0].dtype
        eps = torch.finfo(dtype).eps
        if self.method in ADAPTIVE and self.rtol < eps:
            raise ValueError(f"rtol={self.rtol:g} is below the precision {eps:g} of {dtype}; loosen it or use float64.")
        atol = (self.atol,) * len(state)
        try:
            path = odeint(field, state, t, rtol=rtol, atol=atol, method=self.method, options=options)
        except AssertionError as error:
            raise RuntimeError(
                f"{self.method} stopped at rtol={self.rtol:g}: {error}; the field is not finite or too rough, so "
                "loosen the tolerance, raise t_min or use a fixed method such as rk4."
            ) from error
        return tuple(part[-1] for part in path)


def _worst_row(state: tuple[Tensor, ...]) -> Tensor:
    """Largest root-mean-square over the rows: no row's error hides behind its neighbours."""
    return torch.stack([part.flatten(1).square().mean(1).sqrt().max() for part in state]).max()


def default_divergence(features: int) -> Divergence:
    """The exact trace below 8 dimensions, 8 Rademacher probes from there on."""
    return ExactDivergence() if features < 8 else Hutchinson(probes=8)


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

    Checked by tests/cflows/test_probability_flow.py.

    Args:
        velocity: v(x, t), rows in, rows out, t 0-dimensional; rows independent.
        base: density at t = 1.
        x: `(*batch, *event)`.
        divergence: estimator; exact below 8 dimensions and 8 Rademacher probes above where omitted.
        method: see `ODESolver`.
        rtol: relative tolerance on x.
        atol: absolute tolerance, in units of x and in nats.
        steps: steps of a fixed method.
        t_min: start, within [0, 1).
        error_factor: solves once more with tolerances looser by this factor (half the steps of a fixed method) and
            reports the difference as `solver_error`, never below atol: it errs on the large side. None skips it.
        generator: draws the probes.

    Returns:
        Log-density in nats with its errors, each `(*batch,)`.

    Raises:
        ValueError: `x` does not end in the base's event shape, an unknown method, a tolerance that is not positive, or
            t_min outside [0, 1), one step of a fixed method with a solver error, or a tolerance below the dtype's own.
        RuntimeError: the step size vanishes.

    Example:
        >>> from core import StandardNormal
        >>> x = torch.tensor([[0.5]])  # dx/dt = -x takes N(0, e²) to N(0, 1)
        >>> estimate = ode_log_prob(lambda x, t: -x, StandardNormal(1), x)
        >>> exact = -0.5 * (0.5 / torch.e) ** 2 - 1 - 0.9189385
        >>> abs(estimate.log_prob.item() - exact) < 1e-4
        True
    """
    if not 0 <= t_min < 1:
        raise ValueError(f"t_min must lie within [0, 1), but is {t_min}.")
    rows, batch_shape = fold_batch(x, base.event_shape, owner="ode_log_prob")
    divergence = default_divergence(rows.shape[1:].numel()) if divergence is None else divergence
    solver = ODESolver(method=method, rtol=rtol, atol=atol, steps=steps)
    if error_factor is not None and method in FIXED and steps < 2:
        raise ValueError("the solver error of a fixed method compares with half its steps and needs 2 or more, not 1.")
    probes = divergence.draw(rows, generator)
    log_prob, std_error, nfe = _solve(velocity, base, rows, divergence, probes, solver, t_min)
    solver_error = None
    if error_factor is not None:
        with torch.no_grad():
            coarse, _, _ = _solve(velocity, base, rows, divergence, probes, solver.coarser(error_factor), t_min)
            solver_error = (log_prob - coarse).abs().clamp(min=solver.floor)
    kind: Kind = "exact" if divergence.exact else "estimate"
    calls = torch.full_like(log_prob, nfe, dtype=torch.long)
    return LikelihoodEstimate(log_prob, std_error, solver_error, None, kind, calls).reshape(batch_shape)


def _solve(
    velocity: Velocity,
    base: DensityModel,
    x: Tensor,
    divergence: Divergence,
    probes: Tensor,
    solver: ODESolver,
    t_min: float,
) -> tuple[Tensor, Tensor, int]:
    """Log-density, its standard error from the probes, and the calls of the velocity."""
    nfe = 0

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal nfe
        nfe += 1
        return divergence(lambda y: velocity(y, t), state[0], probes)

    if len(x) == 0:
        return x.new_zeros(0), x.new_zeros(0), 0
    columns = divergence.columns
    end, integrals = solver.solve(field, x, x.new_zeros(len(x), columns), x.new_tensor([t_min, 1.0]))
    log_prob = base.log_prob(end) + integrals.mean(1)
    if divergence.exact:
        return log_prob, torch.zeros_like(log_prob), nfe
    if columns == 1:
        return log_prob, torch.full_like(log_prob, torch.nan), nfe
    return log_prob, integrals.detach().std(1) / columns**0.5, nfe


def probability_flow_log_prob(
    score: Score,
    sde: SDE,
    x: Events,
    *,
    base: DensityModel | None = None,
    divergence: Divergence | None = None,
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int = 100,
    t_min: float = 1e-5,
    error_factor: float | None = 10.0,
    generator: Rng = None,
) -> LikelihoodEstimate:
    """log p_{t_min}(x) = log p_1(x(1)) + ∫ ∇·v dt along the probability-flow ODE, v = f(x, t) - ½ g(t)² ∇ log p_t(x).

    The density is that of the process at t_min, the only one a score network defines. What lies between it and that at
    t = 0, log p_0(x) - log p_{t_min}(x), is reported to first order in 1 - α and σ², all taken at t_min:
    `truncation` = -(1 - α)(D + x·s) - ½ σ² (∇·s + ‖s‖²).

    References:
        Song et al., 2021, eq. 13 and app. D.2 (eq. 39).

    Checked by tests/cflows/test_probability_flow.py (mixtures in closed form for VE, VP and sub-VP).

    Args:
        score: score(x, t) ≈ ∇ log p_t(x): a network, a closed form, the gradient of a flow's log-density.
        sde: the noising process.
        x: `(*batch, *event)`; the event is that of `base`, or all but the first dimension.
        base: density at t = 1; the SDE's prior where omitted.
        divergence: as in `ode_log_prob`.
        method: as in `ode_log_prob`.
        rtol: relative tolerance on x.
        atol: absolute tolerance, in units of x and in nats.
        steps: steps of a fixed method.
        t_min: start, within [0, 1); a score network needs it above 0.
        error_factor: as in `ode_log_prob`.
        generator: draws the probes.

    Returns:
        Log-density in nats with its errors, each `(*batch,)`.

    Raises:
        ValueError: as `ode_log_prob`.
        RuntimeError: the step size vanishes.

    Example:
        Data N(0, 1) stay N(0, 1) under the VP process.

        >>> from cflows import VPSDE
        >>> estimate = probability_flow_log_prob(lambda x, t: -x, VPSDE(), torch.zeros(1, 2))
        >>> round(estimate.log_prob.item(), 4)  # -log 2π
        -1.8379
    """
    base = sde.prior(x.shape[1:]).to(x) if base is None else base
    divergence = default_divergence(base.event_shape.numel()) if divergence is None else divergence
    estimate = ode_log_prob(
        probability_flow(score, sde),
        base,
        x,
        divergence=divergence,
        method=method,
        rtol=rtol,
        atol=atol,
        steps=steps,
        t_min=t_min,
        error_factor=error_factor,
        generator=generator,
    )
    rows, batch_shape = fold_batch(x, base.event_shape, owner="probability_flow_log_prob")
    return replace(
        estimate, truncation=_truncation(score, sde, rows, divergence, t_min, generator).reshape(batch_shape)
    )


@torch.no_grad()
def _truncation(score: Score, sde: SDE, x: Tensor, divergence: Divergence, t_min: float, generator: Rng) -> Tensor:
    """To first order in what scale and variance change by up to t_min, times ∂ log p/∂α and ∂ log p/∂σ²."""
    if t_min == 0 or len(x) == 0:
        return x.new_zeros(len(x))
    # In float32 the change of a scale near 1 would have no digits.
    scale, std = sde.marginal(torch.tensor([0.0, t_min], dtype=torch.float64, device=x.device))
    lost, gained = (scale[0] - scale[1]).to(x), (std[1].square() - std[0].square()).to(x)
    s, div = divergence(lambda y: score(y, x.new_tensor(t_min)), x, divergence.draw(x, generator))
    grown = x[0].numel() + sum_event(x * s)
    return -lost * grown - 0.5 * gained * (div.mean(1) + sum_event(s.square()))
