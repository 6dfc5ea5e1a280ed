"""Leading batch dimensions folded into one and back, with errors that name the culprit."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from core.precision import check_floating


def as_float(value: Tensor | float) -> Tensor:
    """A floating-point tensor: whole numbers take torch's default dtype, tensors of floats keep theirs.

    Example:
        >>> as_float(torch.tensor(2)).dtype
        torch.float32
    """
    tensor = torch.as_tensor(value)
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def as_event_shape(event_shape: int | Sequence[int]) -> torch.Size:
    """Shape of one event: `64` and `(64,)` are the same vector, `(1, 28, 28)` an image.

    Raises:
        ValueError: a size that is not positive, or no dimension at all.

    Example:
        >>> as_event_shape(64)
        torch.Size([64])
    """
    shape = torch.Size((event_shape,) if isinstance(event_shape, int) else event_shape)
    if not shape or min(shape) < 1:
        raise ValueError(f"event_shape must hold at least one size, each 1 or more, but is {tuple(shape)}.")
    return shape


def vector_size(event_shape: int | Sequence[int], *, owner: str) -> int:
    """Number of features of a vector event; `owner` is named in the error for any other shape."""
    shape = as_event_shape(event_shape)
    if len(shape) != 1:
        raise ValueError(f"{owner} takes vectors, one size such as 64, but event_shape is {tuple(shape)}.")
    return shape[0]


def as_permutation(order: Tensor, size: int) -> Tensor:
    """Indices that hold each of 0..size-1 once, `(size,)`, whole numbers.

    Raises:
        ValueError: `order` is no permutation.

    Example:
        >>> as_permutation(torch.tensor([2, 0, 1]), 3).tolist()
        [2, 0, 1]
    """
    expected = torch.arange(size, device=order.device)
    if order.is_floating_point() or not torch.equal(order.long().sort().values, expected):
        raise ValueError(f"order must hold each of 0..{size - 1} once, but is {order.tolist()}.")
    return order.long()


def cut(event_shape: torch.Size, *, patch: int) -> Int[Tensor, "tokens values"]:
    """Where in the flattened event the values of each patch are, patches in raster order, channels of a pixel together.

    Raises:
        ValueError: an event that is neither vector nor image, or a patch that does not divide it.

    Example:
        >>> cut(torch.Size((1, 2, 4)), patch=2)
        tensor([[0, 1, 4, 5],
                [2, 3, 6, 7]])
    """
    if len(event_shape) not in (1, 3):
        raise ValueError(
            f"patches are cut from vectors or (channels, height, width), but event_shape is {tuple(event_shape)}."
        )
    sides = event_shape[-2:] if len(event_shape) == 3 else event_shape
    if patch < 1 or any(side % patch for side in sides):
        raise ValueError(
            f"a patch must divide the sides of its event, but patch={patch} and event_shape is {tuple(event_shape)}."
        )
    places = torch.arange(event_shape.numel())
    if len(event_shape) == 1:
        return places.reshape(-1, patch)
    pattern = "c (h p) (w q) -> (h w) (p q c)"
    return rearrange(places.reshape(event_shape), pattern, p=patch, q=patch)


def fold_batch(x: Tensor, event_shape: torch.Size, *, owner: str) -> tuple[Tensor, torch.Size]:
    """Folds `(*batch, *event)` to `(rows, *event)`.

    Args:
        x: values, `(*batch, *event)`.
        event_shape: shape of one event.
        owner: who is asking, for the error.

    Returns:
        The folded values `(rows, *event)`, and the batch shape.

    Raises:
        ValueError: the trailing dimensions of `x` are not `event_shape`, or it is neither float32 nor float64.
    """
    check_floating(x, owner=owner)
    split = x.ndim - len(event_shape)
    if split < 0 or x.shape[split:] != event_shape:
        raise ValueError(f"{owner} takes events of shape {tuple(event_shape)}, but x has shape {tuple(x.shape)}.")
    batch_shape = x.shape[:split]
    return x.reshape(math.prod(batch_shape), *event_shape), batch_shape


def fold_context(context: Tensor | None, batch_shape: torch.Size) -> Tensor | None:
    """Broadcasts `(*b, features)` to `(*batch, features)` and folds it to `(rows, features)`.

    Raises:
        ValueError: the leading dimensions of `context` do not broadcast to `batch_shape`, or it is neither float32 nor
            float64.
    """
    if context is None:
        return None
    check_floating(context, owner="a model", name="its context")
    features = context.shape[-1]
    try:
        return context.expand(*batch_shape, features).reshape(math.prod(batch_shape), features)
    except RuntimeError as error:
        raise ValueError(
            f"context of shape {tuple(context.shape)} does not broadcast to the batch {tuple(batch_shape)} "
            f"with {features} features."
        ) from error


def sum_event(x: Tensor) -> Tensor:
    """Sum over all dimensions but the first: `(batch, *event)` to `(batch,)`."""
    return (x if x.ndim == 2 else x.flatten(1)).sum(1)


def features_first(x: Tensor) -> Tensor:
    """`(batch, *event)` to `(features, batch)`, rows of one feature side by side in memory."""
    return x.flatten(1).T.contiguous()


def largest(x: Tensor) -> Tensor:
    """Largest size of any value of each row: `(batch, *event)` to `(batch,)`."""
    return x.flatten(1).abs().amax(1)


def align(t: Tensor, x: Tensor) -> Tensor:
    """Appends dimensions of size 1 so that `t`, 0-dimensional or `(batch,)`, broadcasts against `(batch, *event)`.

    Example:
        >>> align(torch.zeros(5), torch.zeros(5, 3, 2)).shape
        torch.Size([5, 1, 1])
    """
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t
