"""Parameters of a layer that depend on the row through its context."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from core.nets.mlp import check_context

Context = Float[Tensor, "rows context_features"] | None


class Amortization(nn.Module):
    """θ(c) = θ + A c for each row: A starts at zero, so that a fresh layer is the same for every context.

    θ and A are trained, and whatever gives c with them once A has moved.

    Checked by tests/discrete/test_planar.py.

    Args:
        parameters: the θ of the layer, which holds them itself.
        context_features: width of the context c, 0 for none.

    Example:
        >>> import torch
        >>> w = nn.Parameter(torch.ones(2))
        >>> (rows,) = Amortization([w], context_features=3)([w], torch.randn(4, 3))
        >>> rows.shape
        torch.Size([4, 2])
    """

    def __init__(self, parameters: Sequence[Tensor], *, context_features: int) -> None:
        super().__init__()
        self.context_features = context_features
        self.linear: nn.Linear | None = None
        if context_features:
            self.linear = nn.Linear(context_features, sum(p.numel() for p in parameters), bias=False)
            nn.init.zeros_(self.linear.weight)

    def forward(self, parameters: Sequence[Tensor], context: Context) -> list[Tensor]:
        """Each θ(c), `(rows, *θ)`, or `(1, *θ)` without a context.

        Raises:
            ValueError: context given or missing against `context_features`.
        """
        check_context(context, self.context_features)
        if self.linear is None or context is None:
            return [p.unsqueeze(0) for p in parameters]
        shifts = self.linear(context).split([p.numel() for p in parameters], -1)
        return [p + shift.reshape(len(context), *p.shape) for p, shift in zip(parameters, shifts, strict=True)]
