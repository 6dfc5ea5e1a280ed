from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from core.nets.causal_conv import Context, gate
from core.nets.mlp import check_context


class MaskedConvNet(nn.Module):
    """Gated masked convolutions: the output of a value depends on the values before it in raster order alone.

    Raster order: pixels row by row, the channels of a pixel in turn. Two stacks, both gated, y = tanh(f) σ(g): the
    vertical one sees the rows above, through the upper n + 1 rows of its kernels; the horizontal one sees the pixels to
    the left, through the left n + 1 pixels of its kernels, and reads the vertical one. Together they leave no blind
    spot. On the pixel itself features come in groups, one a channel: mask A lets group c of the first layer see the
    channels before c, mask B lets group c of later layers see the groups up to c.

    References:
        van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu, "Conditional image generation with PixelCNN
        decoders", 2016, eq. 2 and 4, figure 2.
        van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel recurrent neural networks", 2016, section 3.4 (masks).

    Args:
        channels: channels of `x`.
        out_features: width of the output of each value.
        layers: number of gated layers; the net sees 1 + `layers` n rows above and `layers` n columns to either side.
        kernel: odd size 2n + 1 of the kernels, of which each stack uses its part.
        hidden: width of the gated layers, then of each 1×1 layer behind them; none below `channels`.
        context_features: width of `context`, 0 for none.

    Raises:
        ValueError: no layer, a kernel that is even or below 3, or a width below the number of channels.
    """

    def __init__(
        self,
        channels: int,
        out_features: int,
        *,
        layers: int = 8,
        kernel: int = 5,
        hidden: Sequence[int] = (64, 128),
        context_features: int = 0,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"MaskedConvNet needs 1 layer or more, but layers={layers}.")
        if kernel < 3 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and 3 or more, but is {kernel}.")
        if not hidden or min(hidden) < channels:
            raise ValueError(f"each width must be {channels} channels or more, but hidden is {tuple(hidden)}.")
        self.n, self.channels, self.context_features = kernel // 2, channels, context_features
        pixel = torch.arange(-1, channels)  # a channel of ones tells the image from its surroundings
        orders = [pixel, *[_groups(hidden[0], channels)] * layers]
        self.layers = nn.ModuleList(
            _GatedLayer(a, b, n=self.n, context_features=context_features, mask="A" if a is pixel else "B")
            for a, b in pairwise(orders)
        )
        behind: list[nn.Module] = []
        ends = [_groups(width, channels) for width in (*hidden, channels * out_features)]
        for a, b in pairwise(ends):
            behind += [nn.ReLU(), _OrderedConv(a, b)]
        self.head = nn.Sequential(*behind)

    def forward(
        self, x: Float[Tensor, "rows channels height width"], context: Context = None
    ) -> Float[Tensor, "rows channels height width out_features"]:
        """Output of every value, `(rows, channels, height, width, out_features)`.

        Raises:
            ValueError: context given or missing against `context_features`.
        """
        check_context(context, self.context_features)
        h = _with_ones(x)
        v = F.pad(h, (0, 0, 1, 0))[:, :, :-1]  # one row down: the vertical stack starts above
        layer: Any
        for layer in self.layers:
            a = layer.vertical(F.pad(v, (0, 0, self.n, 0)), context)
            h, v = layer.horizontal(F.pad(h, (self.n, 0)), a), gate(a, dim=1)
        return self.finish(h)

    def raster(self, rows: int, width: int, context: Context = None) -> "Raster":
        """The network at one pixel after another, before the first."""
        check_context(context, self.context_features)
        return Raster(self, rows, width, context)

    def finish(self, h: Tensor) -> Tensor:
        """The 1×1 layers: `(rows, channels, height, width, out_features)` from the horizontal stack's features."""
        return self.head(h).unflatten(1, (self.channels, -1)).movedim(2, -1)


class Raster:
    """The network at one pixel after another: the vertical stack once a row, the horizontal one at its pixel alone.

    Each layer keeps the n rows and the n pixels that its kernels reach back to. A whole image, every pixel asked once,
    costs one pass of the network. Call `start_row`, then for each pixel of the row `output` and `push`.

    Args:
        network: the network.
        rows: number of images.
        width: pixels in a row of the image.
        context: `(rows, context_features)`, or None.
    """

    def __init__(self, network: MaskedConvNet, rows: int, width: int, context: Context) -> None:
        self.network, self.context, n = network, context, network.n
        self.layers: list[Any] = list(network.layers)
        zeros = [layer.link.weight.new_zeros(rows, layer.in_features, 1, width) for layer in self.layers]
        self.outside = [z[..., :1] for z in zeros]
        self.rows = [deque([z] * n, maxlen=n) for z in zeros]  # inputs of the vertical layers, above this row
        self.row = [zeros[0]]  # pixels of this row so far; nothing but zeros is above the first

    def start_row(self) -> None:
        """Runs the vertical stack over the row above."""
        v, self.above = torch.cat(self.row, 3), []
        for layer, rows in zip(self.layers, self.rows, strict=True):
            a = layer.vertical(torch.cat([*rows, v], 2), self.context)
            rows.append(v)  # a full ring drops its oldest
            self.above.append(a)
            v = gate(a, dim=1)
        self.pixels = [deque([z] * self.network.n, maxlen=self.network.n) for z in self.outside]
        self.row = []

    def output(self, pixel: Float[Tensor, "rows channels"]) -> Float[Tensor, "rows channels out_features"]:
        """Outputs at the next pixel; that of a channel does not depend on what `pixel` holds there and behind."""
        h, self.inputs, j = _with_ones(pixel[:, :, None, None]), [], len(self.row)
        for layer, a, pixels in zip(self.layers, self.above, self.pixels, strict=True):
            self.inputs.append(h)
            h = layer.horizontal(torch.cat([*pixels, h], 3), a[..., j : j + 1])
        return self.network.finish(h)[:, :, 0, 0]

    def push(self, pixel: Float[Tensor, "rows channels"]) -> None:
        """Goes on behind a pixel whose last output was asked with all channels but the last in place."""
        self.inputs[0] = _with_ones(pixel[:, :, None, None])  # alone among the inputs it holds the last channel
        for pixels, h in zip(self.pixels, self.inputs, strict=True):
            pixels.append(h)
        self.row.append(self.inputs[0])


class _GatedLayer(nn.Module):
    def __init__(
        self, order_in: Tensor, order_out: Tensor, *, n: int, context_features: int, mask: Literal["A", "B"]
    ) -> None:
        super().__init__()
        self.in_features, width = len(order_in), len(order_out)
        self.conv = nn.Conv2d(self.in_features, 2 * width, (n + 1, 2 * n + 1), padding=(0, n))
        self.condition = nn.Linear(context_features, 2 * width, bias=False) if context_features else None
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.ordered = _OrderedConv(order_in, order_out.repeat(2), n=n, mask=mask)
        self.out = _OrderedConv(order_out, order_out)
        self.residual = mask == "B"  # behind mask A it would show a value to itself

    def vertical(self, v: Tensor, context: Tensor | None) -> Tensor:
        """(f, g) of the vertical stack from features with n rows more above."""
        a = self.conv(v)
        return a if self.condition is None else a + self.condition(context)[:, :, None, None]

    def horizontal(self, h: Tensor, a: Tensor) -> Tensor:
        """Features of the horizontal stack from those with n pixels more to the left, and the vertical (f, g)."""
        out = self.out(gate(self.ordered(h) + self.link(a), dim=1))
        return h[..., -a.shape[3] :] + out if self.residual else out


class _OrderedConv(nn.Module):
    """A convolution over the n pixels to the left, unmasked, and the pixel itself, masked by the order of features."""

    mask: Tensor

    def __init__(self, order_in: Tensor, order_out: Tensor, *, n: int = 0, mask: Literal["A", "B"] = "B") -> None:
        super().__init__()
        self.conv = nn.Conv2d(len(order_in), len(order_out), (1, n + 1))
        seen = torch.ones_like(self.conv.weight)
        later = order_in >= order_out[:, None] if mask == "A" else order_in > order_out[:, None]
        seen[:, :, 0, n] = (~later).to(seen.dtype)
        self.register_buffer("mask", seen, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight * self.mask, self.conv.bias)


def _groups(features: int, channels: int) -> Tensor:
    """The channel to whose group each feature belongs, in blocks of nearly equal size."""
    return torch.arange(features) * channels // features


def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(x[:, :1]), x], 1)
