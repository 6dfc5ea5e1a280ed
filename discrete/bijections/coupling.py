"""Coupling layers: one part of the event passes unchanged and steers an elementwise map of the rest."""

import abc
import math
from collections.abc import Callable, Hashable, Sequence
from functools import reduce
from typing import Literal, cast

import torch
from torch import Tensor, nn

from core.nets import MLP, ConvNet, ResidualConvNet, ResidualMLP
from discrete.bijection import Bijection, Context, Events, Fusible, Mapped
from discrete.bijections.partition import ChannelPartition, MaskName, Partition, PixelPartition, coupling_mask
from discrete.bijections.spline import SplineTransformer
from discrete.bijections.transformers import AdditiveTransformer, AffineTransformer, ScaleName, Transformer

Conditioner = Literal["plain", "resnet"] | Callable[[int, int], nn.Module]
NETWORKS = {(1, "plain"): MLP, (1, "resnet"): ResidualMLP, (3, "plain"): ConvNet, (3, "resnet"): ResidualConvNet}


class Coupling(Fusible, abc.ABC):
    """z_b = x_b and z_r = τ(x_r; θ(x_b, context)): log|det| = Σ log ∂τ/∂x_r, one network pass in either direction.

    References:
        Dinh, Krueger, Bengio, "NICE", 2014, section 3.2. Dinh, Sohl-Dickstein, Bengio, "RealNVP", 2017, eq. 4-9.
    """

    @abc.abstractmethod
    def __init__(
        self,
        event_shape: int | Sequence[int],
        transformer: Transformer,
        *,
        mask: MaskName | Tensor,
        hidden: Sequence[int],
        activation: str,
        dropout: float,
        context_features: int,
        conditioner: Conditioner,
    ) -> None:
        super().__init__(event_shape)
        b = coupling_mask(self.event_shape, mask)
        self.partition: Partition = ChannelPartition(b) if b.ndim == 1 else PixelPartition(b)
        self.transformer = transformer
        self._theta_shape = self.partition.channels_out, transformer.parameters_per_feature
        shape = (self.partition.channels_in, math.prod(self._theta_shape))
        if callable(conditioner):
            self.conditioner: nn.Module = conditioner(*shape)
            return
        if (len(self.event_shape), conditioner) not in NETWORKS:
            raise ValueError(
                f"{type(self).__name__} has conditioners plain and resnet, for vectors and (channels, height, width), "
                f"but was asked for {conditioner!r} over an event of shape {tuple(self.event_shape)}."
            )
        self.conditioner = NETWORKS[len(self.event_shape), conditioner](
            *shape,
            hidden=hidden,
            activation=activation,
            dropout=dropout,
            context_features=context_features,
            zero_output=True,
        )

    @property
    def fusion_key(self) -> Hashable:
        """The two parts, in whatever order: couplings in a row take them apart once and join them once."""
        return None if self.partition.parts is None else (Coupling, self.partition.parts)

    def fused(self, others: Sequence[Bijection], x: Events, context: Context, *, inverse: bool) -> Mapped:
        """This coupling and after it others over the same two parts."""
        steering, moving = self.partition.split(x)
        flipped, log_dets = self.partition.flipped, []
        for coupling in (self, *cast(Sequence[Coupling], others)):
            partition = coupling.partition
            if partition.flipped != flipped:
                steering, moving, flipped = moving, steering, partition.flipped
            moving, log_derivative = coupling._move(steering, moving, context, inverse=inverse)
            log_dets.append(partition.log_det(log_derivative))
        return partition.join(steering, moving), reduce(torch.add, log_dets)

    def _move(self, steering: Tensor, moving: Tensor, context: Context, *, inverse: bool) -> tuple[Tensor, Tensor]:
        theta = self.conditioner(steering, context)
        if theta.ndim == 2:
            theta = theta.reshape(theta.shape[0], *self._theta_shape)
        else:
            theta = theta.unflatten(1, self._theta_shape).movedim(2, -1)
        return (self.transformer.inverse if inverse else self.transformer.forward)(moving, theta)


class AdditiveCoupling(Coupling):
    """z_b = x_b, z_r = x_r + m(x_b): volume preserving, log|det| = 0.

    References:
        Dinh, Krueger, Bengio, "NICE: non-linear independent components estimation", 2014, section 3.2.

    Checked by tests/contracts/bijections.py.

    Args:
        event_shape: features of a vector, or (channels, height, width).
        mask: what passes: `alternating` or `half` of the features or channels, `checkerboard` of the pixels, any of
            them `_flipped`, or a boolean tensor over features, channels or the whole event.
        hidden: widths of the conditioner.
        activation: its activation.
        dropout: its dropout probability.
        context_features: width of the context, 0 for none.
        conditioner: `plain` (an MLP; for images 3×3, 1×1, 3×3 convolutions), `resnet`, or what builds another from
            (channels in, channels out); it is called with (x_b, context).

    Raises:
        ValueError: a mask that does not split the event, or an unknown network.

    Example:
        >>> import torch
        >>> coupling = AdditiveCoupling(2)
        >>> z, log_det = coupling(torch.ones(3, 2))
        >>> log_det.tolist()
        [0.0, 0.0, 0.0]
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        mask: MaskName | Tensor = "alternating",
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        dropout: float = 0.0,
        context_features: int = 0,
        conditioner: Conditioner = "plain",
    ) -> None:
        super().__init__(
            event_shape,
            AdditiveTransformer(),
            mask=mask,
            hidden=hidden,
            activation=activation,
            dropout=dropout,
            context_features=context_features,
            conditioner=conditioner,
        )


class AffineCoupling(Coupling):
    """z_b = x_b, z_r = x_r ⊙ exp(s(x_b)) + t(x_b): log|det| = Σ s(x_b).

    s = B tanh(a/B) is bounded softly and symmetrically, so that no layer can explode; a fresh layer is the identity.

    References:
        Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, eq. 4-9.

    Checked by tests/contracts/bijections.py.

    Args:
        event_shape: features of a vector, or (channels, height, width).
        mask: what passes: `alternating` or `half` of the features or channels, `checkerboard` of the pixels, any of
            them `_flipped`, or a boolean tensor over features, channels or the whole event.
        hidden: widths of the conditioner.
        activation: its activation.
        dropout: its dropout probability.
        context_features: width of the context, 0 for none.
        log_scale_bound: B > 0.
        scale: `tanh`, or two that only contract: `sigmoid` for Glow's exp(s) = sigmoid(a + 2), and `gated`, see
            `AffineTransformer`.
        conditioner: `plain` (an MLP; for images 3×3, 1×1, 3×3 convolutions), `resnet`, or what builds another from
            (channels in, channels out), the output a and t interleaved; it is called with (x_b, context).

    Raises:
        ValueError: a mask that does not split the event, a bound that is not positive, or an unknown network.

    Example:
        >>> import torch
        >>> z, log_det = AffineCoupling((1, 4, 4), mask="checkerboard")(torch.ones(3, 1, 4, 4))
        >>> log_det.shape
        torch.Size([3])
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        mask: MaskName | Tensor = "alternating",
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        dropout: float = 0.0,
        context_features: int = 0,
        log_scale_bound: float = 3.0,
        scale: ScaleName = "tanh",
        conditioner: Conditioner = "plain",
    ) -> None:
        super().__init__(
            event_shape,
            AffineTransformer(log_scale_bound=log_scale_bound, scale=scale),
            mask=mask,
            hidden=hidden,
            activation=activation,
            dropout=dropout,
            context_features=context_features,
            conditioner=conditioner,
        )


class SplineCoupling(Coupling):
    """z_b = x_b, z_r a monotone rational-quadratic spline of x_r with knots from x_b: log|det| = Σ log ∂z_r/∂x_r.

    Within [-B, B] the spline has K bins, outside it is the identity; so is a fresh layer everywhere.

    References:
        Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", 2019, eq. 4-8, section 3.2.

    Checked by tests/contracts/bijections.py and tests/discrete/test_spline.py.

    Args:
        event_shape: features of a vector, or (channels, height, width).
        mask: what passes: `alternating` or `half` of the features or channels, `checkerboard` of the pixels, any of
            them `_flipped`, or a boolean tensor over features, channels or the whole event.
        hidden: widths of the conditioner.
        activation: its activation.
        dropout: its dropout probability.
        context_features: width of the context, 0 for none.
        bins: number K of bins.
        bound: B > 0.
        conditioner: `plain` (an MLP; for images 3×3, 1×1, 3×3 convolutions), `resnet`, or what builds another from
            (channels in, channels out), 3 K - 1 parameters of each value in a row; it is called with (x_b, context).

    Raises:
        ValueError: a mask that does not split the event, bins or a bound out of range, or an unknown network.

    Example:
        >>> import torch
        >>> z, log_det = SplineCoupling(4, bins=8)(torch.full((1, 4), 0.5))
        >>> z.shape, log_det.shape
        (torch.Size([1, 4]), torch.Size([1]))
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        mask: MaskName | Tensor = "alternating",
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        dropout: float = 0.0,
        context_features: int = 0,
        bins: int = 8,
        bound: float = 3.0,
        conditioner: Conditioner = "plain",
    ) -> None:
        super().__init__(
            event_shape,
            SplineTransformer(bins=bins, bound=bound),
            mask=mask,
            hidden=hidden,
            activation=activation,
            dropout=dropout,
            context_features=context_features,
            conditioner=conditioner,
        )
