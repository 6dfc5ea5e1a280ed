"""Continuous-time denoising score matching and how it weighs the noise levels."""

import abc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cflows.objectives.rows import mean_over_rows, spread_evenly
from cflows.sde import SDE
from core.density import Context
from core.rng import Rng, randn
from core.shapes import align


class Weighting(abc.ABC):
    """Where times are drawn and how much each counts: E_t[w(t) ‖σ s + ε‖²/D] under its own law of t."""

    @abc.abstractmethod
    def times(self, u: Float[Tensor, " rows"], sde: SDE, t_min: float) -> tuple[Tensor, Tensor]:
        """Times and weights, each `(rows,)`, from u uniform on [0, 1)."""


@dataclass(frozen=True, kw_only=True)
class VarianceWeighting(Weighting):
    """t uniform on [t_min, 1], w = 1: λ(t) = σ(t)² on the score, the loss of Song et al. (2021), eq. 7."""

    def times(self, u: Float[Tensor, " rows"], sde: SDE, t_min: float) -> tuple[Tensor, Tensor]:
        """t = t_min + (1 - t_min) u, w = 1."""
        return t_min + (1 - t_min) * u, torch.ones_like(u)


@dataclass(frozen=True, kw_only=True)
class LikelihoodWeighting(Weighting):
    """t uniform in log-SNR between its ends, w = ½ (λ(t_min) - λ(1)): the integral of ½ g² ‖s - ∇ log p‖² over t.

    That integral bounds KL(p_data ‖ p_SDE), p_SDE the law of the reverse SDE, up to the prior's mismatch; the density
    of the probability-flow ODE, which `ScoreSDE.log_prob` returns, is close to it but not bounded by it. Since
    g² = -σ² dλ/dt, drawing t uniformly in λ is exactly the importance sampling that makes every time count alike. In
    nats per dimension, up to a constant.

    References:
        Song, Durkan, Murray, Ermon, "Maximum likelihood training of score-based diffusion models", 2021, theorem 1, §5.
        Kingma et al., "Variational diffusion models", 2021, eq. 17.

    Checked by tests/cflows/test_denoising.py.
    """

    def times(self, u: Float[Tensor, " rows"], sde: SDE, t_min: float) -> tuple[Tensor, Tensor]:
        """t with log-SNR λ(t_min) + u (λ(1) - λ(t_min)), constant w."""
        high, low = sde.log_snr(u.new_tensor([t_min, 1.0]))
        t = sde.time(high + u * (low - high)).clamp(t_min, 1.0)
        return t, (0.5 * (high - low)).expand_as(u)


class DenoisingScoreMatching(nn.Module):
    """L = E_t E_x0 E_ε [w(t) ‖σ(t) s(α(t) x_0 + σ(t) ε, t) + ε‖²] / D, the weighted denoising loss per dimension.

    Its minimiser is the score of p_t at every t, since ∇ log p(x_t | x_0) = -ε/σ. Times are spread evenly over the
    batch (one common random offset), which takes most of the noise out of the loss.

    References:
        Vincent, "A connection between score matching and denoising autoencoders", 2011, eq. 11.
        Song et al., 2021, eq. 7. Even times: Kingma et al., "Variational diffusion models", 2021, app. I.1.

    Checked by tests/cflows/test_denoising.py (minimum and minimiser on Gaussian data in closed form).

    Args:
        score: score(x, t) or score(x, t, context), a network.
        sde: the noising process.
        weighting: `VarianceWeighting()` where omitted, or `LikelihoodWeighting()`.
        t_min: smallest time, above 0, where the loss of a network stays finite.

    Example:
        >>> from cflows import VPSDE
        >>> loss = DenoisingScoreMatching(lambda x, t: torch.zeros_like(x), VPSDE())
        >>> round(loss(torch.zeros(10_000, 2), generator=torch.Generator().manual_seed(0)).item(), 1)  # E ‖ε‖²/D
        1.0
    """

    def __init__(
        self, score: Callable[..., Tensor], sde: SDE, *, weighting: Weighting | None = None, t_min: float = 1e-5
    ) -> None:
        super().__init__()
        if not 0 < t_min < 1:
            raise ValueError(f"DenoisingScoreMatching needs t_min within (0, 1), but it is {t_min}.")
        self.score = score
        self.sde = sde
        self.weighting = VarianceWeighting() if weighting is None else weighting
        self.t_min = t_min

    def forward(
        self, batch: Float[Tensor, "rows ..."], context: Context = None, *, generator: Rng = None
    ) -> Float[Tensor, ""]:
        """The loss of a batch `(rows, *event)` of data.

        Raises:
            ValueError: an empty batch.
        """
        t, weight = self.weighting.times(spread_evenly(batch, generator), self.sde, self.t_min)
        eps = randn(batch.shape, generator, like=batch)
        scale, std = (align(part, batch) for part in self.sde.marginal(t))
        x_t = scale * batch + std * eps
        s = self.score(x_t, t) if context is None else self.score(x_t, t, context)
        return mean_over_rows(weight * (std * s + eps).square().flatten(1).mean(1), owner=type(self).__name__)
