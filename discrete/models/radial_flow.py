from collections.abc import Sequence

from core.density import DensityModel
from discrete.bijections.radial import Radial
from discrete.flow import Flow
from discrete.models.planar_flow import Fast, directed_flow


def RadialFlow(
    event_shape: int | Sequence[int],
    *,
    layers: int = 10,
    fast: Fast = "sample",
    context_features: int = 0,
    base: DensityModel | None = None,
) -> Flow:
    """Radial flow: `layers` of z + β̂ (z - z₀)/(α + |z - z₀|), each around a point of its own.

    Both directions are closed forms at O(D) a layer; `fast` says which of them adds the terms of the paper.

    References:
        Rezende and Mohamed, "Variational inference with normalizing flows", 2015, section 4.1.

    Checked by tests/contracts/densities.py and tests/discrete/test_radial.py.

    Args:
        event_shape: shape of one event; every event is read as a vector.
        layers: number K of layers.
        fast: `sample` for x = f_K(... f_1(z)), or `log_prob` for z = f_K(... f_1(x)).
        context_features: width of the context, on which all parameters then depend; 0 for none.
        base: density of the latent; a standard normal where omitted.

    Returns:
        The flow.

    Raises:
        ValueError: no layer, an unknown name, or a base over another shape.

    Example:
        >>> import torch
        >>> RadialFlow(2, layers=4).log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    radial = [Radial(event_shape, context_features=context_features) for _ in range(layers)]
    return directed_flow(radial, fast=fast, base=base)
