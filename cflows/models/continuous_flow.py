import abc
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cflows.guidance import ConditionalScore
from cflows.ode.field import Function, Plain
from cflows.ode.log_prob import VelocityAndDivergence, default_divergence, ode_log_prob
from cflows.ode.solver import PER_SAMPLE, ODESolver
from core.bases import Base, StandardNormal
from core.density import Context, LikelihoodEstimate, Nats, Values
from core.divergence import Divergence
from core.latents import LatentModel, sample_base
from core.precision import check_inputs
from core.rng import Rng
from core.shapes import fold_batch, fold_context


class ContinuousFlow(LatentModel, abc.ABC):
    """dx/dt = v(x, t) carries data at t = 0 to a base at t = 1: log p(x) = log p_base(x(1)) + ∫₀¹ ∇·v(x(t), t) dt.

    What the models share whose velocity is a network, however it is trained. Density and both directions are those of
    one solver; with `dopri5_per_sample` or a fixed grid no row depends on another.

    References:
        Chen et al., "Neural ordinary differential equations", 2018, eq. 8; Grathwohl et al., "FFJORD", 2019, eq. 7.

    Checked by tests/contracts/densities.py, tests/cflows/test_ffjord.py and tests/cflows/test_flow_matching.py.

    Args:
        event_shape: shape of one event.
        base: density at t = 1, without context; N(0, I) where omitted.
        divergence: as in `ode_log_prob`.
        solver: ODE method and tolerances; `dopri5_per_sample` where omitted.
        error_factor: as in `ode_log_prob`; None skips the solver error.

    Raises:
        ValueError: a base of other events.
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        base: Base | None = None,
        divergence: Divergence | None = None,
        solver: ODESolver | None = None,
        error_factor: float | None = 10.0,
    ) -> None:
        super().__init__(event_shape)
        self.base = StandardNormal(self.event_shape) if base is None else base
        if self.base.event_shape != self.event_shape:
            raise ValueError(
                f"{type(self).__name__} over {tuple(self.event_shape)} needs a base over the same events, but it is "
                f"over {tuple(self.base.event_shape)}."
            )
        self.divergence = default_divergence(self.event_shape.numel()) if divergence is None else divergence
        self.solver = ODESolver(method=PER_SAMPLE) if solver is None else solver
        self.error_factor = error_factor

    @abc.abstractmethod
    def velocity(
        self, x: Float[Tensor, "rows ..."], t: Float[Tensor, "*rows"], context: Context = None
    ) -> Float[Tensor, "rows ..."]:
        """v(x, t), like `x`; `t` is 0-dimensional or `(rows,)`, within [0, 1], context `(rows, features)`."""

    def forward(
        self, x: Float[Tensor, "rows ..."], t: Float[Tensor, "*rows"], context: Context = None
    ) -> Float[Tensor, "rows ..."]:
        """The velocity: the model is its own network."""
        return self.velocity(x, t, context)

    def log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> Nats:
        """Log-density in nats, one solve; `generator` draws the probes."""
        return self._estimate(x, context, generator, error_factor=None).log_prob

    def estimate_log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> LikelihoodEstimate:
        """Log-density with the errors of probes and solver; the solve ends at t = 0, so nothing is truncated."""
        estimate = self._estimate(x, context, generator, error_factor=self.error_factor)
        return replace(estimate, truncation=torch.zeros_like(estimate.log_prob))

    @property
    def latent_shape(self) -> torch.Size:
        """That of the events."""
        return self.event_shape

    def sample_latent(
        self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None, temperature: float = 1.0
    ) -> Values:
        """Draws of the base at t = 1, `(*shape, *event)`, times the temperature."""
        return sample_base(self.base, shape, context=None, generator=generator, temperature=temperature)

    def rsample_and_log_prob(
        self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None
    ) -> tuple[Values, Nats]:
        """Differentiable draws `(*shape, *event)` and their log-densities `(*shape,)`, nats, from one solve."""
        shape = torch.Size(shape)
        z, log_prob = self.base.rsample_and_log_prob((shape.numel(),), generator=generator)
        velocity = conditioned(self.velocity, fold_context(context, shape))
        field = VelocityAndDivergence(velocity, self.divergence, self.divergence.draw(z, generator))
        solution = self.solver.solve(field, z, self.solver.grid(1.0, 0.0), columns=self.divergence.columns)
        # Down from 1 the integral is that of log p(x) with the other sign.
        log_prob = log_prob - solution.integrals.mean(1)
        return solution.x.reshape(*shape, *self.event_shape), log_prob.reshape(shape)

    def encode(self, x: Values, context: Context = None, *, generator: Rng = None) -> Values:
        """The latent x(1) of x = x(0), like `x`."""
        return self._move(x, context, start=0.0, end=1.0)

    def decode(self, z: Values, context: Context = None, *, generator: Rng = None) -> Values:
        """The x(0) of a latent z = x(1), like `z`."""
        return self._move(z, context, start=1.0, end=0.0)

    def _move(self, x: Tensor, context: Tensor | None, *, start: float, end: float) -> Tensor:
        check_inputs(self, owner=type(self).__name__, x=x, context=context)
        rows, batch_shape = fold_batch(x, self.event_shape, owner=type(self).__name__)
        field = Plain(conditioned(self.velocity, fold_context(context, batch_shape)))
        return self.solver.solve(field, rows, self.solver.grid(start, end)).x.reshape(x.shape)

    def _estimate(
        self, x: Tensor, context: Tensor | None, generator: Rng, *, error_factor: float | None
    ) -> LikelihoodEstimate:
        check_inputs(self, owner=type(self).__name__, x=x, context=context)
        rows, batch_shape = fold_batch(x, self.event_shape, owner=type(self).__name__)
        estimate = ode_log_prob(
            conditioned(self.velocity, fold_context(context, batch_shape)),
            self.base,
            rows,
            divergence=self.divergence,
            error_factor=error_factor,
            generator=generator,
            **asdict(self.solver),
        )
        return estimate.reshape(batch_shape)


def conditioned(velocity: Function, context: Context) -> Function:
    """v(x, t) from v(x, t, context): a solver whose rows leave one by one may ask for the `rows` that are left."""
    return velocity if context is None else ConditionalScore(velocity, context)
