from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.density import Context
from core.nets import FourierEmbedding, ModulatedMLP, UNet
from core.nets.mlp import join_context

Architecture = Literal["mlp", "unet"]


class EmbeddedNetwork(nn.Module):
    """F(x, u, context) like x: u enters as Fourier features beside the context and modulates every block.

    Args:
        event_shape: shape of one event; `mlp` flattens it, `unet` takes (channels, height, width).
        network: `mlp` (`ModulatedMLP`) or `unet` (`UNet`).
        hidden: widths of the blocks, or of the resolutions, the finest first.
        depth: residual blocks a resolution, of `unet`.
        heads: heads of its attention, 0 for none.
        dropout: dropout probability in training.
        context_features: width of the context, 0 for none.
        frequencies: Fourier features of u.
        attention: resolutions with attention, 0 the finest; the coarsest alone where omitted.
        patch: side of the patches that `unet` sees as one pixel.

    Raises:
        ValueError: an unknown network, `unet` for events that are no images or whose sides the patch does not divide,
            or settings of `unet` for `mlp`.
    """

    def __init__(
        self,
        event_shape: torch.Size,
        *,
        network: Architecture,
        hidden: Sequence[int],
        depth: int,
        heads: int,
        dropout: float,
        context_features: int,
        frequencies: int,
        attention: Sequence[int] | None = None,
        patch: int = 1,
    ) -> None:
        super().__init__()
        if network not in get_args(Architecture):
            raise ValueError(f"network must be one of {', '.join(get_args(Architecture))}, but is {network!r}.")
        if network == "mlp" and (heads or attention is not None or patch != 1):
            raise ValueError(
                f"heads, attention and patch are of 'unet', but mlp has {heads=}, {attention=} and {patch=}."
            )
        if network == "unet" and any(patch < 1 or side % patch for side in event_shape[1:]):
            raise ValueError(f"patch={patch} must divide the sides of images, but event_shape is {tuple(event_shape)}.")
        self.embedding = FourierEmbedding(frequencies=frequencies)
        self.context_features = context_features
        self.flat = network == "mlp"
        features = self.embedding.out_features + context_features
        size = event_shape.numel() if self.flat else channels(event_shape, network)
        self.net: nn.Module
        if self.flat:
            self.net = ModulatedMLP(size, size, embedding_features=features, hidden=hidden, dropout=dropout)
        else:
            self.net = UNet(
                size,
                size,
                hidden=hidden,
                blocks=depth,
                embedding_features=features,
                heads=heads,
                attention=attention,
                patch=patch,
                dropout=dropout,
            )

    def forward(
        self, x: Float[Tensor, "rows ..."], u: Float[Tensor, " rows"], context: Context = None
    ) -> Float[Tensor, "rows ..."]:
        """F like x; u within [-1, 1].

        Raises:
            ValueError: context given, missing or of another width than `context_features`.
        """
        embedding = join_context(self.embedding(u), context, self.context_features)
        if self.flat:
            return self.net(x.flatten(1), embedding).reshape(x.shape)
        return self.net(x, embedding)


def channels(event_shape: torch.Size, network: str) -> int:
    """Channels of an image event.

    Raises:
        ValueError: an event that is no image.
    """
    if len(event_shape) != 3:
        raise ValueError(
            f"network={network!r} takes images (channels, height, width), but event_shape is {tuple(event_shape)}."
        )
    return event_shape[0]
