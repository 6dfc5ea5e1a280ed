"""What both sides, discrete and continuous, implement and return."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from core.precision import guard, outside_autocast
from core.rng import Rng
from core.shapes import as_event_shape

Kind = Literal["exact", "estimate", "bound"]

# What every density model takes and returns; `context` broadcasts to the batch shape.
Values = Shaped[Tensor, "..."]  # (*batch, *event)
Nats = Float[Tensor, "..."]  # (*batch,)
Context = Float[Tensor, "*b features"] | None

# What a model computes in full precision, wherever it is called.
CALLS = (
    "log_prob",
    "estimate_log_prob",
    "conditional_log_prob",
    "log_density",
    "log_joint",
    "sample",
    "rsample_and_log_prob",
    "encode",
    "decode",
)


def weakest(*kinds: Kind) -> Kind:
    """What a number made of several parts may call itself: a bound if any part is one, else an estimate, else exact."""
    rank: list[Kind] = ["exact", "estimate", "bound"]
    return max(kinds, key=rank.index)


@dataclass(frozen=True)
class LikelihoodEstimate:
    """A log-likelihood and how wrong it can be, each field `(*batch,)` or None.

    Attributes:
        log_prob: log-density in nats, in the space of the data handed in.
        std_error: standard error of `log_prob` from random trace probes, nats; NaN where one probe cannot tell.
        solver_error: size of the error of the numerical solve, nats.
        truncation: first-order estimate of log p_0(x) - log_prob for a solve that stops short of t = 0, nats.
        kind: `exact`, `estimate` (random, unbiased up to the solver) or `bound` (from below, on integer data).
        nfe: calls of the vector field that the number took.
    """

    log_prob: Float[Tensor, "*batch"]
    std_error: Float[Tensor, "*batch"] | None = None
    solver_error: Float[Tensor, "*batch"] | None = None
    truncation: Float[Tensor, "*batch"] | None = None
    kind: Kind = "exact"
    nfe: Shaped[Tensor, "*batch"] | None = None

    @classmethod
    def exact(cls, log_prob: Tensor) -> "LikelihoodEstimate":
        """A closed-form log-density: every error is zero."""
        zero = torch.zeros_like(log_prob)
        return cls(log_prob, zero, zero, zero, "exact", torch.zeros_like(log_prob, dtype=torch.long))

    def shifted(
        self, log_det: Tensor, *, kind: Kind = "exact", std_error: Tensor | None = None
    ) -> "LikelihoodEstimate":
        """The estimate for x where z = f(x): log p(x) = log p(z) + log|det dz/dx|; errors pass through unchanged.

        The standard error of a random log-determinant, where it has one, is added in quadrature.
        """
        found = [error for error in (self.std_error, std_error) if error is not None]
        total = torch.hypot(*found) if len(found) == 2 else next(iter(found), None)
        return replace(self, log_prob=self.log_prob + log_det, std_error=total, kind=weakest(self.kind, kind))

    def reshape(self, batch_shape: Sequence[int]) -> "LikelihoodEstimate":
        """The same rows under another batch shape."""
        tensors = {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        shaped: dict[str, Any] = {name: value.reshape(tuple(batch_shape)) for name, value in tensors.items()}
        return replace(self, **shaped)


class GenerativeModel(nn.Module, abc.ABC):
    """A law over `event_shape` that is sampled; its density may be out of reach.

    Draws and densities are those of full precision: autocast does not reach into them.

    Args:
        event_shape: shape of one event; an int is a vector.
    """

    anchor: Tensor

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        guard(cls, CALLS, outside_autocast)

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        # Follows .to() and .double(): models without parameters draw on the right device and in the right dtype.
        self.register_buffer("anchor", torch.zeros(()), persistent=False)

    @abc.abstractmethod
    def sample(self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None) -> Values:
        """Draws `(*shape, *event)` without gradient; `context` broadcasts to `(*shape, features)`."""


class DensityModel(GenerativeModel, abc.ABC):
    """A normalized density over `event_shape` that is evaluated and sampled.

    Every model takes any leading batch shape, none included. `context` broadcasts to the batch shape with its features
    last.

    Args:
        event_shape: shape of one event; an int is a vector.
    """

    @abc.abstractmethod
    def log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> Nats:
        """Log-density log p(x | context) in nats, `(*batch,)`."""

    @abc.abstractmethod
    def estimate_log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> LikelihoodEstimate:
        """Log-density with its errors; `log_prob` is its first field alone."""


class ExactDensity(DensityModel, abc.ABC):
    """A density in closed form: its estimate is its log-density with zero errors."""

    def estimate_log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> LikelihoodEstimate:
        """Log-density in nats with every error zero."""
        return LikelihoodEstimate.exact(self.log_prob(x, context, generator=generator))
