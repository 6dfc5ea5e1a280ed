"""Autoregressive models of whole numbers: their mass, value by value."""

import abc
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from core.density import Context, ExactDensity, Nats, Values
from core.precision import whole_numbers
from core.rng import Rng
from core.shapes import fold_batch, fold_context, sum_event
from discrete.likelihoods import Likelihood


class MassModel(ExactDensity, abc.ABC):
    """log P(x) = Σ_i log P(x_i | x_<i, context), x_i whole numbers 0..K-1 stored as floats, i in the model's order.

    A mass needs no dequantization: it is exact in nats as it stands, and no log2 K is added for bits per dimension.

    Args:
        event_shape: shape of one event.
        likelihood: law of one value, whose parameters θ the model gives.
    """

    def __init__(self, event_shape: int | Sequence[int], *, likelihood: Likelihood) -> None:
        super().__init__(event_shape)
        self.likelihood = likelihood

    @abc.abstractmethod
    def _theta(self, u: Tensor, context: Tensor | None) -> Tensor:
        """θ of every value, `(rows, *event, parameters)`, from all values rescaled to [-1, 1], `(rows, *event)`."""

    @abc.abstractmethod
    def _draw(self, rows: int, context: Tensor | None, generator: Rng) -> Tensor:
        """Draws `(rows, *event)`, value by value, each from `likelihood.sample`."""

    def conditional_log_prob(self, x: Values, context: Context = None) -> Values:
        """log P(x_i | x_<i, context) of each value in nats, `(*batch, *event)`.

        Raises:
            ValueError: `x` does not end in the event shape, or `context` does not broadcast to its batch.
        """
        owner = type(self).__name__
        k, batch_shape = fold_batch(whole_numbers(x, like=self.anchor, owner=owner), self.event_shape, owner=owner)
        theta = self._theta(self.likelihood.rescale(k), fold_context(context, batch_shape))
        return self.likelihood.log_prob(k, theta).reshape(x.shape)

    def log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> Nats:
        """Log-mass in nats, `(*batch,)`; -inf where a value is no whole number within 0..K-1.

        Raises:
            ValueError: `x` does not end in the event shape, or `context` does not broadcast to its batch.
        """
        each = self.conditional_log_prob(x, context)
        rows, batch_shape = fold_batch(each, self.event_shape, owner=type(self).__name__)
        return sum_event(rows).reshape(batch_shape)

    def sample(self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None) -> Values:
        """Draws `(*shape, *event)` of whole numbers without gradient, one value after another."""
        with torch.no_grad():
            rows = self._draw(math.prod(shape), fold_context(context, torch.Size(shape)), generator)
        return rows.reshape(*shape, *self.event_shape)
