"""Score matching in random directions by finite differences: no second derivatives of the network."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cflows.objectives.rows import mean_over_rows
from cflows.score import Conservative, StaticScore, conditioned
from core.density import Context
from core.divergence import Field, Hutchinson, ProbeLaw
from core.rng import Rng


class FiniteDifferenceScoreMatching(nn.Module):
    """L = E_x E_v[vᵀ(s(x + δv) - s(x - δv))/(2δ) + ½ (vᵀ (s(x + δv) + s(x - δv))/2)²], E[v vᵀ] = I.

    Sliced score matching up to O(δ²), for two evaluations a direction and a plain backward pass. For the score of a
    log-density, `GradientScore` or `EnergyModel`, both terms come from three values of log p̃ itself,
    [log p̃(x + δv) - 2 log p̃(x) + log p̃(x - δv)]/δ² + ½ ([log p̃(x + δv) - log p̃(x - δv)]/(2δ))².

    References:
        Pang, Xu, Li, Song, Ermon, Zhu, "Efficient learning of generative models via finite-difference score matching",
        2020, section 3.1 (log-densities) and section 4 (scores); their step is δ‖v‖.

    Checked by tests/cflows/test_score_matching.py.

    Args:
        score: score(x) or score(x, context), the network; without dropout, whose noise would be divided by δ.
        delta: step δ > 0 along v; the error of the loss falls as δ², rounding grows as 1/δ (scores), 1/δ² (densities):
            in float32 and 784 dimensions 0.02 nats a row of a log-density at 0.05, 0.5 at 0.01.
        projections: directions a row.
        distribution: `rademacher`, `gaussian` or `sphere` (of radius √D).

    Raises:
        ValueError: a step that is not positive, fewer than one projection, or an unknown distribution.

    Example:
        >>> FiniteDifferenceScoreMatching(lambda x: -x)(torch.zeros(1, 2)).item()  # -2: exact for a linear score
        -2.0
    """

    def __init__(
        self,
        score: StaticScore,
        *,
        delta: float = 0.05,
        projections: int = 1,
        distribution: ProbeLaw = "rademacher",
    ) -> None:
        super().__init__()
        if not delta > 0:
            raise ValueError(f"FiniteDifferenceScoreMatching needs delta > 0, but it is {delta}.")
        self.score = score
        self.delta = delta
        self.directions = Hutchinson(probes=projections, distribution=distribution)

    def forward(
        self, batch: Float[Tensor, "rows ..."], context: Context = None, *, generator: Rng = None
    ) -> Float[Tensor, ""]:
        """The loss of a batch `(rows, *event)` of data.

        Raises:
            ValueError: an empty batch.
        """
        v = self.directions.draw(batch, generator)
        if isinstance(self.score, Conservative):
            losses = self._along_log_density(conditioned(self.score.log_density, context), batch, v)
        else:
            losses = self._along_score(conditioned(self.score, context), batch, v)
        return mean_over_rows(torch.stack(losses).mean(0), owner=type(self).__name__)

    def _along_score(self, score: Field, x: Tensor, v: Tensor) -> list[Tensor]:
        """The loss of each row, direction by direction."""
        losses = []
        for direction in v:
            ahead, behind = ((direction * score(x + step * direction)).flatten(1).sum(1) for step in self._steps)
            losses.append((ahead - behind) / (2 * self.delta) + 0.5 * ((ahead + behind) / 2).square())
        return losses

    def _along_log_density(self, log_density: Field, x: Tensor, v: Tensor) -> list[Tensor]:
        """The same from values of log p̃, that in the middle shared by all directions."""
        here, losses = log_density(x), []
        for direction in v:
            ahead, behind = (log_density(x + step * direction) for step in self._steps)
            slope = (ahead - behind) / (2 * self.delta)
            losses.append((ahead - 2 * here + behind) / self.delta**2 + 0.5 * slope.square())
        return losses

    @property
    def _steps(self) -> tuple[float, float]:
        return self.delta, -self.delta
