"""Partitions of an event into a part that passes a coupling and a part that moves."""

import abc
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.shapes import as_event_shape, sum_event

MaskName = Literal[
    "alternating", "alternating_flipped", "half", "half_flipped", "checkerboard", "checkerboard_flipped"
]  # fmt: skip


def coupling_mask(event_shape: int | Sequence[int], mask: MaskName | Tensor) -> Tensor:
    """Boolean mask b, True where a value passes unchanged and steers the others.

    Args:
        event_shape: features of a vector, or (channels, height, width).
        mask: `alternating` (even features or channels pass), `half` (the first half of them passes: the channel-wise
            mask of an image), `checkerboard` (pixels of even row + column pass), any of them `_flipped`, or a boolean
            tensor over the features or channels, or over the whole event: any partition.

    Returns:
        The mask, over the features or channels, or over the whole image where pixels differ.

    Raises:
        ValueError: an unknown name, a checkerboard without pixels, a wrong shape, or a part that would be empty.

    Example:
        >>> coupling_mask(4, "alternating").tolist()
        [True, False, True, False]
        >>> coupling_mask((1, 2, 3), "checkerboard").int().tolist()
        [[[1, 0, 1], [0, 1, 0]]]
    """
    shape = as_event_shape(event_shape)
    b = mask.bool() if isinstance(mask, Tensor) else _named_mask(shape, mask)
    if b.shape not in (shape[:1], shape) or b.all() or not b.any():
        raise ValueError(
            f"mask must split an event of shape {tuple(shape)} into two parts that are not empty, but has shape "
            f"{tuple(b.shape)} and passes {int(b.sum())} of {b.numel()}."
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


def _named_mask(shape: torch.Size, mask: str) -> Tensor:
    name = mask.removesuffix("_flipped")
    flipped = mask != name
    if name == "checkerboard" and len(shape) == 3:
        _, height, width = shape
        pixels = (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0
        return (pixels != flipped).expand(shape).contiguous()
    strides = {"alternating": 1, "half": (shape[0] + 1) // 2}
    if name not in strides:
        raise ValueError(
            f"mask must be alternating, half, for images (channels, height, width) checkerboard, one of them _flipped, "
            f"or a tensor, but is {mask!r} for an event of shape {tuple(shape)}."
        )
    return alternating_mask(shape[0], strides[name], flipped=flipped)


class Partition(nn.Module, abc.ABC):
    """Which part of an event steers and which moves.

    Attributes:
        channels_in: what a network sees of the one is made of.
        channels_out: what the other is made of.
        flipped: whether the part of the first channel moves.
    """

    channels_in: int
    channels_out: int
    flipped: bool = False

    @property
    @abc.abstractmethod
    def parts(self) -> bytes | None:
        """Equal for partitions into the same two parts, whichever steers; None where that is not known."""

    @abc.abstractmethod
    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the conditioner sees, and what moves."""

    @abc.abstractmethod
    def join(self, steering: Tensor, moved: Tensor) -> Tensor:
        """The event put together again."""

    @abc.abstractmethod
    def log_det(self, log_derivative: Tensor) -> Tensor:
        """The log-determinant `(rows,)` from the log-derivatives of what moved."""


class ChannelPartition(Partition):
    """Features of a vector or channels of an image, each as a whole.

    Args:
        b: boolean mask `(channels,)`.
    """

    passing: Tensor
    moving: Tensor
    order: Tensor

    def __init__(self, b: Tensor) -> None:
        super().__init__()
        passing, moving = b.nonzero()[:, 0], (~b).nonzero()[:, 0]
        self.register_buffer("passing", passing)
        self.register_buffer("moving", moving)
        self.register_buffer("order", torch.argsort(torch.cat([passing, moving])))
        self.channels_in, self.channels_out = len(passing), len(moving)
        self._look()
        self.register_load_state_dict_post_hook(_look_again)

    def _look(self) -> None:
        """Whether the parts are halves, which are views: nothing is gathered, and one cat joins their gradients."""
        self._seen = self.passing
        passing = set(self.passing.tolist())
        passes = [i in passing for i in range(self.channels_in + self.channels_out)]
        self.flipped = not passes[0]
        self._parts = bytes(p == passes[0] for p in passes)
        halves = {"head": passes[: self.channels_in], "tail": passes[self.channels_out :]}
        self._half = next((name for name, half in halves.items() if all(half)), None)

    def _apply(self, *args: Any, **keywords: Any) -> "ChannelPartition":
        """Moved, the parts are the same."""
        seen = self._is_seen
        super()._apply(*args, **keywords)
        if seen:
            self._seen = self.passing
        return self

    @property
    def _is_seen(self) -> bool:
        """Whether the buffers are those looked at; `torch.func` puts others in their place, of one flow or of many."""
        return self.passing is self._seen

    @property
    def parts(self) -> bytes | None:
        """Which channels go with the first."""
        return self._parts if self._is_seen else None

    @property
    def _passing_half(self) -> str | None:
        """`head` or `tail` where all of it passes and the rest moves, else None."""
        return self._half if self._is_seen else None

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The channels that pass, and those that move."""
        half = self._passing_half
        if half == "head":
            passing, moving = x.split((self.channels_in, self.channels_out), 1)
            return passing, moving
        if half == "tail":
            moving, passing = x.split((self.channels_out, self.channels_in), 1)
            return passing, moving
        return x.index_select(1, self.passing), x.index_select(1, self.moving)

    def join(self, steering: Tensor, moved: Tensor) -> Tensor:
        """Every channel back in its place."""
        half = self._passing_half
        if half == "tail":
            return torch.cat([moved, steering], 1)
        z = torch.cat([steering, moved], 1)
        return z if half == "head" else z.index_select(1, self.order)

    def log_det(self, log_derivative: Tensor) -> Tensor:
        """The sum: all of it moved."""
        return sum_event(log_derivative)


def _look_again(partition: ChannelPartition, _: object) -> None:
    """After a state was loaded, whose parts may be others."""
    if not partition.passing.is_meta:
        partition._look()


class PixelPartition(Partition):
    """Any values of an image: the conditioner sees the image with all others set to zero.

    Args:
        b: boolean mask `(channels, height, width)`.
    """

    b: Tensor

    def __init__(self, b: Tensor) -> None:
        super().__init__()
        self.register_buffer("b", b)
        self.channels_in = self.channels_out = b.shape[0]

    @property
    def parts(self) -> None:
        """None: the values that move are not taken out of the image."""
        return None

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The masked image, and the whole image, of which only the rest will be kept."""
        return x * self.b, x

    def join(self, steering: Tensor, moved: Tensor) -> Tensor:
        """Passing values from the one, moved values from the other."""
        return torch.where(self.b, steering, moved)

    def log_det(self, log_derivative: Tensor) -> Tensor:
        """The sum over what moved."""
        return sum_event(torch.where(self.b, 0.0, log_derivative))
