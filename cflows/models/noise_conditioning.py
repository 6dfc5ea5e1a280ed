"""How a plain network is told of the noise level σ and made a score; called as net(x, σ, ladder, context)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cflows.preconditioning import preconditioned_score
from core.nets import FourierEmbedding, ModulatedMLP, RefineNet, ResidualMLP, UNet
from core.nets.mlp import check_context, join_context
from core.shapes import align


class Embedded(nn.Module):
    """s = -x/V + √v/(σ√V) f(x/√V, e(log σ)), V = v + σ²: `preconditioned_score` with α = 1."""

    def __init__(
        self,
        event_shape: torch.Size,
        *,
        network: str,
        hidden: Sequence[int],
        depth: int,
        heads: int,
        dropout: float,
        context_features: int,
        frequencies: int,
        data_std: float,
    ) -> None:
        super().__init__()
        self.embedding = FourierEmbedding(frequencies=frequencies)
        self.context_features, self.data_std = context_features, data_std
        features = self.embedding.out_features + context_features
        self.flat = network == "mlp"
        self.net: nn.Module
        if network == "mlp":
            size = event_shape.numel()
            self.net = ModulatedMLP(size, size, embedding_features=features, hidden=hidden, dropout=dropout)
        elif network == "unet":
            channels = _channels(event_shape, network)
            self.net = UNet(
                channels,
                channels,
                hidden=hidden,
                blocks=depth,
                heads=heads,
                embedding_features=features,
                dropout=dropout,
            )
        else:
            raise ValueError(f"conditioning='embedding' goes with network mlp or unet, not {network!r}.")

    def forward(self, x: Tensor, sigma: Tensor, ladder: Tensor, context: Tensor | None) -> Tensor:
        """The score, like `x`; log σ enters less its middle, within ±1: over half the ladder's width, at least 1."""
        high, low = ladder[0].log(), ladder[-1].log()
        u = (sigma.log() - (high + low) / 2) / ((high - low) / 2).clamp(min=1.0)
        embedding = join_context(self.embedding(u), context, self.context_features)

        def net(y: Tensor) -> Tensor:
            return self.net(y.flatten(1), embedding).reshape(y.shape) if self.flat else self.net(y, embedding)

        return preconditioned_score(net, x, torch.ones_like(sigma), sigma, data_std=self.data_std)


class Scaled(nn.Module):
    """s = f(x)/σ (Song and Ermon, 2020, technique 3)."""

    def __init__(
        self, event_shape: torch.Size, *, network: str, hidden: Sequence[int], depth: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.flat = network == "mlp"
        self.net: nn.Module
        if network == "mlp":
            size = event_shape.numel()
            self.net = ResidualMLP(size, size, hidden=hidden, dropout=dropout, activation="silu", zero_output=True)
        elif network == "unet":
            channels = _channels(event_shape, network)
            self.net = UNet(channels, channels, hidden=hidden, blocks=depth, heads=heads, dropout=dropout)
        elif network == "refinenet":
            channels = _channels(event_shape, network)
            self.net = RefineNet(channels, channels, hidden=_one_width(hidden))
        else:
            raise ValueError(f"network must be mlp, unet or refinenet, but is {network!r}.")

    def forward(self, x: Tensor, sigma: Tensor, ladder: Tensor, context: Tensor | None) -> Tensor:
        """The score, like `x`."""
        check_context(context, 0)
        f = self.net(x.flatten(1)).reshape(x.shape) if self.flat else self.net(x)
        return f / align(sigma, x)


class Indexed(nn.Module):
    """s = f(x, i), i the index of the nearest level (Song and Ermon, 2019, appendix A)."""

    def __init__(self, event_shape: torch.Size, *, network: str, hidden: Sequence[int], levels: int) -> None:
        super().__init__()
        if network != "refinenet":
            raise ValueError(f"conditioning='instance_norm' goes with network refinenet, not {network!r}.")
        channels = _channels(event_shape, network)
        self.net = RefineNet(channels, channels, hidden=_one_width(hidden), levels=levels)

    def forward(self, x: Tensor, sigma: Tensor, ladder: Tensor, context: Tensor | None) -> Tensor:
        """The score, like `x`."""
        check_context(context, 0)
        index = (sigma.log()[:, None] - ladder.log()).abs().argmin(1)
        return self.net(x, index)


def _channels(event_shape: torch.Size, network: str) -> int:
    if len(event_shape) != 3:
        raise ValueError(
            f"network={network!r} takes images (channels, height, width), but event_shape is {tuple(event_shape)}."
        )
    return event_shape[0]


def _one_width(hidden: Sequence[int]) -> int:
    if len(hidden) != 1:
        raise ValueError(f"network='refinenet' takes one width, but hidden has {len(hidden)}: {tuple(hidden)}.")
    return hidden[0]
