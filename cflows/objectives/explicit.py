from jaxtyping import Float
from torch import Tensor, nn

from cflows.objectives.rows import half_square, mean_over_rows
from cflows.score import StaticScore, conditioned
from core.density import Context
from core.rng import Rng


class ExplicitScoreMatching(nn.Module):
    """L = ½ E ‖s(x) - ∇ log p(x)‖², half the Fisher divergence to a density whose score is known.

    What the other objectives reach without that score; for closed forms and for distilling one model into another.

    References:
        Hyvärinen, "Estimation of non-normalized statistical models by score matching", 2005, eq. 2.

    Checked by tests/cflows/test_score_matching.py.

    Args:
        score: score(x) or score(x, context), the network.
        target: ∇ log p, called like the score, in closed form or `GradientScore` of a density; it gets no gradient, and
            moves to no device with the objective.

    Example:
        >>> import torch
        >>> loss = ExplicitScoreMatching(lambda x: -2 * x, lambda x: -x)
        >>> loss(torch.tensor([[1.0, 1.0]])).item()  # ½ ‖x‖²
        1.0
    """

    def __init__(self, score: StaticScore, target: StaticScore) -> None:
        super().__init__()
        self.score = score
        # Not a submodule: an optimiser over the objective must not find the parameters of the truth.
        self._target = (target,)

    def forward(
        self, batch: Float[Tensor, "rows ..."], context: Context = None, *, generator: Rng = None
    ) -> Float[Tensor, ""]:
        """The loss of a batch `(rows, *event)` of data; `generator` is ignored.

        Raises:
            ValueError: an empty batch.
        """
        truth = conditioned(self._target[0], context)(batch).detach()
        return mean_over_rows(half_square(conditioned(self.score, context)(batch) - truth), owner=type(self).__name__)
