"""Elementwise invertible maps whose parameters a conditioner network gives."""

import abc
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Features = Float[Tensor, "rows n ..."]
Parameters = Float[Tensor, "rows n ... k"]
LEAST = -60.0  # log-scale of those that only contract
Elementwise = tuple[Features, Features]  # the image, and the log-derivative of this direction


class Transformer(abc.ABC):
    """z = τ(x; θ) for each feature on its own, with log dz/dx."""

    parameters_per_feature: int

    @abc.abstractmethod
    def forward(self, x: Features, theta: Parameters) -> Elementwise:
        """z and log dz/dx, each shaped like `x`."""

    @abc.abstractmethod
    def inverse(self, z: Features, theta: Parameters) -> Elementwise:
        """x and log dx/dz, each shaped like `z`."""


class AdditiveTransformer(Transformer):
    """z = x + t, log dz/dx = 0."""

    parameters_per_feature = 1

    def forward(self, x: Features, theta: Parameters) -> Elementwise:
        """z = x + t."""
        return x + theta.squeeze(-1), torch.zeros_like(x)

    def inverse(self, z: Features, theta: Parameters) -> Elementwise:
        """x = z - t."""
        return z - theta.squeeze(-1), torch.zeros_like(z)


ScaleName = Literal["tanh", "sigmoid", "gated"]


class AffineTransformer(Transformer):
    """z = x exp(s) + t with s = B tanh(a/B): softly and symmetrically bounded, identity at θ = 0.

    Two other scales are not the identity at θ = 0 and only contract, by σ = sigmoid(a + 2) in (0, 1): `sigmoid`, that
    of Glow's code, is exp(s) = σ; `gated`, that of inverse autoregressive flows, is z = σ x + (1 - σ) m, so
    t = (1 - σ) m: a mean of the old value and a new one m, which no number of layers can blow up. No scale is below
    exp(-60), so that the inverse of a layer is finite in float32 for rows of ±1e6 too.

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling, "Improving variational inference with inverse
        autoregressive flow", 2016, algorithm 1 and the end of section 4, which starts σ's argument at +1 to +2.

    Checked by tests/discrete/test_affine.py.

    Args:
        log_scale_bound: B > 0, so that every scale lies within exp(±B); without effect on `sigmoid` and `gated`.
        scale: `tanh`, `sigmoid` or `gated`.

    Raises:
        ValueError: a bound that is not positive, or an unknown scale.
    """

    parameters_per_feature = 2

    def __init__(self, *, log_scale_bound: float = 3.0, scale: ScaleName = "tanh") -> None:
        if not log_scale_bound > 0:
            raise ValueError(f"log_scale_bound must be positive, but is {log_scale_bound}.")
        if scale not in ("tanh", "sigmoid", "gated"):
            raise ValueError(f"scale must be tanh, sigmoid or gated, but is {scale!r}.")
        self.log_scale_bound, self.scale = log_scale_bound, scale

    def forward(self, x: Features, theta: Parameters) -> Elementwise:
        """z = x exp(s) + t."""
        s, t = self._unpack(theta)
        return torch.addcmul(t, x, s.exp()), s

    def inverse(self, z: Features, theta: Parameters) -> Elementwise:
        """x = (z - t) exp(-s)."""
        s, t = self._unpack(theta, sign=-1)
        return (z - t) * s.exp(), s

    def _unpack(self, theta: Tensor, *, sign: int = 1) -> tuple[Tensor, Tensor]:
        """s, or -s, and t."""
        a, t = theta.unbind(-1)
        if self.scale == "tanh":
            return soft_bound(a, self.log_scale_bound, sign=sign), t
        s = F.logsigmoid(a + 2).clamp(min=LEAST)
        return sign * s, t * torch.sigmoid(-a - 2) if self.scale == "gated" else t


def soft_bound(a: Tensor, bound: float, *, sign: int = 1) -> Tensor:
    """B tanh(a/B), or its negative: within ±B, odd, of slope 1 at 0."""
    return torch.tanh(a * (sign / bound)) * bound
