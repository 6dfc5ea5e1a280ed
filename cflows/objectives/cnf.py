"""Maximum likelihood of a continuous flow, with penalties that keep its ODE easy to solve."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cflows.models.continuous_flow import ContinuousFlow, conditioned
from cflows.objectives.rows import mean_over_rows
from cflows.ode.field import Field, Function, Solution, rows_of
from cflows.ode.solver import ADAMS, ADAPTIVE, FIXED, ODESolver
from core.density import Context
from core.divergence import Divergence, ExactDivergence, Hutchinson, value_and_vjp
from core.precision import outside_autocast
from core.rng import Rng
from core.shapes import sum_event

Gradient = Literal["direct", "adjoint"]
ADJOINT_METHODS = (*ADAPTIVE, *(method for method in FIXED if method not in ADAMS))


class Terms(NamedTuple):
    """What the loss is made of, nats a row, `(rows,)`.

    Attributes:
        negative_log_prob: -log p(x).
        kinetic: λ_K ∫ ‖v‖² dt.
        jacobian: λ_J ∫ ‖∂v/∂x‖_F² dt, or its estimate.
    """

    negative_log_prob: Float[Tensor, " rows"]
    kinetic: Float[Tensor, " rows"]
    jacobian: Float[Tensor, " rows"]


class RegularizedLikelihood(nn.Module):
    """L = E[-log p(x) + λ_K ∫₀¹ ‖v(x(t), t)‖² dt + λ_J ∫₀¹ ‖∂v/∂x (x(t), t)‖_F² dt], nats.

    The penalties are integrals along the solve of the likelihood. With a probe ε, E[ε εᵀ] = I, the product εᵀ ∂v/∂x
    that gives the trace, εᵀ (∂v/∂x) ε, gives the norm too: E ‖εᵀ ∂v/∂x‖² = tr(∂v/∂x (∂v/∂x)ᵀ) = ‖∂v/∂x‖_F². Each row
    keeps its probes for the whole solve.

    - `direct`: backpropagation through the steps of the solver, exact for what is computed; its memory grows with their
      number. A fixed grid, such as the default, costs the same at every step of the training.
    - `adjoint`: a second ODE, solved backwards, by torchdiffeq; its memory does not grow with the steps, its gradient
      is off by the solver error. The parameters' share stays out of its step control (the seminorm).

    References:
        Grathwohl et al., "FFJORD", 2019, algorithm 1. Finlay et al., "How to train your neural ODE: the world of
        Jacobian and kinetic regularization", 2020, algorithm 1: this loss divided by D, so that λ_K and λ_J are theirs
        (their code has bits for nats and half the kinetic energy).
        Chen et al., "Neural ordinary differential equations", 2018, algorithm 1 (the adjoint).
        Kidger, Chen, Lyons, "Hey, that's not an ODE: faster ODE adjoints via seminorms", 2021.

    In evaluation mode the loss is solved by the model's own solver. Training can learn to fool a coarse grid: its loss
    falls below the entropy of the data while that of evaluation rises. More steps or stronger penalties help.

    Checked by tests/cflows/test_cnf.py (terms in closed form, both gradients and finite differences).

    Args:
        model: the flow, such as `FFJORD`; the loss trains its velocity and its base.
        kinetic: λ_K.
        jacobian: λ_J.
        gradient: as above.
        divergence: of training, `ExactDivergence` or `Hutchinson`; exact below 8 dimensions and 1 Rademacher probe from
            there on where omitted.
        solver: of training; `rk4` in 8 steps where omitted. Adams' methods and `dopri5_per_sample` have no adjoint.

    Raises:
        ValueError: a negative penalty, an unknown gradient, another divergence, or a solver without an adjoint.

    Example:
        >>> from cflows import FFJORD
        >>> objective = RegularizedLikelihood(FFJORD(2), kinetic=0.01)
        >>> round(objective(torch.zeros(5, 2)).item(), 3)  # untrained: -log N(0; 0, I), and nothing moves
        1.838
    """

    def __init__(
        self,
        model: ContinuousFlow,
        *,
        kinetic: float = 0.0,
        jacobian: float = 0.0,
        gradient: Gradient = "direct",
        divergence: Divergence | None = None,
        solver: ODESolver | None = None,
    ) -> None:
        super().__init__()
        if kinetic < 0 or jacobian < 0:
            raise ValueError(f"RegularizedLikelihood takes penalties of 0 or more, not {kinetic=} and {jacobian=}.")
        if gradient not in get_args(Gradient):
            raise ValueError(
                f"RegularizedLikelihood's gradient is one of {', '.join(get_args(Gradient))}, not {gradient!r}."
            )
        self.model, self.kinetic, self.jacobian, self.gradient = model, kinetic, jacobian, gradient
        few = model.event_shape.numel() < 8
        self.divergence = divergence or (ExactDivergence() if few else Hutchinson(probes=1))
        if not isinstance(self.divergence, ExactDivergence | Hutchinson):
            raise ValueError(
                "RegularizedLikelihood trains with ExactDivergence or Hutchinson, whose products give the norm of the "
                f"Jacobian too, not with {type(self.divergence).__name__}."
            )
        self.solver = ODESolver(method="rk4", steps=8) if solver is None else solver
        if gradient == "adjoint" and self.solver.method not in ADJOINT_METHODS:
            raise ValueError(
                f"the adjoint is solved by one of {', '.join(ADJOINT_METHODS)}, but the method is "
                f"{self.solver.method!r}."
            )

    def forward(
        self, batch: Float[Tensor, "rows ..."], context: Context = None, *, generator: Rng = None
    ) -> Float[Tensor, ""]:
        """The loss of a batch `(rows, *event)`, nats; `generator` draws the probes.

        Raises:
            ValueError: an empty batch, or a tolerance below the dtype's own.
            RuntimeError: the step of an adaptive method vanishes.
        """
        terms = self.terms(batch, context, generator=generator)
        return mean_over_rows(torch.stack(terms).sum(0), owner=type(self).__name__)

    @outside_autocast
    def terms(self, batch: Float[Tensor, "rows ..."], context: Context = None, *, generator: Rng = None) -> Terms:
        """The parts of the loss of each row, nats."""
        field = PenalisedField(
            conditioned(self.model.velocity, context),
            _directions(self.divergence, batch, generator),
            weight=1.0 if self.divergence.exact else 1 / self.divergence.columns,
            kinetic=self.kinetic,
            jacobian=self.jacobian,
        )
        solution = self._solve(field, batch, context)
        trace, kinetic, jacobian = solution.integrals.unbind(1)
        return Terms(-self.model.base.log_prob(solution.x) - trace, kinetic, jacobian)

    def _solve(self, field: "PenalisedField", x: Tensor, context: Tensor | None) -> Solution:
        solver = self.solver if self.training else self.model.solver
        if self.gradient == "direct" or not self.training or len(x) == 0:
            return solver.solve(field, x, solver.grid(0.0, 1.0), columns=field.columns)
        given = [*self.model.parameters(), *([] if context is None else [context])]
        return adjoint_solve(field, x, self.solver, [p for p in given if p.requires_grad])


@dataclass(frozen=True, eq=False)
class PenalisedField(Field):
    """v(x, t) with the rates ∇·v, λ_K ‖v‖² and λ_J ‖∂v/∂x‖_F², from one call of v and one set of products.

    Attributes:
        velocity: v(x, t).
        directions: e, `(k, rows, *event)`: probes, or all unit vectors.
        weight: of each direction, so that weight · Σ e eᵀ is I, in the mean over probes.
        kinetic: λ_K.
        jacobian: λ_J.
    """

    velocity: Function
    directions: Tensor
    weight: float
    kinetic: float
    jacobian: float
    columns = 3

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Both at time t."""
        v, vjp = value_and_vjp(lambda y: self.velocity(y, t), x)
        products = vjp(self.directions)
        trace = self.weight * (products * self.directions).flatten(2).sum((0, 2))
        frobenius = self.weight * products.square().flatten(2).sum((0, 2))
        return v, torch.stack([trace, self.kinetic * sum_event(v.square()), self.jacobian * frobenius], 1)

    def slope(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t)."""
        return self.velocity(x, t)

    def rows(self, index: Tensor) -> "PenalisedField":
        """The same for some of the rows, each with its own directions."""
        return replace(self, velocity=rows_of(self.velocity, index), directions=self.directions[:, index])


def _directions(divergence: Divergence, x: Tensor, generator: Rng) -> Tensor:
    if not divergence.exact:
        return divergence.draw(x, generator)
    size = x.shape[1:].numel()
    units = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:])
    return units.expand(size, *x.shape)


def adjoint_solve(field: PenalisedField, x: Tensor, solver: ODESolver, parameters: list[Tensor]) -> Solution:
    """From t = 0 to 1 by torchdiffeq, with gradients in x and in the parameters by the adjoint ODE.

    Args:
        field: velocity and rates.
        x: where it starts, `(rows, *event)`.
        solver: one of `ADJOINT_METHODS`.
        parameters: what the velocity depends on.

    Raises:
        RuntimeError: the step of an adaptive method vanishes.
    """
    from torchdiffeq import odeint_adjoint  # it imports scipy, half as long as torch takes

    calls = 0

    def slopes(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return field(state[0], t)

    start = x, x.new_zeros(len(x), field.columns)
    options = {"step_size": 1 / solver.steps} if solver.fixed else {}
    try:
        places, integrals = odeint_adjoint(
            slopes, start, x.new_tensor([0.0, 1.0]), method=solver.method, rtol=solver.rtol, atol=solver.atol,
            options=options, adjoint_options={**options, "norm": "seminorm"}, adjoint_params=parameters,
        )  # fmt: skip
    except AssertionError as error:
        raise RuntimeError(f"{solver.method} stopped at rtol={solver.rtol:g}: {error}; loosen it.") from error
    nfe = torch.full((len(x),), calls, dtype=torch.long, device=x.device)
    return Solution(places[-1], integrals[-1], nfe)
