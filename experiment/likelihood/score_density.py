"""The density of a score that was not trained here."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict

from torch import Tensor, nn

from cflows import SDE, ConditionalScore, EulerMaruyama, ODESolver, probability_flow_log_prob
from cflows.ode.log_prob import default_divergence
from core.density import Context, DensityModel, LikelihoodEstimate, Nats, Values
from core.divergence import Divergence
from core.rng import Rng
from core.shapes import fold_batch, fold_context


class ScoreDensity(DensityModel):
    """log p at t_min of any score under an SDE, by the probability-flow ODE.

    Args:
        event_shape: shape of one event.
        score: s(x, t), or s(x, t, context) where there is one.
        sde: the noising process.
        t_min: time at which the density is taken, above 0.
        divergence: as in `ode_log_prob`.
        solver: ODE method and tolerances.
        net: the network behind the score, to be moved along; None where it is no module.
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        score: Callable[..., Tensor],
        sde: SDE,
        t_min: float = 1e-5,
        divergence: Divergence | None = None,
        solver: ODESolver | None = None,
        net: nn.Module | None = None,
    ) -> None:
        super().__init__(event_shape)
        self.sde, self.t_min = sde, t_min
        self.prior = sde.prior(self.event_shape)
        self.divergence = default_divergence(self.event_shape.numel()) if divergence is None else divergence
        self.solver = ODESolver() if solver is None else solver
        self.error_factor: float | None = 10.0
        self.net = net
        self._score = score

    def score(self, x: Tensor, t: Tensor, context: Context = None) -> Tensor:
        """s(x, t), like `x`."""
        return self._score(x, t) if context is None else self._score(x, t, context.to(x))

    def log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> Nats:
        """Log-density at t_min in nats, one solve."""
        return self._estimate(x, context, generator, error_factor=None).log_prob

    def estimate_log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> LikelihoodEstimate:
        """Log-density at t_min with the errors of probes, solver and truncation."""
        return self._estimate(x, context, generator, error_factor=self.error_factor)

    def sample(self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None) -> Values:
        """Draws `(*shape, *event)` by Euler-Maruyama."""
        x_T = self.prior.sample((math.prod(shape),), generator=generator)
        sampler = EulerMaruyama(t_min=max(1e-3, self.t_min))
        x = sampler(self._conditioned(fold_context(context, x_T.shape[:1])), self.sde, x_T, generator=generator)
        return x.reshape(*shape, *self.event_shape)

    def _conditioned(self, context: Context) -> Callable[[Tensor, Tensor], Tensor]:
        return self._score if context is None else ConditionalScore(self._score, context.to(self.anchor))

    def _estimate(
        self, x: Tensor, context: Tensor | None, generator: Rng, *, error_factor: float | None
    ) -> LikelihoodEstimate:
        rows, batch_shape = fold_batch(x, self.event_shape, owner="the score")
        estimate = probability_flow_log_prob(
            self._conditioned(fold_context(context, batch_shape)),
            self.sde,
            rows.to(self.anchor),  # the precision of the network
            base=self.prior,
            divergence=self.divergence,
            t_min=self.t_min,
            error_factor=error_factor,
            generator=generator,
            **asdict(self.solver),
        )
        return estimate.reshape(batch_shape)
