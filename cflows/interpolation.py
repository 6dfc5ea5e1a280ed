"""Ways between two events through the latent space of a probability flow."""

import torch
from jaxtyping import Float
from torch import Tensor

from cflows.samplers.probability_flow_ode import ProbabilityFlow
from cflows.sde import SDE, Rows, Score
from core.latents import spherical_weights


def interpolate(
    sampler: ProbabilityFlow, score: Score, sde: SDE, x_0: Rows, x_1: Rows, *, steps: int = 8
) -> Float[Tensor, "steps rows ..."]:
    """Data on the way from x_0 to x_1, row by row: decoded z_τ between the latents z_0 of x_0 and z_1 of x_1.

    z_τ = [sin((1 - τ) ω) z_0 + sin(τ ω) z_1]/sin ω, τ = 0, ..., 1, with ω the angle between the two, which stays where
    a normal prior has its mass; straight where they are parallel or opposite.

    References:
        Song et al., 2021, section 4.3 (manipulating latents).
        Shoemake, "Animating rotation with quaternion curves", 1985.

    Checked by tests/cflows/test_interpolation.py.

    Args:
        sampler: encodes and decodes.
        score: s(x, t), asked for as many rows as `x_0` has, so that it may hold a context of so many.
        sde: the noising process.
        x_0: first events, `(rows, *event)`, without their noise (data at t_min).
        x_1: last events, likewise.
        steps: points on the way, both ends included, 2 or more.

    Returns:
        `(steps, rows, *event)`, without gradient; both ends are the events within the error of the solver, and denoised
        where the sampler does that.

    Raises:
        ValueError: fewer than two steps, or events of different shapes.

    Example:
        >>> from cflows import VPSDE
        >>> x_0, x_1 = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> path = interpolate(ProbabilityFlow(), lambda x, t: -x, VPSDE(), x_0, x_1, steps=3)
        >>> path[1].numpy().round(3).tolist()  # of N(0, I) data: half way on the circle
        [[0.707..., 0.707...]]
    """
    if steps < 2 or x_0.shape != x_1.shape:
        raise ValueError(
            f"interpolate takes 2 steps or more between events of one shape, but has steps={steps} and shapes "
            f"{tuple(x_0.shape)} and {tuple(x_1.shape)}."
        )
    z_0, z_1 = (sampler.encode(score, sde, x) for x in (x_0, x_1))
    way = []
    for tau in torch.linspace(0, 1, steps, dtype=z_0.dtype, device=z_0.device):
        near, far = spherical_weights(z_0, z_1, tau, event_dims=z_0.ndim - 1)
        way.append(sampler(score, sde, near * z_0 + far * z_1))
    return torch.stack(way)
