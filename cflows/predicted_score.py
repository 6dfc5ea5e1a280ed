from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from cflows.ode.field import rows_of
from cflows.parametrization import Parametrization, convert
from cflows.sde import SDE, Rows

TimeShape = Literal["rows", "scalar"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedScore:
    """s(x, t) of a network of one's own that predicts the score, the noise, the data or a velocity.

    The network is called as net(x, t), or net(x, t, context) where there is one, with t within [0, 1], 0 the data.

    References:
        As of `cflows.parametrization.convert`.

    Checked by tests/cflows/test_predicted_score.py.

    Attributes:
        net: the network.
        sde: the noising process that it was trained with.
        prediction: what it gives: `score`, `noise`, `data` or `velocity`, as of `convert`.
        time: how it takes t: `rows`, always `(rows,)`, or `scalar`, 0-dimensional.

    Raises:
        ValueError: an unknown prediction; when called, a prediction of another shape than x, or times that differ by
            row for a network that takes one.

    Example:
        The noise in N(0, 1) data under VP, where x_t is N(0, 1) as well: ε = σ x, so that s = -x.

        >>> import torch
        >>> from cflows import VPSDE
        >>> sde = VPSDE()
        >>> score = PredictedScore(net=lambda x, t: sde.marginal(t)[1][:, None] * x, sde=sde, prediction="noise")
        >>> score(torch.tensor([[2.0]]), torch.tensor(0.5)).tolist()
        [[-2.0]]
    """

    net: Callable[..., Tensor]
    sde: SDE
    prediction: Parametrization = "score"
    time: TimeShape = "rows"

    def __call__(
        self, x: Rows, t: Float[Tensor, "*rows"], context: Float[Tensor, "rows features"] | None = None
    ) -> Rows:
        """The score, like `x`; t is 0-dimensional or `(rows,)`."""
        if self.time == "scalar" and t.ndim:
            raise ValueError(
                "the network takes a 0-dimensional time, but each row has its own: choose a method other than "
                "dopri5_per_sample, or let the network take t of shape (rows,)."
            )
        u = t.expand(len(x)) if self.time == "rows" else t
        value = self.net(x, u) if context is None else self.net(x, u, context)
        if value.shape != x.shape:
            raise ValueError(
                f"the network's {self.prediction} must have the shape {tuple(x.shape)} of x, but has "
                f"{tuple(value.shape)}."
            )
        return convert(value, x, *self.sde.marginal(t), source=self.prediction, target="score")

    def rows(self, index: Tensor) -> "PredictedScore":
        """The same score for some of the rows."""
        return replace(self, net=rows_of(self.net, index))
