import torch
from torch import Tensor


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
