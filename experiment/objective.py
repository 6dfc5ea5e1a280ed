"""Objectives over raw batches: `forward(batch)` returns the loss, for either side."""

import torch
from torch import Tensor, nn

from core.density import DensityModel
from discrete import Bijection


class MaximumLikelihood(nn.Module):
    """L = -mean log p(x), nats.

    Args:
        model: a density over raw data.
    """

    metric = "nll_nats"

    def __init__(self, model: DensityModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch `(rows, *event)`."""
        return -self.model.log_prob(batch, generator=generator).mean()


class Preprocessed(nn.Module):
    """An objective on z = f(x), for raw batches of x.

    Args:
        preprocessing: f, without trainable parameters: its log-determinant then is a constant of the loss.
        objective: the loss of z, called with a batch and a generator.
        metric: what logs call it.
    """

    def __init__(
        self, preprocessing: Bijection | None, objective: nn.Module, *, metric: str = "denoising_loss"
    ) -> None:
        super().__init__()
        self.metric = metric
        self.preprocessing = preprocessing
        self.objective = objective

    def forward(self, batch: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch `(rows, *event)`."""
        if self.preprocessing is not None:
            batch, _ = self.preprocessing(batch, generator=generator)
        return self.objective(batch, generator=generator)
