"""A flow seen as a `torch.distributions.Distribution`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

if TYPE_CHECKING:
    from discrete.flow import Flow


class FlowDistribution(Distribution):
    """A flow at a fixed context; values outside the base's support have log-density -inf.

    Args:
        flow: the flow.
        context: `(*b, features)`, whose leading dimensions are the batch shape, or None.
        batch_shape: batch shape of a flow without context: independent copies of it.
    """

    arg_constraints = {}  # noqa: RUF012 (the shape that torch asks for)
    has_rsample = True

    def __init__(self, flow: "Flow", context: Tensor | None = None, *, batch_shape: Sequence[int] = ()) -> None:
        self.flow = flow
        self.context = context
        shape = torch.Size(batch_shape) if context is None else context.shape[:-1]
        super().__init__(shape, flow.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Real vectors or arrays."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: Distribution | None = None
    ) -> "FlowDistribution":
        """The same flow over `batch_shape`, to which its context broadcasts."""
        if self.context is None:
            return FlowDistribution(self.flow, batch_shape=batch_shape)
        return FlowDistribution(self.flow, self.context.expand(*batch_shape, self.context.shape[-1]))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats; `value` broadcasts against the batch shape."""
        lead = value.ndim - len(self.event_shape)
        batch = torch.broadcast_shapes(value.shape[:lead], self.batch_shape)
        return self.flow.log_prob(value.expand(*batch, *self.event_shape), self.context)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:  # type: ignore[override]
        """Draws without gradient, from torch's global generator as every torch distribution."""
        return self.flow.sample((*sample_shape, *self.batch_shape), context=self.context)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:  # type: ignore[override]
        """Draws with gradient."""
        x, _ = self.flow.rsample_and_log_prob((*sample_shape, *self.batch_shape), context=self.context)
        return x
