"""The map of a Mint layer from its tensors alone: values, slopes and transpose."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Activation = Literal["elu", "tanh"]
Image = Float[Tensor, "rows C H W"]


def activate(u: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """h(u) and h'(u)."""
    if activation == "tanh":
        h = torch.tanh(u)
        return h, 1 - h * h
    h = F.elu(u)
    return h, 1 - F.relu(-h)  # eᵘ below 0


@dataclass(frozen=True)
class Mint:
    """z = t ⊙ x + W³ h(W² h(W¹ x + b¹) + b²) + b³ with its weights masked, and the slopes ∂z_p/∂x_p.

    Args:
        W: the three kernels, `(features, features, k, k)`, K features a channel between them.
        b: their biases, `(features,)`, or `(rows, features)` where a context moves them.
        t: `(C, H, W)`.
        activation: h.
    """

    W: tuple[Tensor, ...]
    b: tuple[Tensor, ...]
    t: Tensor
    activation: Activation

    def evaluate(self, x: Image) -> tuple[Image, Image]:
        """z, and its slopes t + d³ diag(h'(u²)) d² diag(h'(u¹)) d¹ in each channel."""
        h1, s1 = self.hidden(0, x)
        h2, s2 = self.hidden(1, h1)
        d1, d2, d3 = self.diagonals()
        slope = _grouped(d3, s2 * _grouped(d2 * d1.mT, s1))
        return self.t * x + self.convolve(2, h2), self.t + slope

    def hidden(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """h and h' of an inner layer."""
        return activate(self.convolve(i, x), self.activation)

    def convolve(self, i: int, x: Tensor) -> Tensor:
        """Wⁱ x + bⁱ."""
        W, b = self.W[i], self.b[i]
        if x.shape[2:] == W.shape[2:] == (1, 1):  # twice as fast as the convolution
            return (x[..., 0, 0] @ W[..., 0, 0].mT + b)[..., None, None]
        shared = b if b.ndim == 1 else None
        y = F.conv2d(x, W, shared, padding=self.reach)
        return y if shared is not None else y + b[:, :, None, None]

    @property
    def reach(self) -> int:
        """Pixels that a kernel sees to each side."""
        return self.W[0].shape[3] // 2

    def diagonals(self) -> tuple[Tensor, ...]:
        """Entries that take a value to itself: d¹ `(C, K, 1)`, d² `(C, K, K)`, d³ `(C, 1, K)`."""
        C, n = len(self.t), self.reach
        blocks = (W[:, :, n, n].unflatten(1, (C, -1)).unflatten(0, (C, -1)) for W in self.W)
        return tuple(block.diagonal(dim1=0, dim2=2).movedim(-1, 0) for block in blocks)

    def rows(self, index: Tensor) -> "Mint":
        """The layer of some rows."""
        return replace(self, b=tuple(b if b.ndim == 1 else b[index] for b in self.b))

    def transposed(self) -> "Mint":
        """The layer whose Jacobian is the transposed one, but for h'."""
        W = tuple(W.transpose(0, 1).flip(2, 3) for W in reversed(self.W))
        return replace(self, W=W, b=tuple(kernel.new_zeros(len(kernel)) for kernel in W))


def _grouped(d: Tensor, x: Tensor) -> Tensor:
    """d `(C, out, in)` times x `(rows, C in, H, W)`, channel by channel."""
    (C, out, into), (rows, _, H, W) = d.shape, x.shape
    x = x.reshape(rows, C, into, H * W)
    y = d @ x if H * W > 1 else torch.einsum("coi,rcip->rcop", d, x)  # each the faster one there
    return y.reshape(rows, C * out, H, W)
