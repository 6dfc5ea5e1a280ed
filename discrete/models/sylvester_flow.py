from collections.abc import Sequence

from core.density import DensityModel
from discrete.bijections.sylvester import Parametrization, Sylvester
from discrete.flow import Flow
from discrete.models.planar_flow import Fast, directed_flow


def SylvesterFlow(
    event_shape: int | Sequence[int],
    *,
    layers: int = 4,
    parametrization: Parametrization = "orthogonal",
    rank: int | None = None,
    fast: Fast = "sample",
    context_features: int = 0,
    base: DensityModel | None = None,
) -> Flow:
    """Sylvester flow: `layers` of z + Q R h(R̃ Qᵀz + b), each a planar step along M directions at once.

    The fast direction is a closed form, the other takes M scalar roots a layer, one after another.

    References:
        van den Berg, Hasenclever, Tomczak, Welling, "Sylvester normalizing flows for variational inference", 2018.

    Checked by tests/contracts/densities.py and tests/discrete/test_sylvester.py.

    Args:
        event_shape: shape of one event; every event is read as a vector.
        layers: number K of layers.
        parametrization: of Q: `orthogonal` or `householder`.
        rank: number M of directions; the size of the event where omitted, but no more than 32.
        fast: `sample` for x = f_K(... f_1(z)), or `log_prob` for z = f_K(... f_1(x)).
        context_features: width of the context, on which all parameters then depend; 0 for none.
        base: density of the latent; a standard normal where omitted.

    Returns:
        The flow.

    Raises:
        ValueError: no layer, an unknown name, a rank that does not fit, or a base over another shape.

    Example:
        >>> import torch
        >>> SylvesterFlow(2, layers=4).log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    sylvester = [
        Sylvester(event_shape, parametrization=parametrization, rank=rank, context_features=context_features)
        for _ in range(layers)
    ]
    return directed_flow(sylvester, fast=fast, base=base)
