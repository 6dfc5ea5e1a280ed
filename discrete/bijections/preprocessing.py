"""Preprocessing as layers that own their log-determinant: dequantization, logit, fixed scaling.

Nothing is added by hand afterwards: a flow with these layers in front answers in nats for the raw data, and wraps a
continuous model exactly as it wraps a discrete one.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from core.rng import Rng
from core.shapes import as_float, sum_event
from discrete.bijection import Bijection, Context, Direction, Events, Mapped


class Logit(Bijection):
    """z = logit(y), y = α + (1 - 2α) x: log|det| = Σ [softplus(zᵢ) + softplus(-zᵢ)] + D log(1 - 2α).

    Both ends stay off 0 and 1 by the same α. With a logistic base a uniform density costs exactly 8 - log2(1 - 2α)
    bits/dim on 8-bit data.

    References:
        Dinh, Sohl-Dickstein, Bengio, "Real NVP", 2017, section 4.1; with 1 - 2α for 1 - α as in Papamakarios et al.,
        "Masked autoregressive flow", 2017, appendix D.

    Checked by tests/contracts/bijections.py and tests/discrete/test_preprocessing.py.

    Args:
        event_shape: shape of one event, values in [0, 1].
        alpha: α in [0, ½).

    Raises:
        ValueError: α outside [0, ½).

    Note:
        With α = 0 the values 0 and 1 themselves have no density. For |z| beyond about 15 the float32 inverse keeps no
        digits of 1 - x.

    Example:
        >>> z, log_det = Logit(1, alpha=0.05)(torch.tensor([[0.5]]))
        >>> z.item(), round(log_det.item(), 4)  # log 4 + log 0.9
        (0.0, 1.2809)
    """

    forward_direction = inverse_direction = Direction(0)

    def __init__(self, event_shape: int | Sequence[int], *, alpha: float = 0.05) -> None:
        super().__init__(event_shape)
        if not 0 <= alpha < 0.5:
            raise ValueError(f"Logit needs alpha within [0, 0.5), but it is {alpha}.")
        self.alpha = alpha

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and log|det dz/dx|; where y leaves (0, 1) there is no density: z = 0 and -inf."""
        # 1 - y on its own keeps the digits of 1 - x.
        y, rest = (self.alpha + (1 - 2 * self.alpha) * part for part in (x, 1 - x))
        outside = (y <= 0) | (rest <= 0)
        log_y, log_rest = (torch.where(outside, 0.5, part).log() for part in (y, rest))
        log_det = sum_event(math.log1p(-2 * self.alpha) - log_y - log_rest)
        return log_y - log_rest, torch.where(outside.flatten(1).any(1), -math.inf, log_det)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x, within [-α, 1 + α]/(1 - 2α) stretched about ½, and log|det dx/dz|."""
        log_det = -sum_event(F.softplus(z) + F.softplus(-z) + math.log1p(-2 * self.alpha))
        return (torch.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha), log_det


class Scaling(Bijection):
    """z = (x - loc)/scale with both fixed: log|det| = -Σ log scaleᵢ. Standardization, or [0, 1] to [-1, 1].

    Checked by tests/contracts/bijections.py.

    Args:
        event_shape: shape of one event.
        loc: shift, broadcast to the event.
        scale: positive, broadcast to the event.

    Raises:
        ValueError: a scale that is not positive.

    Example:
        >>> z, log_det = Scaling(1, loc=0.5, scale=0.5)(torch.tensor([[1.0]]))
        >>> z.item(), round(log_det.item(), 4)  # log 2
        (1.0, 0.6931)
    """

    forward_direction = inverse_direction = Direction(0)
    loc: Tensor
    scale: Tensor

    def __init__(
        self, event_shape: int | Sequence[int], *, loc: Tensor | float = 0.0, scale: Tensor | float = 1.0
    ) -> None:
        super().__init__(event_shape)
        scale = as_float(scale)
        if not bool((scale > 0).all()):
            raise ValueError(f"Scaling needs a positive scale, but its smallest is {scale.min().item():g}.")
        self.register_buffer("loc", as_float(loc).broadcast_to(self.event_shape).clone())
        self.register_buffer("scale", scale.broadcast_to(self.event_shape).clone())

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and -Σ log scaleᵢ."""
        return (x - self.loc) / self.scale, -self.scale.log().sum().expand(x.shape[0])

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and Σ log scaleᵢ."""
        return z * self.scale + self.loc, self.scale.log().sum().expand(z.shape[0])
