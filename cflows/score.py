"""Scores of densities: ∇ log p of any log-density by autograd, so that flows and energies serve as score functions."""

import abc
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.density import Context, DensityModel
from core.divergence import value_and_vjp

StaticScore = Callable[..., Tensor]  # score(x) or score(x, context), like x
LogDensity = Callable[..., Tensor]  # log_density(x, *conditions), `(rows,)` nats up to a constant


def conditioned(field: StaticScore, context: Context) -> Callable[[Tensor], Tensor]:
    """The score, or the log-density, as a function of x alone."""
    return field if context is None else lambda x: field(x, context)


class Conservative(abc.ABC):
    """A score that is a gradient: it knows its log-density, up to a constant."""

    @abc.abstractmethod
    def log_density(self, x: Tensor, *conditions: Tensor | None) -> Tensor:
        """log p̃(x), `(rows,)`, nats up to a constant."""


def log_density_and_score(
    log_density: LogDensity, x: Float[Tensor, "rows ..."], *conditions: Tensor | None
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows ..."]]:
    """log p̃(x) and ∇ₓ log p̃(x), for one evaluation and one product with its Jacobian.

    Both stay in the autograd graph where gradients are enabled; under `torch.no_grad()` no graph outlives the call.

    Args:
        log_density: log p̃, nats up to a constant; rows must not touch one another. Where it does not depend on x, or
            cuts its graph, the score is zero.
        x: `(rows, *event)`.
        conditions: handed on behind `x`: a context, a noise level.

    Raises:
        ValueError: log-densities of another shape than `(rows,)`.
        RuntimeError: under `torch.inference_mode()`, where there are no derivatives.
    """
    value, vjp = value_and_vjp(lambda y: log_density(y, *conditions), x)
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"a log-density of {len(x)} rows must have the shape ({len(x)},), but it is {tuple(value.shape)}."
        )
    return value, vjp(torch.ones_like(value)[None])[0]


class GradientScore(nn.Module, Conservative):
    """s(x) = ∇ₓ log p̃(x): the score of an unnormalized log-density, a conservative field.

    Takes any `DensityModel`, such as a trained flow, any module or any function that returns log-densities, and stands
    wherever a score network does; its parameters are those of what it is made of.

    References:
        Hyvärinen, "Estimation of non-normalized statistical models by score matching", 2005, eq. 2.

    Checked by tests/cflows/test_score.py.

    Args:
        density: a `DensityModel`, or log_density(x, *conditions) returning `(rows,)` nats up to a constant.

    Example:
        >>> from core import StandardNormal
        >>> GradientScore(StandardNormal(2))(torch.tensor([[1.0, -2.0]])).tolist()  # -x
        [[-1.0, 2.0]]
    """

    def __init__(self, density: DensityModel | LogDensity) -> None:
        super().__init__()
        self.density = density

    def log_density(self, x: Float[Tensor, "rows ..."], *conditions: Tensor | None) -> Float[Tensor, " rows"]:
        """log p̃(x), `(rows,)`, nats; up to a constant unless the density is normalized."""
        call = self.density.log_prob if isinstance(self.density, DensityModel) else self.density
        return call(x, *conditions)

    def forward(self, x: Float[Tensor, "rows ..."], *conditions: Tensor | None) -> Float[Tensor, "rows ..."]:
        """The score, like `x`; in the autograd graph where gradients are enabled.

        Raises:
            ValueError: log-densities of another shape than `(rows,)`.
            RuntimeError: under `torch.inference_mode()`, where there are no derivatives.
        """
        return log_density_and_score(self.log_density, x, *conditions)[1]
