"""Denoising score matching at one noise level, and over a ladder of them."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cflows.noise_ladder import as_ladder
from cflows.objectives.rows import half_square, mean_over_rows, spread_evenly
from cflows.score import StaticScore, conditioned
from core.density import Context
from core.rng import Rng, randn
from core.shapes import align

LevelWeighting = Literal["variance", "uniform"] | Callable[[Tensor], Tensor]


class FixedNoiseDenoising(nn.Module):
    """L = ½ E_x E_ε ‖s(x + σε) + ε/σ‖²: denoising score matching at one noise level.

    Its minimiser is the score of p ∗ N(0, σ² I), not of p; its gradient is that of explicit score matching on it.

    References:
        Vincent, "A connection between score matching and denoising autoencoders", 2011, eq. 11.

    Checked by tests/cflows/test_score_matching.py.

    Args:
        score: score(x) or score(x, context), the network.
        sigma: standard deviation σ > 0 of the noise, in the unit of the data.

    Raises:
        ValueError: a noise that is not positive.

    Example:
        >>> loss = FixedNoiseDenoising(lambda x: -x, sigma=1.0)  # data 0, of which the noise alone is left
        >>> loss(torch.zeros(5, 2)).item()
        0.0
    """

    def __init__(self, score: StaticScore, *, sigma: float) -> None:
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"FixedNoiseDenoising needs sigma > 0, but it is {sigma}.")
        self.score = score
        self.sigma = sigma

    def forward(
        self, batch: Float[Tensor, "rows ..."], context: Context = None, *, generator: Rng = None
    ) -> Float[Tensor, ""]:
        """The loss of a batch `(rows, *event)` of data.

        Raises:
            ValueError: an empty batch.
        """
        eps = randn(batch.shape, generator, like=batch)
        s = conditioned(self.score, context)(batch + self.sigma * eps)
        return mean_over_rows(half_square(s + eps / self.sigma), owner=type(self).__name__)


class LadderDenoising(nn.Module):
    """L = (1/L) Σᵢ λ(σᵢ) ½ E_x E_ε ‖s(x + σᵢε, σᵢ) + ε/σᵢ‖²: denoising at all levels σ₁ > ... > σ_L of a ladder.

    With λ(σ) = σ² each level counts alike, since a good score has ‖s‖ ∝ 1/σ. Each row takes one level; the levels are
    spread evenly over the batch, which takes noise out of the loss and leaves its expectation.

    References:
        Song and Ermon, "Generative modeling by estimating gradients of the data distribution", 2019, eq. 5 and 6.

    Checked by tests/cflows/test_score_matching.py.

    Args:
        score: score(x, σ) or score(x, σ, context) with σ `(rows,)`, the network.
        sigmas: the levels, falling, in the unit of the data.
        weighting: λ: `variance` (σ²), `uniform` (1), or a function of σ.

    Raises:
        ValueError: levels that are not positive and falling, or an unknown weighting.

    Example:
        >>> loss = LadderDenoising(lambda x, sigma: -x / sigma[:, None] ** 2, [1.0, 0.5])
        >>> loss(torch.zeros(5, 2)).item()
        0.0
    """

    sigmas: Tensor

    def __init__(
        self, score: Callable[..., Tensor], sigmas: Sequence[float] | Tensor, *, weighting: LevelWeighting = "variance"
    ) -> None:
        super().__init__()
        if isinstance(weighting, str) and weighting not in ("variance", "uniform"):
            raise ValueError(f"weighting must be variance, uniform or a function of σ, but is {weighting!r}.")
        self.score = score
        self.register_buffer("sigmas", as_ladder(sigmas).clone())
        self.weighting = weighting

    def forward(
        self, batch: Float[Tensor, "rows ..."], context: Context = None, *, generator: Rng = None
    ) -> Float[Tensor, ""]:
        """The loss of a batch `(rows, *event)` of data.

        Raises:
            ValueError: an empty batch.
        """
        index = (spread_evenly(batch, generator) * len(self.sigmas)).long()
        sigma = self.sigmas[index.clamp(max=len(self.sigmas) - 1)].to(batch.dtype)
        eps = randn(batch.shape, generator, like=batch)
        std = align(sigma, batch)
        x = batch + std * eps
        s = self.score(x, sigma) if context is None else self.score(x, sigma, context)
        # λ(σ) ‖s + ε/σ‖² = λ(σ)/σ² ‖σs + ε‖², whose parts keep their size at every level.
        return mean_over_rows(self._relative_weight(sigma) * half_square(std * s + eps), owner=type(self).__name__)

    def _relative_weight(self, sigma: Tensor) -> Tensor:
        """λ(σ)/σ²."""
        if self.weighting == "variance":
            return torch.ones_like(sigma)
        weight = torch.ones_like(sigma) if self.weighting == "uniform" else self.weighting(sigma)
        return weight / sigma.square()
