"""Leading batch dimensions folded into one and back, with errors that name the culprit."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


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


def fold_batch(x: Tensor, event_shape: torch.Size, *, owner: str) -> tuple[Tensor, torch.Size]:
    """Folds `(*batch, *event)` to `(rows, *event)`.

    Args:
        x: values, `(*batch, *event)`.
        event_shape: shape of one event.
        owner: who is asking, for the error.

    Returns:
        The folded values `(rows, *event)`, and the batch shape.

    Raises:
        ValueError: the trailing dimensions of `x` are not `event_shape`.
    """
    split = x.ndim - len(event_shape)
    if split < 0 or x.shape[split:] != event_shape:
        raise ValueError(f"{owner} takes events of shape {tuple(event_shape)}, but x has shape {tuple(x.shape)}.")
    batch_shape = x.shape[:split]
    return x.reshape(math.prod(batch_shape), *event_shape), batch_shape


def fold_context(context: Tensor | None, batch_shape: torch.Size) -> Tensor | None:
    """Broadcasts `(*b, features)` to `(*batch, features)` and folds it to `(rows, features)`.

    Raises:
        ValueError: the leading dimensions of `context` do not broadcast to `batch_shape`.
    """
    if context is None:
        return None
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
    return x.flatten(1).sum(1)


def align(t: Tensor, x: Tensor) -> Tensor:
    """Appends dimensions of size 1 so that `t`, 0-dimensional or `(batch,)`, broadcasts against `(batch, *event)`.

    Example:
        >>> align(torch.zeros(5), torch.zeros(5, 3, 2)).shape
        torch.Size([5, 1, 1])
    """
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t
