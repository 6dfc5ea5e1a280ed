"""Masked autoregressive layers: each feature moves by an elementwise map that the features before it steer."""

from collections.abc import Sequence
from typing import Literal

import torch

from core.nets.masked import FeatureOrder, HiddenDegrees, MaskedMLP
from core.rng import Rng
from core.shapes import sum_event
from discrete.bijection import Bijection, Context, Direction, Events, Mapped
from discrete.bijections.autoregressive_inverse import InverseMode, check_inverse, solve_autoregressive
from discrete.bijections.mixture import MixtureTransformer
from discrete.bijections.spline import SplineTransformer
from discrete.bijections.transformers import AffineTransformer, ScaleName, Transformer

TransformerName = Literal["affine", "spline", "mixture"]


class MaskedAutoregressive(Bijection):
    """z_d = τ(x_d; θ_d(x_<d, context)), so that log|det dz/dx| = Σ log ∂τ/∂x_d: one masked pass.

    The inverse knows x feature by feature, at the multiply-adds of one pass too: see `invert_autoregressive`. `Inverse`
    of this layer is one of an inverse autoregressive flow.

    References:
        Papamakarios, Pavlakou, Murray, "Masked autoregressive flow for density estimation", 2017, section 3.1-3.2.
        Kingma et al., "Improving variational inference with inverse autoregressive flow", 2016, section 3. Germain et
        al., "MADE", 2015.

    Checked by tests/contracts/bijections.py and tests/discrete/test_autoregressive.py.

    Args:
        event_shape: shape of one event; events of several dimensions are read in raster order.
        transformer: `affine`, z = x exp(s) + t; `spline`, monotone rational-quadratic; `mixture`, the map of a mixture
            of normals to a normal; or a `Transformer` of one's own, without parameters.
        hidden: widths of the hidden layers, or of the residual blocks.
        order: order of the features: `natural`, `reversed`, `random`, or their indices as a tensor.
        hidden_degrees: `sequential` or `random`.
        conditioner: `plain` or `resnet`.
        direct: whether the parameters depend on the features before them linearly as well.
        activation: activation of the network.
        dropout: dropout probability in training.
        context_features: width of the context, 0 for none.
        log_scale_bound: soft bound on the log-scales of `affine` and `mixture`.
        scale: scale of `affine`: `tanh`, `sigmoid` or `gated`.
        bins: bins of a spline.
        bound: half-width of its box.
        components: components of a mixture.
        inverse_mode: how the inverse is found, see `invert_autoregressive`.
        tolerance: residual at which a row of an iteration rests, likewise.
        generator: draws random orders and degrees.

    Raises:
        ValueError: a hidden width too small for the number of features, an unknown order or transformer, or an option
            out of range.

    Example:
        >>> layer = MaskedAutoregressive(3, order="reversed")
        >>> z, log_det = layer(torch.ones(2, 3))
        >>> z.tolist()  # a fresh layer is the identity
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        transformer: TransformerName | Transformer = "affine",
        hidden: Sequence[int] = (128, 128),
        order: FeatureOrder = "natural",
        hidden_degrees: HiddenDegrees = "sequential",
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
        inverse_mode: InverseMode = "incremental",
        tolerance: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(event_shape)
        self.transformer = (
            _transformer(
                transformer, log_scale_bound=log_scale_bound, scale=scale, bins=bins, bound=bound, components=components
            )
            if isinstance(transformer, str)
            else transformer
        )
        check_inverse(inverse_mode, tolerance=tolerance)
        self.inverse_mode: InverseMode = inverse_mode
        self.tolerance = tolerance
        self.conditioner = MaskedMLP(
            self.event_shape.numel(),
            self.transformer.parameters_per_feature,
            hidden=hidden,
            order=order,
            hidden_degrees=hidden_degrees,
            conditioner=conditioner,
            direct=direct,
            context_features=context_features,
            activation=activation,
            dropout=dropout,
            zero_output=True,
            generator=generator,
        )
        D = self.conditioner.features
        self.inverse_direction = Direction(1 if inverse_mode == "incremental" else D, steps=D)

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and log|det dz/dx|."""
        x = x.flatten(1)
        z, log_derivative = self.transformer.forward(x, self.conditioner(x, context))
        return z.unflatten(1, self.event_shape), sum_event(log_derivative)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and log|det dx/dz|; differentiable without a graph of its steps."""
        x, log_det, _ = solve_autoregressive(
            self.conditioner,
            self.transformer,
            z.flatten(1),
            context,
            mode=self.inverse_mode,
            tolerance=self.tolerance,
        )
        return x.unflatten(1, self.event_shape), log_det


def _transformer(
    name: str, *, log_scale_bound: float, scale: ScaleName, bins: int, bound: float, components: int
) -> Transformer:
    if name == "affine":
        return AffineTransformer(log_scale_bound=log_scale_bound, scale=scale)
    if name == "spline":
        return SplineTransformer(bins=bins, bound=bound)
    if name == "mixture":
        return MixtureTransformer(components=components, log_scale_bound=log_scale_bound)
    raise ValueError(f"transformer must be affine, spline, mixture or a Transformer, but is {name!r}.")
