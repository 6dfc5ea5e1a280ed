"""Scores of rows that each come with a context, and the guidance that sharpens them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cflows.sde import Rows, Time


@dataclass(frozen=True, eq=False)
class ConditionalScore:
    """s(x, t | c): a score(x, t, context) whose row i keeps context i, as a score(x, t) for samplers.

    A sampler whose rows leave at different times, such as `AdaptiveSDE`, asks for the `rows` that are left.

    Checked by tests/cflows/test_guidance.py.

    Attributes:
        score: called as score(x, t, context), such as `ScoreSDE.score`.
        context: c, `(rows, features)`.

    Example:
        >>> score = ConditionalScore(lambda x, t, context: context - x, torch.tensor([[1.0], [2.0]]))
        >>> score.rows([1])(torch.zeros(1, 1), torch.tensor(0.5)).tolist()
        [[2.0]]
    """

    score: Callable[[Tensor, Tensor, Tensor], Tensor]
    context: Float[Tensor, "rows features"]

    def __call__(self, x: Rows, t: Time) -> Rows:
        """The score of each row, like `x`.

        Raises:
            ValueError: as many rows in `x` as contexts there are not.
        """
        if len(x) != len(self.context):
            raise ValueError(
                f"a score conditioned on {len(self.context)} contexts takes as many rows, but x has {len(x)}."
            )
        return self.score(x, t, self.context)

    def rows(self, index: Sequence[int] | Tensor) -> "ConditionalScore":
        """The same score for some of the rows."""
        return ConditionalScore(self.score, self.context[index if isinstance(index, Tensor) else list(index)])


def classifier_free(
    score: Callable[[Tensor, Tensor, Tensor], Tensor],
    context: Float[Tensor, "rows features"],
    *,
    guidance: float,
    null: Float[Tensor, " width"] | None = None,
) -> ConditionalScore:
    """s(x, t) = s(x, t | ∅) + w (s(x, t | c) - s(x, t | ∅)): w = 0 ignores the context, w = 1 takes it as it is.

    From w = 1 on it is the score of p_t(x | c) p_t(c | x)^(w-1): the class counts more than once. For w ≠ 0, 1 it is at
    no time but 0 the score of a noised density, so that what a sampler reaches is not p(x | c) p(c | x)^(w-1) exactly.

    References:
        Ho and Salimans, "Classifier-free diffusion guidance", 2022, eq. 6, whose w is w - 1 here.

    Checked by tests/cflows/test_guidance.py (classes that are Gaussians in closed form).

    Args:
        score: called as score(x, t, context), trained with contexts left out at random.
        context: c, one for each row of the x to come, `(rows, features)`.
        guidance: w.
        null: ∅, the context that stands for none, `(features,)`; zeros, no class of one-hot labels, where omitted.

    Returns:
        The guided score(x, t). An evaluation calls `score` once, with 2n rows for n rows of x, first those with their
        context; with n where w is 0 or 1.

    Raises:
        ValueError: a `null` of another width than the context.

    Example:
        >>> one_hot = torch.eye(2)
        >>> score = classifier_free(lambda x, t, c: c @ torch.tensor([[-1.0], [1.0]]) - x, one_hot, guidance=3.0)
        >>> score(torch.zeros(2, 1), torch.tensor(0.5)).tolist()
        [[-3.0], [3.0]]
    """
    empty = context.new_zeros(context.shape[1:]) if null is None else null.to(context)
    if empty.shape != context.shape[1:]:
        raise ValueError(
            f"null must be as wide as the context, {context.shape[1]} features, but has shape {tuple(empty.shape)}."
        )

    def guided(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        if guidance in (0, 1):
            return score(x, t, context if guidance else empty.expand_as(context))
        both = torch.cat([context, empty.expand_as(context)])
        conditional, unconditional = score(torch.cat([x, x]), torch.cat([t, t]) if t.ndim else t, both).chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    return ConditionalScore(guided, context)
