import math
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cflows.preconditioning import preconditioned_score
from cflows.probability_flow import ODESolver, default_divergence, probability_flow_log_prob
from cflows.samplers.euler_maruyama import EulerMaruyama
from cflows.samplers.sampler import Sampler
from cflows.sde import SDE, VPSDE
from core.density import Context, DensityModel, LikelihoodEstimate, Nats, Values
from core.divergence import Divergence
from core.nets import FourierEmbedding, ModulatedMLP
from core.nets.mlp import join_context
from core.rng import Rng
from core.shapes import fold_batch, fold_context


class ScoreSDE(DensityModel):
    """A score network s(x, t) ≈ ∇ log p_t(x) under an SDE: likelihood by the probability-flow ODE, draws by a sampler.

    The network F enters so that F = 0 is the exact score of Gaussian data N(0, v I), and so that what F has to learn
    has unit variance at every noise level: with D = α² v + σ²,
    s(x, t) = -x/D + α √v/(σ √D) F(x/√D, λ(t)).

    References:
        Song et al., "Score-based generative modeling through stochastic differential equations", 2021.
        The preconditioning: Karras et al., "Elucidating the design space", 2022, table 1, written for any (α, σ).

    Checked by tests/contracts/densities.py and tests/cflows/test_score_sde.py.

    Args:
        event_shape: shape of one event; images are flattened by the default network.
        sde: the noising process; `VPSDE()` where omitted.
        hidden: widths of the default network, a residual MLP modulated by time and context.
        dropout: its dropout probability in training.
        context_features: width of the context, 0 for none.
        frequencies: Fourier features of the log-SNR.
        data_std: √v, standard deviation of the data that the model sees.
        net: another network, called as net(x, u, context) with u `(rows,)` in [-1, 1].
        t_min: time at which the density is taken, above 0.
        divergence: as in `ode_log_prob`.
        solver: ODE method and tolerances.
        error_factor: as in `ode_log_prob`; None skips the solver error.
        sampler: `EulerMaruyama()` where omitted.

    Raises:
        ValueError: t_min outside (0, 1) or data_std not positive.

    Example:
        >>> model = ScoreSDE(2)  # untrained: the standard normal
        >>> round(model.log_prob(torch.zeros(2)).item(), 3)
        -1.838
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        sde: SDE | None = None,
        hidden: Sequence[int] = (256, 256, 256),
        dropout: float = 0.0,
        context_features: int = 0,
        frequencies: int = 8,
        data_std: float = 1.0,
        net: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None,
        t_min: float = 1e-5,
        divergence: Divergence | None = None,
        solver: ODESolver | None = None,
        error_factor: float | None = 10.0,
        sampler: Sampler | None = None,
    ) -> None:
        super().__init__(event_shape)
        if not 0 < t_min < 1 or not data_std > 0:
            raise ValueError(f"ScoreSDE needs t_min within (0, 1) and data_std > 0, but has {t_min} and {data_std}.")
        self.sde = VPSDE() if sde is None else sde
        self.prior = self.sde.prior(self.event_shape)
        self.data_std = data_std
        self.t_min = t_min
        self.divergence = default_divergence(self.event_shape.numel()) if divergence is None else divergence
        self.solver = ODESolver() if solver is None else solver
        self.error_factor = error_factor
        self.sampler = EulerMaruyama() if sampler is None else sampler
        high, low = self.sde.log_snr(torch.tensor([t_min, 1.0], dtype=torch.float64)).tolist()
        self.log_snr_middle, self.log_snr_half_range = (high + low) / 2, (high - low) / 2
        self.net = net or _ScoreMLP(
            self.event_shape,
            hidden=hidden,
            dropout=dropout,
            context_features=context_features,
            frequencies=frequencies,
        )

    def score(
        self, x: Float[Tensor, "rows ..."], t: Float[Tensor, "*rows"], context: Context = None
    ) -> Float[Tensor, "rows ..."]:
        """s(x, t), like `x`; `t` is 0-dimensional or `(rows,)`, within [t_min, 1]."""
        scale, std = self.sde.marginal(t)
        u = ((self.sde.log_snr(t) - self.log_snr_middle) / self.log_snr_half_range).expand(len(x))
        return preconditioned_score(lambda y: self.net(y, u, context), x, scale, std, data_std=self.data_std)

    def forward(
        self, x: Float[Tensor, "rows ..."], t: Float[Tensor, "*rows"], context: Context = None
    ) -> Float[Tensor, "rows ..."]:
        """The score: the model is its own score network."""
        return self.score(x, t, context)

    def log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> Nats:
        """Log-density at t_min in nats, one solve."""
        return self._estimate(x, context, generator, error_factor=None).log_prob

    def estimate_log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> LikelihoodEstimate:
        """Log-density at t_min with the errors of probes, solver and truncation."""
        return self._estimate(x, context, generator, error_factor=self.error_factor)

    def sample(self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None) -> Values:
        """Draws `(*shape, *event)` by the sampler."""
        x_T = self.prior.sample((math.prod(shape),), generator=generator)
        folded = fold_context(context, torch.Size(shape))
        x = self.sampler(lambda x, t: self.score(x, t, folded), self.sde, x_T, generator=generator)
        return x.reshape(*shape, *self.event_shape)

    def _estimate(
        self, x: Tensor, context: Tensor | None, generator: Rng, *, error_factor: float | None
    ) -> LikelihoodEstimate:
        rows, batch_shape = fold_batch(x, self.event_shape, owner="ScoreSDE")
        folded = fold_context(context, batch_shape)
        estimate = probability_flow_log_prob(
            lambda x, t: self.score(x, t, folded),
            self.sde,
            rows,
            base=self.prior,
            divergence=self.divergence,
            t_min=self.t_min,
            error_factor=error_factor,
            generator=generator,
            **asdict(self.solver),
        )
        return estimate.reshape(batch_shape)


class _ScoreMLP(nn.Module):
    """Flattens the event, embeds u and the context, and applies a modulated residual MLP."""

    def __init__(
        self,
        event_shape: torch.Size,
        *,
        hidden: Sequence[int],
        dropout: float,
        context_features: int,
        frequencies: int,
    ) -> None:
        super().__init__()
        self.context_features = context_features
        self.embedding = FourierEmbedding(frequencies=frequencies)
        size = event_shape.numel()
        features = self.embedding.out_features + context_features
        self.mlp = ModulatedMLP(size, size, embedding_features=features, hidden=hidden, dropout=dropout)

    def forward(self, x: Tensor, u: Tensor, context: Tensor | None) -> Tensor:
        embedding = join_context(self.embedding(u), context, self.context_features)
        return self.mlp(x.flatten(1), embedding).reshape(x.shape)
