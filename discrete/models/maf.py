from collections.abc import Sequence
from typing import Any, Literal

from core.bases import StandardNormal
from core.density import DensityModel
from core.nets.masked import FeatureOrder
from core.shapes import as_event_shape
from discrete.bijection import Bijection, Compose
from discrete.bijections.autoregressive import MaskedAutoregressive, TransformerName
from discrete.bijections.autoregressive_inverse import InverseMode
from discrete.flow import Flow
from discrete.models.real_nvp import NORMALIZATIONS, Normalization

LayerOrder = Literal["alternating", "natural", "random"]


def MAF(
    event_shape: int | Sequence[int],
    *,
    layers: int = 5,
    hidden: Sequence[int] = (128, 128),
    transformer: TransformerName = "affine",
    order: LayerOrder = "alternating",
    conditioner: Literal["plain", "resnet"] = "plain",
    direct: bool = False,
    activation: str = "relu",
    dropout: float = 0.0,
    context_features: int = 0,
    log_scale_bound: float = 3.0,
    bins: int = 8,
    bound: float = 3.0,
    components: int = 8,
    normalization: Normalization = "actnorm",
    inverse_mode: InverseMode = "incremental",
    tolerance: float | None = None,
    base: DensityModel | None = None,
) -> Flow:
    """Masked autoregressive flow: `MaskedAutoregressive` layers of orders in turn, each behind a normalization.

    Density in one pass a layer; draws need D steps a layer, which the incremental inverse does at the multiply-adds of
    one pass. A `MADE` of mixtures as base gives the paper's MAF MoG.

    References:
        Papamakarios, Pavlakou, Murray, "Masked autoregressive flow for density estimation", 2017, sections 3 and 4. By
        default `ActNorm` stands where the paper has batch normalization.

    Checked by tests/contracts/densities.py and tests/discrete/test_autoregressive.py.

    Args:
        event_shape: shape of one event; events of several dimensions are read in raster order.
        layers: number of autoregressive layers.
        hidden: widths of each network's hidden layers, or of its residual blocks.
        transformer: `affine`, `spline` or `mixture`.
        order: of the features: `alternating` between natural and reversed as in the paper, `natural` in every layer, or
            `random`, natural in the first layer and drawn anew for each one behind.
        conditioner: `plain` or `resnet`.
        direct: whether parameters depend on the features before them linearly as well.
        activation: activation of the networks.
        dropout: dropout probability in training.
        context_features: width of the context, 0 for none.
        log_scale_bound: soft bound on every log-scale of `affine` and `mixture`.
        bins: bins of a spline.
        bound: half-width of its box.
        components: components of a mixture.
        normalization: what each layer follows: `actnorm`, `batch` as in the paper, or `none`.
        inverse_mode: how each layer is inverted, see `invert_autoregressive`.
        tolerance: residual at which a row of an iteration rests, likewise.
        base: density of the latent; a standard normal where omitted.

    Returns:
        The flow.

    Raises:
        ValueError: no layer, an unknown name, a hidden width too small for the number of features, or a base over
            another shape.

    Example:
        >>> flow = MAF(6, layers=2)
        >>> flow.log_prob_direction.steps, flow.sample_direction.steps
        (2, 12)
    """
    bijection = autoregressive_layers(
        event_shape,
        layers=layers,
        order=order,
        normalization=normalization,
        transformer=transformer,
        hidden=hidden,
        conditioner=conditioner,
        direct=direct,
        activation=activation,
        dropout=dropout,
        context_features=context_features,
        log_scale_bound=log_scale_bound,
        bins=bins,
        bound=bound,
        components=components,
        inverse_mode=inverse_mode,
        tolerance=tolerance,
    )
    return Flow(bijection, StandardNormal(bijection.latent_shape) if base is None else base)


def autoregressive_layers(
    event_shape: int | Sequence[int], *, layers: int, order: LayerOrder, normalization: Normalization, **options: Any
) -> Bijection:
    """`MaskedAutoregressive` layers with these options, each behind a normalization.

    Raises:
        ValueError: no layer, or an unknown order or normalization.
    """
    shape = as_event_shape(event_shape)
    if layers < 1 or normalization not in NORMALIZATIONS or order not in ("alternating", "natural", "random"):
        raise ValueError(
            "an autoregressive flow needs 1 layer or more, an order alternating, natural or random, and a "
            f"normalization of {', '.join(NORMALIZATIONS)}, but has {layers=}, {order=} and {normalization=}."
        )
    steps: list[Bijection] = []
    for i in range(layers):
        steps += [kind(shape) for kind in NORMALIZATIONS[normalization]]
        steps.append(MaskedAutoregressive(shape, order=_order(order, i), **options))
    return Compose(*steps)


def _order(order: LayerOrder, layer: int) -> FeatureOrder:
    if order == "random" and layer > 0:
        return "random"
    return "reversed" if order == "alternating" and layer % 2 else "natural"
