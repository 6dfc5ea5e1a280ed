"""Linear flows whose log-determinant costs O(D): permutations and diagonal maps."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from core.density import Rng
from core.shapes import as_float, vector_size
from discrete.bijection import Bijection, Context, Direction, Events, Mapped


class Permutation(Bijection):
    """zᵢ = x_π(i): log|det| = 0.

    Checked by tests/contracts/bijections.py.

    Args:
        event_shape: number of features.
        order: `reverse`, `random` (drawn once, at construction), or the indices π as a tensor.
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
        order: Literal["reverse", "random"] | Tensor = "reverse",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(event_shape)
        size = vector_size(event_shape, owner="Permutation")
        if isinstance(order, Tensor):
            indices = order.long()
        elif order == "reverse":
            indices = torch.arange(size - 1, -1, -1)
        elif order == "random":
            indices = torch.randperm(size, generator=generator)
        else:
            raise ValueError(f"order must be reverse, random or a tensor of indices, but is {order!r}.")
        if indices.shape != (size,) or not torch.equal(indices.sort().values, torch.arange(size)):
            raise ValueError(f"order must hold each of 0..{size - 1} once, but is {indices.tolist()}.")
        self.register_buffer("order", indices)
        self.register_buffer("inverse_order", torch.argsort(indices))

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and zero."""
        return x.index_select(1, self.order), x.new_zeros(x.shape[0])

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and zero."""
        return z.index_select(1, self.inverse_order), z.new_zeros(z.shape[0])


class Diagonal(Bijection):
    """z = S x with S = diag(exp(s)) > 0: log|det| = Σ sᵢ, the final rescaling of NICE.

    References:
        Dinh, Krueger, Bengio, "NICE", 2014, section 3.3.

    Checked by tests/contracts/bijections.py.

    Args:
        event_shape: shape of one event.
        scale: initial S, positive, broadcast to the event.

    Raises:
        ValueError: a scale that is not positive.

    Example:
        >>> z, log_det = Diagonal(2, scale=2.0)(torch.ones(1, 2))
        >>> round(log_det.item(), 4)  # 2 log 2
        1.3863
    """

    forward_direction = inverse_direction = Direction(0)

    def __init__(self, event_shape: int | Sequence[int], *, scale: Tensor | float = 1.0) -> None:
        super().__init__(event_shape)
        scale = as_float(scale)
        if not bool((scale > 0).all()):
            raise ValueError(f"Diagonal needs a positive scale, but its smallest is {scale.min().item():g}.")
        self.log_scale = nn.Parameter(scale.log().broadcast_to(self.event_shape).clone())

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z and Σ sᵢ."""
        return x * self.log_scale.exp(), self.log_scale.sum().expand(x.shape[0])

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """x and -Σ sᵢ."""
        return z * torch.exp(-self.log_scale), -self.log_scale.sum().expand(z.shape[0])
