from collections.abc import Sequence
from typing import Literal

from core.bases import StandardNormal
from core.density import DensityModel
from discrete.bijection import Bijection, Compose, Inverse
from discrete.bijections.planar import ActivationName, Planar
from discrete.flow import Flow

Fast = Literal["sample", "log_prob"]


def PlanarFlow(
    event_shape: int | Sequence[int],
    *,
    layers: int = 10,
    activation: ActivationName = "tanh",
    fast: Fast = "sample",
    context_features: int = 0,
    base: DensityModel | None = None,
) -> Flow:
    """Planar flow: `layers` of z + û h(wᵀz + b), from noise to data as in the paper or from data to noise.

    The fast direction is a closed form, the other takes one scalar root a layer. With `sample` fast, draws and their
    own density (`rsample_and_log_prob`) cost O(D) a layer, what variational inference asks for, and any point can be
    scored nevertheless; with `log_prob` fast it is the other way round, for data.

    References:
        Rezende and Mohamed, "Variational inference with normalizing flows", 2015, section 4.1.

    Checked by tests/contracts/densities.py and tests/discrete/test_planar.py.

    Args:
        event_shape: shape of one event; every event is read as a vector.
        layers: number K of layers.
        activation: h: `tanh` or `leaky_relu`.
        fast: `sample` for x = f_K(... f_1(z)), or `log_prob` for z = f_K(... f_1(x)).
        context_features: width of the context, on which all parameters then depend; 0 for none.
        base: density of the latent; a standard normal where omitted.

    Returns:
        The flow.

    Raises:
        ValueError: no layer, an unknown name, or a base over another shape.

    Example:
        >>> import torch
        >>> flow = PlanarFlow(2, layers=4)
        >>> x, log_q = flow.rsample_and_log_prob((3,))
        >>> torch.allclose(flow.log_prob(x), log_q, atol=1e-4)
        True
    """
    planar = (Planar(event_shape, activation=activation, context_features=context_features) for _ in range(layers))
    return directed_flow(list(planar), fast=fast, base=base)


def directed_flow(layers: Sequence[Bijection], *, fast: Fast, base: DensityModel | None) -> Flow:
    """A flow of layers whose `forward` is the cheap direction.

    Args:
        layers: f_1, ..., f_K.
        fast: the direction in which f_K ∘ ... ∘ f_1 runs.
        base: density of the latent; a standard normal where omitted.

    Raises:
        ValueError: no layer, or another direction.
    """
    if not layers or fast not in ("sample", "log_prob"):
        raise ValueError(
            f"a flow needs 1 layer or more and fast one of sample, log_prob, but has {len(layers)} and {fast!r}."
        )
    stack = Compose(*layers)
    bijection = Inverse(stack) if fast == "sample" else stack
    return Flow(bijection, StandardNormal(bijection.latent_shape) if base is None else base)
