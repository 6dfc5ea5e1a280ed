"""Coupling layers: one part of the event passes unchanged and steers an elementwise map of the rest."""

import abc
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from core.density import Rng
from core.nets import MLP
from core.shapes import vector_size
from discrete.bijection import Bijection, Context, Events, Mapped
from discrete.bijections.transformers import AdditiveTransformer, AffineTransformer, Transformer

Conditioner = Callable[[int, int], nn.Module]
MaskName = Literal["alternating", "alternating_flipped", "half", "half_flipped"]


def vector_mask(size: int, mask: MaskName | Tensor) -> Tensor:
    """Boolean mask b of a vector, True where a coordinate passes unchanged and steers the others.

    Args:
        size: number of features, 2 or more.
        mask: `alternating` (even coordinates pass), `half` (the first half passes), either `_flipped`, or a boolean
            tensor `(size,)`: any partition.

    Raises:
        ValueError: an unknown name, a wrong shape, or a part that would be empty.

    Example:
        >>> vector_mask(4, "alternating").tolist()
        [True, False, True, False]
    """
    if isinstance(mask, Tensor):
        b = mask.bool()
    else:
        name = mask.removesuffix("_flipped")
        strides = {"alternating": 1, "half": (size + 1) // 2}
        if name not in strides:
            raise ValueError(f"mask must be alternating, half, one of them _flipped, or a tensor, but is {mask!r}.")
        b = alternating_mask(size, strides[name], flipped=mask != name)
    if b.shape != (size,) or b.all() or not b.any():
        raise ValueError(
            f"mask must split {size} features into two parts that are not empty, but has shape {tuple(b.shape)} and "
            f"passes {int(b.sum())} of them."
        )
    return b


def alternating_mask(size: int, stride: int, *, flipped: bool) -> Tensor:
    """Mask that alternates in runs of `stride` coordinates, the first run passing unless flipped.

    Example:
        >>> alternating_mask(4, 2, flipped=False).tolist()
        [True, True, False, False]
    """
    if stride < 1:
        raise ValueError(f"a mask alternates in runs of 1 coordinate or more, but the stride is {stride}.")
    return (torch.arange(size) // stride % 2 == 0) != flipped


class Coupling(Bijection, abc.ABC):
    """z_b = x_b and z_r = τ(x_r; θ(x_b, context)): log|det| = Σ log ∂τ/∂x_r, one network pass in either direction.

    References:
        Dinh, Krueger, Bengio, "NICE", 2014, eq. 8-11. Dinh, Sohl-Dickstein, Bengio, "RealNVP", 2017, eq. 4-9.
    """

    passing: Tensor
    moving: Tensor
    order: Tensor

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
        conditioner: Conditioner | None,
    ) -> None:
        super().__init__(event_shape)
        b = vector_mask(vector_size(event_shape, owner=type(self).__name__), mask)
        self.register_buffer("passing", b.nonzero()[:, 0])
        self.register_buffer("moving", (~b).nonzero()[:, 0])
        self.register_buffer("order", torch.argsort(torch.cat([self.passing, self.moving])))
        self.transformer = transformer
        k = transformer.parameters_per_feature
        if conditioner is None:
            self.conditioner: nn.Module = MLP(
                len(self.passing),
                len(self.moving) * k,
                hidden=hidden,
                activation=activation,
                dropout=dropout,
                context_features=context_features,
                zero_output=True,
            )
        else:
            self.conditioner = conditioner(len(self.passing), len(self.moving) * k)

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and log|det dz/dx|."""
        return self._couple(self.transformer.forward, x, context)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and log|det dx/dz|."""
        return self._couple(self.transformer.inverse, z, context)

    def _couple(
        self, transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        steering, moved = x.index_select(1, self.passing), x.index_select(1, self.moving)
        theta = self.conditioner(steering, context).unflatten(1, (len(self.moving), -1))
        moved, log_derivative = transform(moved, theta)
        return torch.cat([steering, moved], 1).index_select(1, self.order), log_derivative.sum(1)


class AdditiveCoupling(Coupling):
    """z_b = x_b, z_r = x_r + m(x_b): volume preserving, log|det| = 0.

    References:
        Dinh, Krueger, Bengio, "NICE: non-linear independent components estimation", 2014, eq. 8-10.

    Checked by tests/contracts/bijections.py.

    Args:
        event_shape: number of features, 2 or more.
        mask: which coordinates pass: `alternating`, `half`, either `_flipped`, or a boolean tensor.
        hidden: widths of the conditioner.
        activation: its activation.
        dropout: its dropout probability.
        context_features: width of the context, 0 for none.
        conditioner: builds another network from (features in, features out); it is called with (x_b, context).

    Raises:
        ValueError: an event that is no vector, or a mask that does not split it.

    Example:
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
        conditioner: Conditioner | None = None,
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
        event_shape: number of features, 2 or more.
        mask: which coordinates pass: `alternating`, `half`, either `_flipped`, or a boolean tensor.
        hidden: widths of the conditioner.
        activation: its activation.
        dropout: its dropout probability.
        context_features: width of the context, 0 for none.
        log_scale_bound: B > 0.
        conditioner: builds another network from (features in, features out), the output a and t interleaved.

    Raises:
        ValueError: an event that is no vector, a mask that does not split it, or a bound that is not positive.

    Example:
        >>> z, log_det = AffineCoupling(4)(torch.ones(3, 4))
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
        conditioner: Conditioner | None = None,
    ) -> None:
        super().__init__(
            event_shape,
            AffineTransformer(log_scale_bound=log_scale_bound),
            mask=mask,
            hidden=hidden,
            activation=activation,
            dropout=dropout,
            context_features=context_features,
            conditioner=conditioner,
        )
