import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from cflows.guidance import ConditionalScore
from cflows.models.embedded_network import Architecture, EmbeddedNetwork
from cflows.ode.log_prob import default_divergence
from cflows.ode.solver import PER_SAMPLE, ODESolver
from cflows.parametrization import Parametrization, convert
from cflows.preconditioning import preconditioned_score
from cflows.probability_flow import probability_flow_log_prob
from cflows.samplers.euler_maruyama import EulerMaruyama
from cflows.samplers.sampler import Sampler
from cflows.sde import SDE, VPSDE
from core.density import Context, DensityModel, LikelihoodEstimate, Nats, Values
from core.divergence import Divergence
from core.precision import check_inputs
from core.rng import Rng
from core.shapes import fold_batch, fold_context


class ScoreSDE(DensityModel):
    """A score network s(x, t) ≈ ∇ log p_t(x) under an SDE: likelihood by the probability-flow ODE, draws by a sampler.

    The network F enters so that F = 0 is the exact score of Gaussian data N(0, v I), and so that what F has to learn
    has unit variance at every noise level: with D = α² v + σ²,
    s(x, t) = -x/D + α √v/(σ √D) F(x/√D, λ(t)).
    Under another `parametrization` F(x, λ(t)) is that prediction, of x as it is, and s the score that it stands for.

    References:
        Song et al., "Score-based generative modeling through stochastic differential equations", 2021.
        The preconditioning: Karras et al., "Elucidating the design space", 2022, table 1, written for any (α, σ).
        Other parametrizations: `cflows.parametrization.convert`.

    Checked by tests/contracts/densities.py, tests/cflows/test_score_sde.py and tests/cflows/test_parametrization.py.

    Args:
        event_shape: shape of one event; images are flattened by `mlp`.
        sde: the noising process; `VPSDE()` where omitted.
        network: `mlp`, residual and modulated by time and context, or `unet` for images, as in `EmbeddedNetwork`.
        hidden: widths of its blocks, or of its resolutions.
        depth: residual blocks a resolution, of `unet`.
        heads: heads of its attention among pixels, 0 for none.
        attention: resolutions with attention, of `unet`, 0 the finest; the coarsest alone where omitted.
        patch: side of the patches that `unet` sees as one pixel.
        dropout: its dropout probability in training.
        context_features: width of the context, 0 for none.
        frequencies: Fourier features of the log-SNR.
        parametrization: what the network gives: F of the preconditioned score, or `score`, `noise`, `data`, `velocity`.
        data_std: √v, standard deviation of the data that the model sees; of `preconditioned` alone.
        net: another network, called as net(x, u, context) with u `(rows,)` in [-1, 1].
        t_min: time at which the density is taken, above 0.
        divergence: as in `ode_log_prob`.
        solver: ODE method and tolerances; `dopri5_per_sample` where omitted.
        error_factor: as in `ode_log_prob`; None skips the solver error.
        sampler: `EulerMaruyama()` where omitted, down to t_min at least.

    Raises:
        ValueError: t_min outside (0, 1), data_std not positive, an unknown parametrization, or a sampler that goes on
            below t_min.

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
        network: Architecture = "mlp",
        hidden: Sequence[int] = (256, 256, 256),
        depth: int = 2,
        heads: int = 0,
        attention: Sequence[int] | None = None,
        patch: int = 1,
        dropout: float = 0.0,
        context_features: int = 0,
        frequencies: int = 8,
        parametrization: Literal["preconditioned"] | Parametrization = "preconditioned",
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
        known = ("preconditioned", *get_args(Parametrization))
        if parametrization not in known:
            raise ValueError(f"ScoreSDE's parametrization is one of {', '.join(known)}, not {parametrization!r}.")
        self.sde = VPSDE() if sde is None else sde
        self.prior = self.sde.prior(self.event_shape)
        self.parametrization, self.data_std = parametrization, data_std
        self.t_min = t_min
        self.divergence = default_divergence(self.event_shape.numel()) if divergence is None else divergence
        self.solver = ODESolver(method=PER_SAMPLE) if solver is None else solver
        self.error_factor = error_factor
        self.sampler = EulerMaruyama(t_min=max(1e-3, t_min)) if sampler is None else sampler
        if self.sampler.t_min < t_min:
            raise ValueError(
                f"ScoreSDE's score ends at t_min={t_min}, but its sampler goes on to t_min={self.sampler.t_min}."
            )
        high, low = self.sde.log_snr(torch.tensor([t_min, 1.0], dtype=torch.float64)).tolist()
        self.log_snr_middle, self.log_snr_half_range = (high + low) / 2, (high - low) / 2
        self.net = net or EmbeddedNetwork(
            self.event_shape,
            network=network,
            hidden=hidden,
            depth=depth,
            heads=heads,
            attention=attention,
            patch=patch,
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
        if self.parametrization == "preconditioned":
            return preconditioned_score(lambda y: self.net(y, u, context), x, scale, std, data_std=self.data_std)
        return convert(self.net(x, u, context), x, scale, std, source=self.parametrization, target="score")

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
        score = self.score if folded is None else ConditionalScore(self.score, folded)
        x = self.sampler(score, self.sde, x_T, generator=generator)
        return x.reshape(*shape, *self.event_shape)

    def _estimate(
        self, x: Tensor, context: Tensor | None, generator: Rng, *, error_factor: float | None
    ) -> LikelihoodEstimate:
        check_inputs(self, owner="ScoreSDE", x=x, context=context)
        rows, batch_shape = fold_batch(x, self.event_shape, owner="ScoreSDE")
        folded = fold_context(context, batch_shape)
        estimate = probability_flow_log_prob(
            self.score if folded is None else ConditionalScore(self.score, folded),
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
