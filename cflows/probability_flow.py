"""Likelihood of a score model along the probability-flow ODE."""

import math
from dataclasses import replace

from cflows.angle_flow import AngleFlow
from cflows.ode.log_prob import Events, check_start, default_divergence, transported_log_prob
from cflows.ode.solver import ODESolver
from cflows.sde import SDE, Score
from cflows.truncation import truncation
from core.density import DensityModel, LikelihoodEstimate
from core.divergence import Divergence
from core.precision import check_floating, outside_autocast
from core.rng import Rng
from core.shapes import fold_batch


@outside_autocast
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

    It is solved in the angle φ = atan(σ/α) for y = x/√(α² + σ²) (`AngleFlow`), where fewer steps do: adaptive methods
    in asinh(φ/0.3), fixed ones on `angle_grid`. With r = √(α² + σ²) this adds D log r(1)/r(t_min).

    The density is that of the process at t_min, the only one a score network defines. What lies between it and that at
    t = 0, log p_0(x) - log p_{t_min}(x), is reported to first order (`cflows.truncation.truncation`).

    References:
        Song et al., 2021, eq. 13 and app. D.2 (eq. 39).

    Checked by tests/cflows/test_probability_flow.py (mixtures in closed form for every process and method).

    Args:
        score: score(x, t) ≈ ∇ log p_t(x): a network, a closed form, the gradient of a flow's log-density.
        sde: the noising process.
        x: `(*batch, *event)`; the event is that of `base`, or all but the first dimension.
        base: density at t = 1; the SDE's prior where omitted.
        divergence: as in `ode_log_prob`.
        method: as in `ode_log_prob`; `dopri5_per_sample` calls the score with a time for each row.
        rtol: relative tolerance on y.
        atol: absolute tolerance, in units of y and in nats a dimension.
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

        >>> import torch
        >>> from cflows import VPSDE
        >>> estimate = probability_flow_log_prob(lambda x, t: -x, VPSDE(), torch.zeros(1, 2))
        >>> round(estimate.log_prob.item(), 4)  # -log 2π
        -1.8379
    """
    check_start(t_min)
    check_floating(x, owner="probability_flow_log_prob")
    prior = sde.prior(x.shape[1:]).to(x) if base is None else base
    rows, batch_shape = fold_batch(x, prior.event_shape, owner="probability_flow_log_prob")
    divergence = default_divergence(prior.event_shape.numel()) if divergence is None else divergence
    solver = ODESolver(method=method, rtol=rtol, atol=atol, steps=steps)
    flow = AngleFlow.solved_by(solver, score, sde)
    first, last = flow.radii(t_min)
    # log p(x) = log p(y) - D log r at both ends.
    volume = prior.event_shape.numel() * math.log(last / first)
    estimate = transported_log_prob(
        flow,
        lambda y: prior.log_prob(last * y) + volume,
        rows / first,
        solver,
        flow.times(solver, t_min),
        divergence=divergence,
        error_factor=error_factor,
        generator=generator,
    )
    left = truncation(score, sde, rows, divergence=divergence, t_min=t_min, generator=generator)
    return replace(estimate, truncation=left).reshape(batch_shape)
