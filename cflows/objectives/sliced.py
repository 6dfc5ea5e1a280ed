from jaxtyping import Float
from torch import Tensor, nn

from cflows.objectives.rows import half_square, mean_over_rows
from cflows.score import StaticScore, conditioned
from core.density import Context
from core.divergence import Hutchinson, ProbeLaw
from core.rng import Rng


class SlicedScoreMatching(nn.Module):
    """L = E_x E_v[vᵀ ∇s v + ½ (vᵀ s)²], E[v vᵀ] = I: implicit score matching in random directions, one product each.

    With `variance_reduced` the second term is its mean ½ ‖s‖². The trace term is *added*: some lecture slides subtract
    it. All directions have E[v vᵀ] = I, so that the expectation is the loss of `ImplicitScoreMatching` whichever is
    taken; papers that take unit vectors have it divided by D.

    References:
        Song, Garg, Shi, Ermon, "Sliced score matching", 2019, eq. 8 and, variance-reduced, section 3.2.

    Checked by tests/cflows/test_score_matching.py.

    Args:
        score: score(x) or score(x, context), the network.
        projections: directions a row.
        distribution: `rademacher`, `gaussian` or `sphere` (of radius √D).
        variance_reduced: take ½ ‖s‖² for ½ (vᵀ s)².

    Note:
        A network with piecewise constant slope, such as one of ReLU, has no second derivative to be trained by.

    Raises:
        ValueError: fewer than one projection, or an unknown distribution.

    Example:
        >>> import torch
        >>> SlicedScoreMatching(lambda x: -x)(torch.tensor([[1.0, 1.0]])).item()  # ½ · 2 - 2: signs miss no diagonal
        -1.0
    """

    def __init__(
        self,
        score: StaticScore,
        *,
        projections: int = 1,
        distribution: ProbeLaw = "rademacher",
        variance_reduced: bool = True,
    ) -> None:
        super().__init__()
        self.score = score
        self.trace = Hutchinson(probes=projections, distribution=distribution)
        self.variance_reduced = variance_reduced

    def forward(
        self, batch: Float[Tensor, "rows ..."], context: Context = None, *, generator: Rng = None
    ) -> Float[Tensor, ""]:
        """The loss of a batch `(rows, *event)` of data.

        Raises:
            ValueError: an empty batch.
        """
        v = self.trace.draw(batch, generator)
        s, curvature = self.trace(conditioned(self.score, context), batch, v)
        projected = (v * s).flatten(2).sum(2)
        square = half_square(s) if self.variance_reduced else 0.5 * projected.square().mean(0)
        return mean_over_rows(curvature.mean(1) + square, owner=type(self).__name__)
