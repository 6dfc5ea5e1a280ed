"""How a plain network is told of the noise level σ and made a score; called as net(x, σ, ladder, context)."""

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from cflows.models.embedded_network import Architecture, EmbeddedNetwork, channels
from cflows.preconditioning import preconditioned_score
from core.nets import RefineNet, ResidualMLP, UNet
from core.nets.mlp import check_context
from core.shapes import align


class Embedded(nn.Module):
    """s = -x/V + √v/(σ√V) f(x/√V, e(log σ)), V = v + σ²: `preconditioned_score` with α = 1.

    Args:
        event_shape: shape of one event.
        network: `mlp` or `unet`.
        data_std: √v.
        keywords: of `EmbeddedNetwork`.

    Raises:
        ValueError: another network.
    """

    def __init__(self, event_shape: torch.Size, *, network: Any, data_std: float, **keywords: Any) -> None:
        super().__init__()
        if network not in get_args(Architecture):
            raise ValueError(f"conditioning='embedding' goes with network mlp or unet, not {network!r}.")
        self.data_std = data_std
        self.net = EmbeddedNetwork(event_shape, network=network, **keywords)

    def forward(self, x: Tensor, sigma: Tensor, ladder: Tensor, context: Tensor | None) -> Tensor:
        """The score, like `x`; log σ enters less its middle, within ±1: over half the ladder's width, at least 1."""
        high, low = ladder[0].log(), ladder[-1].log()
        u = (sigma.log() - (high + low) / 2) / ((high - low) / 2).clamp(min=1.0)
        scale = torch.ones_like(sigma)
        return preconditioned_score(lambda y: self.net(y, u, context), x, scale, sigma, data_std=self.data_std)


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
            c = channels(event_shape, network)
            self.net = UNet(c, c, hidden=hidden, blocks=depth, heads=heads, dropout=dropout)
        elif network == "refinenet":
            c = channels(event_shape, network)
            self.net = RefineNet(c, c, hidden=_one_width(hidden))
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
        c = channels(event_shape, network)
        self.net = RefineNet(c, c, hidden=_one_width(hidden), levels=levels)

    def forward(self, x: Tensor, sigma: Tensor, ladder: Tensor, context: Tensor | None) -> Tensor:
        """The score, like `x`."""
        check_context(context, 0)
        index = (sigma.log()[:, None] - ladder.log()).abs().argmin(1)
        return self.net(x, index)


def _one_width(hidden: Sequence[int]) -> int:
    if len(hidden) != 1:
        raise ValueError(f"network='refinenet' takes one width, but hidden has {len(hidden)}: {tuple(hidden)}.")
    return hidden[0]
