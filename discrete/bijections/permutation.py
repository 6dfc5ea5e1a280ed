"""Permutations of features and channels."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from core.rng import Rng
from core.shapes import as_permutation
from discrete.bijection import Bijection, Context, Direction, Events, Mapped

Order = Literal["identity", "reverse", "random"] | Tensor


class Permutation(Bijection):
    """zᵢ = x_π(i), of the features of a vector or the channels of an image: log|det| = 0.

    Checked by tests/contracts/bijections.py.

    Args:
        event_shape: features of a vector, or (channels, height, width).
        order: `reverse`, `random` (drawn once, at construction), `identity`, or the indices π as a tensor.
        generator: draws the random order.

    Raises:
        ValueError: an unknown name, or indices that are no permutation.

    Example:
        >>> z, _ = Permutation(3)(torch.tensor([[1.0, 2.0, 3.0]]))
        >>> z.tolist()
        [[3.0, 2.0, 1.0]]
    """

    forward_direction = inverse_direction = Direction(0)
    order: Tensor
    inverse_order: Tensor

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        order: Order = "reverse",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(event_shape)
        indices = as_indices(order, self.event_shape[0], generator=generator)
        self.register_buffer("order", indices)
        self.register_buffer("inverse_order", torch.argsort(indices))

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and zero."""
        return x.index_select(1, self.order), x.new_zeros(x.shape[0])

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and zero."""
        return z.index_select(1, self.inverse_order), z.new_zeros(z.shape[0])


def as_indices(order: Order, size: int, *, generator: torch.Generator | None = None) -> Int[Tensor, " size"]:
    """The indices π(0), ..., π(size - 1) that an order means.

    Raises:
        ValueError: an unknown name, or indices that are no permutation.

    Example:
        >>> as_indices("reverse", 3).tolist()
        [2, 1, 0]
    """
    if isinstance(order, Tensor):
        return as_permutation(order, size)
    if order == "identity":
        return torch.arange(size)
    if order == "reverse":
        return torch.arange(size - 1, -1, -1)
    if order == "random":
        return torch.randperm(size, generator=generator)
    raise ValueError(f"order must be identity, reverse, random or a tensor of indices, but is {order!r}.")
