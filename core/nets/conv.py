from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.nets.mlp import activation_layer, check_context

Input = Float[Tensor, "rows in_features height width"]
Output = Float[Tensor, "rows out_features height width"]


class ConvNet(nn.Module):
    """A 3×3 convolution, 1×1 convolutions from width to width, a 3×3 convolution, activations between: Glow's network.

    References:
        Kingma and Dhariwal, "Glow", 2018, section 5.

    Args:
        in_features: channels of `x`.
        out_features: channels of the output.
        hidden: widths of the hidden layers; with none the network is one convolution.
        context_features: width of `context`, which is appended to every pixel; 0 for none.
        activation: `relu`, `silu`, `tanh`, `elu` or `gelu`.
        dropout: probability of zeroing a hidden channel in training.
        zero_output: start with the last layer zero, so that the output is zero.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: Sequence[int] = (128, 128),
        context_features: int = 0,
        activation: str = "relu",
        dropout: float = 0.0,
        zero_output: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_features + context_features, *hidden]
        layers: list[nn.Module] = []
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            kernel = 3 if i == 0 else 1
            layers.append(nn.Conv2d(fan_in, fan_out, kernel, padding=kernel // 2))
            layers.append(activation_layer(activation, overwrite=True))
            if dropout > 0:
                layers.append(nn.Dropout2d(dropout))
        self.layers = nn.Sequential(*layers, _last(widths[-1], out_features, zero=zero_output))
        self.context_features = context_features
        _store_channels_last(self)

    def forward(self, x: Input, context: Float[Tensor, "rows context_features"] | None = None) -> Output:
        """Output `(rows, out_features, height, width)`.

        Raises:
            ValueError: context given or missing against `context_features`.
        """
        return self.layers(_join(x, context, self.context_features))


class ResidualConvNet(nn.Module):
    """Convolution, pre-activation residual blocks h ← skip(h) + W₂ a(W₁ a(h)), activation, convolution; all of 3×3.

    Each block starts as its skip, so that depth does not hurt at the start.

    References:
        He et al., "Identity mappings in deep residual networks", 2016; as a conditioner, Dinh et al., "Real NVP",
        2017, sections 3.7 and 4.1, without the normalization over the batch, which couples rows.

    Args:
        in_features: channels of `x`.
        out_features: channels of the output.
        hidden: width of each block, one or more.
        context_features: width of `context`, which is appended to every pixel; 0 for none.
        activation: name of the activation.
        dropout: probability of zeroing a hidden channel in training.
        zero_output: start with the last layer zero, so that the output is zero.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: Sequence[int] = (64, 64),
        context_features: int = 0,
        activation: str = "relu",
        dropout: float = 0.0,
        zero_output: bool = False,
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("ResidualConvNet needs at least one hidden width, but hidden is empty.")
        stem = nn.Conv2d(in_features + context_features, hidden[0], 3, padding=1)
        blocks = [_ConvBlock(a, b, activation=activation, dropout=dropout) for a, b in pairwise([hidden[0], *hidden])]
        last = _last(hidden[-1], out_features, zero=zero_output)
        self.layers = nn.Sequential(stem, *blocks, activation_layer(activation), last)
        self.context_features = context_features
        _store_channels_last(self)

    def forward(self, x: Input, context: Float[Tensor, "rows context_features"] | None = None) -> Output:
        """Output `(rows, out_features, height, width)`.

        Raises:
            ValueError: context given or missing against `context_features`.
        """
        return self.layers(_join(x, context, self.context_features))


class _ConvBlock(nn.Module):
    def __init__(self, width: int, out: int, *, activation: str, dropout: float) -> None:
        super().__init__()
        self.skip = nn.Identity() if width == out else nn.Conv2d(width, out, 1, bias=False)
        last = _last(out, out, zero=True)
        self.branch = nn.Sequential(
            activation_layer(activation),
            nn.Conv2d(width, out, 3, padding=1),
            activation_layer(activation),
            nn.Dropout2d(dropout),
            last,
        )

    def forward(self, h: Tensor) -> Tensor:
        return self.skip(h) + self.branch(h)


def _last(width: int, out: int, *, zero: bool) -> nn.Conv2d:
    layer = nn.Conv2d(width, out, 3, padding=1)
    if zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _store_channels_last(network: nn.Module) -> None:
    """Channels innermost in memory, and so in every activation: with few channels convolutions run twice as fast."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _join(x: Tensor, context: Tensor | None, context_features: int) -> Tensor:
    """Appends the context's features to the channels of every pixel."""
    check_context(context, context_features)
    if context is None:
        return x
    return torch.cat([x, context[:, :, None, None].expand(*context.shape, *x.shape[2:])], 1)
