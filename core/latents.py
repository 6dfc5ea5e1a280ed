"""Latents that stand for events: what has them, draws of them, and ways between two."""

import abc
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from core.bases import StandardLogistic, StandardNormal
from core.density import Context, DensityModel, Values
from core.rng import Rng


class LatentModel(DensityModel, abc.ABC):
    """A density over x = f⁻¹(z) whose latent z follows a base: a normalizing flow, or an ODE solved both ways."""

    @property
    @abc.abstractmethod
    def latent_shape(self) -> torch.Size:
        """Shape of one latent."""

    @abc.abstractmethod
    def encode(self, x: Values, context: Context = None, *, generator: Rng = None) -> Values:
        """z = f(x), `(*batch, *latent)`."""

    @abc.abstractmethod
    def decode(self, z: Values, context: Context = None, *, generator: Rng = None) -> Values:
        """x = f⁻¹(z), `(*batch, *event)`."""

    @abc.abstractmethod
    def sample_latent(
        self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None, temperature: float = 1.0
    ) -> Values:
        """Draws of the base, `(*shape, *latent)`, times the temperature."""

    @torch.no_grad()
    def sample(
        self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None, temperature: float = 1.0
    ) -> Values:
        """Draws `(*shape, *event)` without gradient, from T times draws of the base where the temperature T is not 1.

        Raises:
            ValueError: a negative temperature, or one other than 1 with a base that is not centred at 0.
        """
        z = self.sample_latent(shape, context=context, generator=generator, temperature=temperature)
        return self.decode(z, context, generator=generator)


def sample_base(
    base: DensityModel, shape: Sequence[int], *, context: Context, generator: Rng, temperature: float
) -> Values:
    """T z with z from the base, or from what it stands on where it has latents of its own.

    Raises:
        ValueError: a negative temperature, or one other than 1 with a base that is not centred at 0.
    """
    if isinstance(base, LatentModel):
        return base.sample_latent(shape, context=context, generator=generator, temperature=temperature)
    if temperature != 1 and (temperature < 0 or not isinstance(base, StandardNormal | StandardLogistic)):
        raise ValueError(
            f"temperature must be 0 or more and needs a base centred at 0, StandardNormal or StandardLogistic, but "
            f"is {temperature} with a {type(base).__name__}."
        )
    z = base.sample(shape, context=context, generator=generator)
    return z if temperature == 1 else temperature * z


def interpolate(
    model: LatentModel,
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
        model: a `Flow`, or an ODE such as `FFJORD`.
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
        >>> from discrete import Diagonal, Flow
        >>> flow = Flow(Diagonal(1), StandardNormal(1))
        >>> interpolate(flow, torch.zeros(1), torch.ones(1), steps=3, path="linear").flatten().tolist()
        [0.0, 0.5, 1.0]
    """
    if steps < 2 or path not in ("spherical", "linear"):
        raise ValueError(f"interpolate takes 2 steps or more, spherical or linear, but has {steps=} and {path=}.")
    with torch.no_grad():
        z_0, z_1 = (model.encode(x, context, generator=generator) for x in (x_0, x_1))
        tau = torch.linspace(0, 1, steps, dtype=z_0.dtype, device=z_0.device)
        tau = tau.reshape(steps, *(1 for _ in z_0.shape))
        weights = (1 - tau, tau)
        if path == "spherical":
            weights = spherical_weights(z_0, z_1, tau, event_dims=len(model.latent_shape))
        return model.decode(weights[0] * z_0 + weights[1] * z_1, context, generator=generator)


def spherical_weights(z_0: Tensor, z_1: Tensor, tau: Tensor, *, event_dims: int) -> tuple[Tensor, Tensor]:
    """sin((1 - τ) ω)/sin ω and sin(τ ω)/sin ω, ω the angle between z_0 and z_1: weights of a way on the sphere.

    1 - τ and τ where the two are parallel or opposite.

    References:
        Shoemake, "Animating rotation with quaternion curves", 1985.

    Checked by tests/discrete/test_latents.py and tests/cflows/test_interpolation.py.

    Args:
        z_0: where the way starts, `(*batch, *event)`.
        z_1: where it ends, likewise.
        tau: shares of the way within [0, 1], which broadcast against `(*batch, *event)`.
        event_dims: dimensions of an event.

    Returns:
        The weights of `z_0` and of `z_1`.

    Example:
        >>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        >>> [round(w.item(), 4) for w in spherical_weights(a, b, torch.tensor([0.5]), event_dims=1)]
        [0.7071, 0.7071]
    """
    dims = tuple(range(-event_dims, 0))
    u_0, u_1 = (z / z.square().sum(dims, keepdim=True).sqrt().clamp(min=torch.finfo(z.dtype).tiny) for z in (z_0, z_1))
    # The angle from its half's sine and cosine: the arc cosine keeps no digits where the two are parallel.
    chord, mean = (a.square().sum(dims, keepdim=True).sqrt() for a in (u_0 - u_1, u_0 + u_1))
    omega = 2 * torch.atan2(chord, mean)
    straight = omega.sin() < 1e-3
    safe = torch.where(straight, 1.0, omega)
    near, far = (torch.where(straight, share, (share * safe).sin() / safe.sin()) for share in (1 - tau, tau))
    return near, far
