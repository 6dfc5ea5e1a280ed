from collections.abc import Sequence
from typing import Literal

import torch

from core.bases import StandardNormal
from core.density import DensityModel
from core.shapes import as_event_shape
from discrete.bijection import Bijection, Compose
from discrete.bijections.autoregressive import MaskedAutoregressive
from discrete.bijections.coupling import Conditioner, SplineCoupling
from discrete.bijections.linear import LULinear
from discrete.bijections.partition import MaskName
from discrete.flow import Flow
from discrete.models.glow import glow_levels

Structure = Literal["coupling", "autoregressive"]


def NSF(
    event_shape: int | Sequence[int],
    *,
    structure: Structure = "coupling",
    layers: int | None = None,
    levels: int | None = None,
    hidden: Sequence[int] = (128, 128),
    bins: int = 8,
    bound: float = 3.0,
    conditioner: Conditioner = "resnet",
    activation: str = "relu",
    dropout: float = 0.0,
    context_features: int = 0,
    base: DensityModel | None = None,
) -> Flow:
    """Neural spline flow: rational-quadratic splines between linear layers.

    They act in couplings, RQ-NSF (C), or in autoregressive layers, RQ-NSF (AR). Vectors: steps of `LULinear` with a
    random permutation and a coupling over alternating features or a `MaskedAutoregressive` layer, and one more linear
    layer. Images: Glow with spline couplings, see `Glow` and
    `MultiScale` for its levels and its latent.

    References:
        Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", 2019, sections 3 and 5, appendix B.

    Checked by tests/contracts/densities.py and tests/discrete/test_image_models.py.

    Args:
        event_shape: number of features, 2 or more, or (channels, height, width).
        structure: `coupling`, or `autoregressive` for vectors.
        layers: steps; of a vector 10, as in the paper, where omitted, of an image 7 a level.
        levels: of an image, 3 where omitted.
        hidden: widths of the blocks of each network, all equal where it is autoregressive.
        bins: number K of bins of a spline.
        bound: half-width B of the box in which splines act; standardize data beforehand.
        conditioner: `resnet`, `plain`, or for couplings a factory as of `SplineCoupling`.
        activation: activation of the networks.
        dropout: dropout probability in training.
        context_features: width of the context, 0 for none.
        base: density of the latent; a standard normal where omitted.

    Returns:
        The flow.

    Raises:
        ValueError: an event that is neither vector nor image, levels for a vector, an image or a factory for an
            autoregressive flow, bins or a bound out of range, or a base over another shape.

    Example:
        >>> NSF(6, layers=2).log_prob(torch.zeros(10, 6)).shape
        torch.Size([10])
    """
    shape = as_event_shape(event_shape)

    def coupling(shape: torch.Size, mask: MaskName = "half") -> Bijection:
        return SplineCoupling(
            shape,
            mask=mask,
            hidden=hidden,
            activation=activation,
            dropout=dropout,
            context_features=context_features,
            bins=bins,
            bound=bound,
            conditioner=conditioner,
        )

    def autoregressive() -> Bijection:
        if callable(conditioner):
            raise ValueError("an autoregressive NSF has conditioners plain and resnet, but was given a factory.")
        return MaskedAutoregressive(
            shape,
            transformer="spline",
            hidden=hidden,
            conditioner=conditioner,
            activation=activation,
            dropout=dropout,
            context_features=context_features,
            bins=bins,
            bound=bound,
        )

    if structure not in ("coupling", "autoregressive") or (structure == "autoregressive" and len(shape) != 1):
        raise ValueError(
            f"NSF is of structure coupling, or autoregressive for vectors, but was asked for {structure!r} over an "
            f"event of shape {tuple(shape)}."
        )
    bijection: Bijection
    if len(shape) == 3:
        bijection = glow_levels(
            shape,
            levels=3 if levels is None else levels,
            depth=7 if layers is None else layers,
            coupling=coupling,
            parametrization="lu",
            context_features=context_features,
        )
    elif levels is not None or (layers is not None and layers < 1):
        raise ValueError(f"NSF needs 1 step or more, and levels for images only, but has {layers=} and {levels=}.")
    else:
        masks: list[MaskName] = ["alternating", "alternating_flipped"]
        steps = [
            (LULinear(shape), coupling(shape, masks[i % 2]) if structure == "coupling" else autoregressive())
            for i in range(10 if layers is None else layers)
        ]
        bijection = Compose(*(layer for step in steps for layer in step), LULinear(shape))
    return Flow(bijection, StandardNormal(bijection.latent_shape) if base is None else base)
