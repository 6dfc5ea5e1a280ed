from collections.abc import Sequence

from core.bases import StandardNormal
from core.density import DensityModel
from core.nets.lipschitz import LipschitzActivation
from core.shapes import as_event_shape
from discrete.bijection import Bijection, Compose
from discrete.bijections.multiscale import squeeze_if_even
from discrete.bijections.normalization import ActNorm
from discrete.bijections.residual import InvertibleResidual, LogDet
from discrete.flow import Flow


def ResidualFlow(
    event_shape: int | Sequence[int],
    *,
    layers: int = 16,
    levels: int | None = None,
    hidden: Sequence[int] = (128, 128),
    lipschitz: float = 0.9,
    activation: LipschitzActivation = "lipswish",
    log_det: LogDet | None = None,
    terms: int | None = None,
    stop: float = 0.5,
    probes: int = 1,
    truncation: float = 1e-3,
    draws: int = 4,
    context_features: int = 0,
    tolerance: float | None = None,
    steps: int = 2,
    base: DensityModel | None = None,
) -> Flow:
    """Residual flow: `InvertibleResidual` layers z = x + g(x), an `ActNorm` before each and one at the end.

    Images go through `levels` of `layers` layers, with a squeeze between two levels where both sides are even; nothing
    is factored out, so that the latent is an image too. Density in one pass of each g and the products of its
    log-determinant; draws iterate every layer. Where the log-determinant is estimated, so is the density: see
    `Flow.estimate_log_prob`.

    References:
        Chen, Behrmann, Duvenaud, Jacobsen, "Residual flows for invertible generative modeling", 2019, section 5 and
        appendix E, without the fully connected layers behind the last level. Behrmann et al., "Invertible residual
        networks", 2019, is `log_det="power_series"`.

    Checked by tests/contracts/densities.py and tests/discrete/test_residual.py.

    Args:
        event_shape: number of features, or (channels, height, width).
        layers: residual layers, of an image in each level, 16 in the paper.
        levels: of an image, 3 where omitted.
        hidden: widths of the hidden layers of every g; (512, 512) for images in the paper.
        lipschitz: constant L of every g, within (0, 1); 0.94 for images in the paper.
        activation: `lipswish`, `clipswish`, `tanh` or `elu`.
        log_det: `exact`, `power_series` or `unbiased`, see `InvertibleResidual`; exact up to 8 dimensions where
            omitted.
        terms: of the series, likewise.
        stop: of the unbiased series, likewise.
        probes: vectors a row, likewise.
        truncation: nats that a layer may miss in evaluation, likewise.
        draws: of an estimated log-determinant in evaluation, see `Flow`.
        context_features: width of the context, 0 for none.
        tolerance: residual at which a row of the inverse rests, see `InvertibleResidual`.
        steps: power steps a call in training, see `SpectralLayer`.
        base: density of the latent; a standard normal where omitted.

    Returns:
        The flow.

    Raises:
        ValueError: no layer, levels for a vector, an option out of range, or a base over another shape.

    Example:
        >>> ResidualFlow(2).log_prob_direction.kind, ResidualFlow(64).log_prob_direction.kind
        ('exact', 'estimate')
    """
    shape = as_event_shape(event_shape)
    levels = (3 if len(shape) == 3 else 1) if levels is None else levels
    if layers < 1 or levels < 1 or (levels > 1 and len(shape) != 3):
        raise ValueError(
            f"ResidualFlow needs 1 layer or more, and levels for images only, but has {layers=}, {levels=}."
        )
    parts: list[Bijection] = []
    for level in range(levels):
        if level > 0:
            parts += squeeze_if_even(shape)
            shape = parts[-1].latent_shape
        for _ in range(layers):
            residual = InvertibleResidual(
                shape,
                hidden=hidden,
                lipschitz=lipschitz,
                activation=activation,
                log_det=log_det,
                terms=terms,
                stop=stop,
                probes=probes,
                truncation=truncation,
                context_features=context_features,
                tolerance=tolerance,
                steps=steps,
            )
            parts += [ActNorm(shape), residual]
    bijection = Compose(*parts, ActNorm(shape))
    return Flow(bijection, StandardNormal(bijection.latent_shape) if base is None else base, draws=draws)
