from collections.abc import Sequence
from typing import Literal

from core.bases import StandardNormal
from core.density import DensityModel
from discrete.bijection import Inverse
from discrete.bijections.autoregressive import TransformerName
from discrete.bijections.autoregressive_inverse import InverseMode
from discrete.bijections.transformers import ScaleName
from discrete.flow import Flow
from discrete.models.maf import LayerOrder, autoregressive_layers
from discrete.models.real_nvp import Normalization


def IAF(
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
    scale: ScaleName = "tanh",
    bins: int = 8,
    bound: float = 3.0,
    components: int = 8,
    normalization: Normalization = "none",
    inverse_mode: InverseMode = "incremental",
    tolerance: float | None = None,
    base: DensityModel | None = None,
) -> Flow:
    """Inverse autoregressive flow: x = f_n(... f_1(z)) by masked autoregressive layers f that run from noise to data.

    Draws and their own density (`rsample_and_log_prob`) in one pass a layer; the density of other points needs D steps
    a layer, which the incremental inverse does at the multiply-adds of one pass. The bijection is the `Inverse` of that
    of a `MAF` with the same options and `normalization`: with the same weights, each undoes the other.

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling, "Improving variational inference with inverse
        autoregressive flow", 2016, algorithm 1.

    Checked by tests/contracts/densities.py and tests/discrete/test_autoregressive.py.

    Args:
        event_shape: shape of one event; events of several dimensions are read in raster order.
        layers: number of autoregressive layers.
        hidden: widths of each network's hidden layers, or of its residual blocks.
        transformer: `affine`, `spline` or `mixture`.
        order: of the features: `alternating` between natural and reversed, `natural` in every layer, or `random`.
        conditioner: `plain` or `resnet`.
        direct: whether parameters depend on the features before them linearly as well.
        activation: activation of the networks.
        dropout: dropout probability in training.
        context_features: width of the context, 0 for none.
        log_scale_bound: soft bound on every log-scale of `affine` and `mixture`.
        scale: of `affine`: `tanh`, or `gated` for the paper's σ z + (1 - σ) m, or `sigmoid`.
        bins: bins of a spline.
        bound: half-width of its box.
        components: components of a mixture.
        normalization: what each layer follows on its way from noise to data: `none`, `actnorm` or `batch`.
        inverse_mode: how each layer is inverted, see `invert_autoregressive`.
        tolerance: residual at which a row of an iteration rests, likewise.
        base: density of the latent; a standard normal where omitted.

    Returns:
        The flow.

    Raises:
        ValueError: no layer, an unknown name, a hidden width too small for the number of features, or a base over
            another shape.

    Note:
        A scale that is `gated` or `sigmoid` has no lower bound: the latent of a point far from all draws may be beyond
        every float, and its log-density NaN.

    Note:
        `actnorm` and `batch` take their statistics from draws, the direction in which the layers run. To fit an IAF to
        data by likelihood, which runs the other way, leave `none`: the first draw in training would move it.

    Example:
        >>> flow = IAF(6, layers=2)
        >>> flow.log_prob_direction.steps, flow.sample_direction.steps
        (12, 2)
    """
    bijection = Inverse(
        autoregressive_layers(
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
            scale=scale,
            bins=bins,
            bound=bound,
            components=components,
            inverse_mode=inverse_mode,
            tolerance=tolerance,
        )
    )
    return Flow(bijection, StandardNormal(bijection.latent_shape) if base is None else base)
