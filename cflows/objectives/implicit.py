from jaxtyping import Float
from torch import Tensor, nn

from cflows.objectives.rows import half_square, mean_over_rows
from cflows.score import StaticScore, conditioned
from core.density import Context
from core.divergence import Divergence, ExactDivergence
from core.rng import Rng


class ImplicitScoreMatching(nn.Module):
    """L = E[½ ‖s(x)‖² + tr ∇s(x)], explicit score matching up to the constant ½ E ‖∇ log p‖².

    By partial integration, for a score that p takes to zero at infinity. On a Gaussian a linear score s = -A x has its
    minimum at A = Σ⁻¹, where the loss is -½ tr Σ⁻¹. The exact trace takes D vector-Jacobian products, batched.

    References:
        Hyvärinen, 2005, theorem 1 and eq. 4.

    Checked by tests/cflows/test_score_matching.py.

    Args:
        score: score(x) or score(x, context), the network.
        divergence: how the trace is taken; `ExactDivergence()` where omitted.

    Note:
        A network with piecewise constant slope, such as one of ReLU, has no second derivative to be trained by.

    Example:
        >>> import torch
        >>> ImplicitScoreMatching(lambda x: -x)(torch.tensor([[1.0, 1.0]])).item()  # ½ · 2 - 2
        -1.0
    """

    def __init__(self, score: StaticScore, *, divergence: Divergence | None = None) -> None:
        super().__init__()
        self.score = score
        self.divergence = ExactDivergence() if divergence is None else divergence

    def forward(
        self, batch: Float[Tensor, "rows ..."], context: Context = None, *, generator: Rng = None
    ) -> Float[Tensor, ""]:
        """The loss of a batch `(rows, *event)` of data.

        Raises:
            ValueError: an empty batch.
        """
        probes = self.divergence.draw(batch, generator)
        s, trace = self.divergence(conditioned(self.score, context), batch, probes)
        return mean_over_rows(half_square(s) + trace.mean(1), owner=type(self).__name__)
