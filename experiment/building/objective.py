"""Objectives over raw batches: `forward(batch)` returns the loss, for either side."""

import torch
from torch import Tensor, nn

from core.density import Context, DensityModel
from core.rng import rand
from discrete import Bijection


class MaximumLikelihood(nn.Module):
    """L = -mean log p(x), nats, of p(x | context) where there is one.

    Args:
        model: a density over raw data.
    """

    metric = "nll_nats"

    def __init__(self, model: DensityModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor, context: Context = None, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch `(rows, *event)`, context `(rows, features)`."""
        return -self.model.log_prob(batch, context, generator=generator).mean()


class Preprocessed(nn.Module):
    """An objective on z = f(x), for raw batches of x; in training a row may lose its context.

    A model that is trained with contexts left out at random knows the law of x without one as well, from the context
    of zeros, which guidance needs.

    References:
        Ho and Salimans, "Classifier-free diffusion guidance", 2022, algorithm 1.

    Checked by tests/experiment/test_labels.py.

    Args:
        preprocessing: f, without trainable parameters: its log-determinant then is a constant of the loss.
        objective: the loss of z, called with a batch, its context and a generator.
        metric: what logs call it.
        context_dropout: probability that the context of a row is zeros in training.
    """

    def __init__(
        self,
        preprocessing: Bijection | None,
        objective: nn.Module,
        *,
        metric: str = "denoising_loss",
        context_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.metric = metric
        self.context_dropout = context_dropout
        self.preprocessing = preprocessing
        self.objective = objective

    def forward(self, batch: Tensor, context: Context = None, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch `(rows, *event)`, context `(rows, features)`."""
        if self.preprocessing is not None:
            batch, _ = self.preprocessing(batch, generator=generator)
        if context is not None and self.training and self.context_dropout:
            kept = rand((len(context), 1), generator, like=context) >= self.context_dropout
            context = context * kept
        return self.objective(batch, context, generator=generator)
