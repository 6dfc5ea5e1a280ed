"""Continuous-time denoising score matching."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from cflows.objectives.rows import mean_over_rows, spread_evenly
from cflows.objectives.weightings import LearnedWeighting, VarianceWeighting, Weighting
from cflows.sde import SDE
from core.density import Context
from core.rng import Rng, randn
from core.shapes import align


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
        weighting: where times are drawn and how much each counts; `VarianceWeighting()` where omitted. A
            `LearnedWeighting` learns in training mode and stands still in evaluation mode.
        t_min: smallest time, above 0, where the loss of a network stays finite.

    Example:
        >>> import torch
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
        u = spread_evenly(batch, generator)
        t, weight = self.weighting.times(u, self.sde, self.t_min)
        eps = randn(batch.shape, generator, like=batch)
        scale, std = (align(part, batch) for part in self.sde.marginal(t))
        x_t = scale * batch + std * eps
        s = self.score(x_t, t) if context is None else self.score(x_t, t, context)
        losses = (std * s + eps).square().flatten(1).mean(1)
        if self.training and isinstance(self.weighting, LearnedWeighting):
            self.weighting.observe(u, losses)
        return mean_over_rows(weight * losses, owner=type(self).__name__)
