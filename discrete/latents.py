"""Ways between two events through the latent space of a flow."""

from typing import Literal

import torch

from core.density import Context, Values
from core.latents import spherical_weights
from core.rng import Rng
from discrete.flow import Flow


def interpolate(
    flow: Flow,
    x_0: Values,
    x_1: Values,
    *,
    steps: int = 8,
    path: Literal["spherical", "linear"] = "spherical",
    context: Context = None,
    generator: Rng = None,
) -> Values:
    """x_τ = f⁻¹(z_τ) on the way from z_0 = f(x_0) to z_1 = f(x_1), τ = 0, ..., 1.

    Spherical: z_τ = [sin((1 - τ) ω) z_0 + sin(τ ω) z_1]/sin ω with ω the angle between the two, which stays where a
    normal base has its mass; straight where they are parallel or opposite. Linear: z_τ = (1 - τ) z_0 + τ z_1.

    References:
        Shoemake, "Animating rotation with quaternion curves", 1985; for latents, White, "Sampling generative networks",
        2016, section 2.1.

    Checked by tests/discrete/test_latents.py.

    Args:
        flow: the flow.
        x_0: first events, `(*batch, *event)`.
        x_1: last events, `(*batch, *event)`.
        steps: points on the way, both ends included, 2 or more.
        path: `spherical` or `linear`.
        context: broadcasts to the batch.
        generator: noise of a dequantization.

    Returns:
        `(steps, *batch, *event)`, without gradient.

    Raises:
        ValueError: fewer than two steps, or an unknown path.

    Example:
        >>> from core import StandardNormal
        >>> from discrete import Diagonal
        >>> flow = Flow(Diagonal(1), StandardNormal(1))
        >>> interpolate(flow, torch.zeros(1), torch.ones(1), steps=3, path="linear").flatten().tolist()
        [0.0, 0.5, 1.0]
    """
    if steps < 2 or path not in ("spherical", "linear"):
        raise ValueError(f"interpolate takes 2 steps or more, spherical or linear, but has {steps=} and {path=}.")
    with torch.no_grad():
        z_0, z_1 = (flow.encode(x, context, generator=generator) for x in (x_0, x_1))
        tau = torch.linspace(0, 1, steps, dtype=z_0.dtype, device=z_0.device)
        tau = tau.reshape(steps, *(1 for _ in z_0.shape))
        weights = (1 - tau, tau)
        if path == "spherical":
            weights = spherical_weights(z_0, z_1, tau, event_dims=len(flow.latent_shape))
        return flow.decode(weights[0] * z_0 + weights[1] * z_1, context, generator=generator)
