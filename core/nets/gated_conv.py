"""Gated convolutions from an image to a vector and back: encoders and decoders of variational autoencoders."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from core.nets.mlp import join_context

KERNEL = 5


class GatedConvEncoder(nn.Module):
    """Image to vector by gated layers h ← (W h + b) ⊙ σ(V h + c).

    Each width is a level: a 5×5 convolution, then one of stride 2. One more convolution and a dense layer follow.

    References:
        van den Berg, Hasenclever, Tomczak, Welling, "Sylvester normalizing flows for variational inference", 2018,
        appendix A; the gates, Dauphin et al., "Language modeling with gated convolutional networks", 2017, eq. 1.

    Checked by tests/discrete/inference/test_vae.py.

    Args:
        event_shape: (channels, height, width) of the image; any size.
        out_features: width of the vector.
        hidden: channels of each level, one or more.
        context_features: width of the context, which the dense layer reads; 0 for none.

    Raises:
        ValueError: no width.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        out_features: int,
        *,
        hidden: Sequence[int] = (32, 64),
        context_features: int = 0,
    ) -> None:
        super().__init__()
        sizes = _sizes(event_shape, hidden)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise([event_shape[0], *hidden]):
            layers += [_conv(fan_in, fan_out), _gate(), _conv(fan_out, fan_out, stride=2), _gate()]
        self.layers = nn.Sequential(*layers, _conv(hidden[-1], hidden[-1]), _gate())
        self.last = nn.Linear(hidden[-1] * sizes[-1][0] * sizes[-1][1] + context_features, 2 * out_features)
        self.context_features = context_features
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self, x: Float[Tensor, "rows channels height width"], context: Float[Tensor, "rows context"] | None = None
    ) -> Float[Tensor, "rows out_features"]:
        """The vector, `(rows, out_features)`.

        Raises:
            ValueError: context given or missing against `context_features`.
        """
        h = join_context(self.layers(x).flatten(1), context, self.context_features)
        return nn.functional.glu(self.last(h), -1)


class GatedConvDecoder(nn.Module):
    """Vector to parameters of each value of an image: the layers of `GatedConvEncoder` backwards, convolutions turned.

    References:
        As of `GatedConvEncoder`.

    Checked by tests/discrete/inference/test_vae.py.

    Args:
        in_features: width of the vector.
        event_shape: (channels, height, width) of the image; any size.
        parameters_per_value: number of outputs for each value.
        hidden: channels of each level, the one of the whole image first.
        context_features: width of the context, which the dense layer reads; 0 for none.

    Raises:
        ValueError: no width.
    """

    def __init__(
        self,
        in_features: int,
        event_shape: Sequence[int],
        parameters_per_value: int = 1,
        *,
        hidden: Sequence[int] = (32, 64),
        context_features: int = 0,
    ) -> None:
        super().__init__()
        sizes = _sizes(event_shape, hidden)
        self.start = (hidden[-1], *sizes[-1])
        self.first = nn.Linear(in_features + context_features, 2 * hidden[-1] * sizes[-1][0] * sizes[-1][1])
        layers: list[nn.Module] = [_conv(hidden[-1], hidden[-1]), _gate()]
        widths = [*reversed(hidden), hidden[0]]
        for (fan_in, fan_out), size in zip(pairwise(widths), reversed(sizes[:-1]), strict=True):
            layers += [_turned(fan_in, fan_out, size), _gate(), _conv(fan_out, fan_out), _gate()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(hidden[0], event_shape[0] * parameters_per_value, 1))
        self.parameters_per_value, self.context_features = parameters_per_value, context_features
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self, z: Float[Tensor, "rows in_features"], context: Float[Tensor, "rows context"] | None = None
    ) -> Float[Tensor, "rows channels height width parameters"]:
        """The parameters, `(rows, channels, height, width, parameters_per_value)`.

        Raises:
            ValueError: context given or missing against `context_features`.
        """
        h = nn.functional.glu(self.first(join_context(z, context, self.context_features)), -1)
        theta = self.layers(h.unflatten(1, self.start))
        return rearrange(theta, "n (c p) h w -> n c h w p", p=self.parameters_per_value)


def _sizes(event_shape: Sequence[int], hidden: Sequence[int]) -> list[tuple[int, int]]:
    """Height and width at each level, the whole image first."""
    if not hidden or len(event_shape) != 3:
        raise ValueError(
            "gated convolutions need (channels, height, width) and at least one width, but event_shape is "
            f"{tuple(event_shape)} and hidden {tuple(hidden)}."
        )
    sizes = [(event_shape[1], event_shape[2])]
    for _ in hidden:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def _conv(fan_in: int, fan_out: int, *, stride: int = 1) -> nn.Conv2d:
    """Value and gate side by side."""
    return nn.Conv2d(fan_in, 2 * fan_out, KERNEL, stride=stride, padding=KERNEL // 2)


def _turned(fan_in: int, fan_out: int, size: tuple[int, int]) -> nn.ConvTranspose2d:
    """Doubles the sides, to `size` where the half was rounded up."""
    even = tuple(1 - side % 2 for side in size)
    return nn.ConvTranspose2d(fan_in, 2 * fan_out, KERNEL, stride=2, padding=KERNEL // 2, output_padding=even)  # type: ignore[arg-type]


def _gate() -> nn.GLU:
    return nn.GLU(1)
