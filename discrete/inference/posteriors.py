"""Amortized posteriors: flows q(z | h) that an encoder's features h steer from their base on."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from core.bases import StandardNormal
from core.nets.mlp import check_context
from core.rng import Rng
from core.shapes import sum_event
from discrete.bijection import Bijection, Context, Direction, Events, Mapped
from discrete.bijections.transformers import AffineTransformer
from discrete.flow import Flow
from discrete.models.iaf import IAF
from discrete.models.planar_flow import PlanarFlow
from discrete.models.sylvester_flow import SylvesterFlow

PosteriorName = Literal["diagonal", "planar", "iaf", "sylvester"]


class ConditionalDiagonal(Bijection):
    """ε = (z - μ(h)) / σ(h), log|det dε/dz| = -Σ log σ; μ and log σ = B tanh(a/B) linear in the context h, behind a.

    Its inverse z = μ + σ ε is the reparametrization of a diagonal normal.

    References:
        Kingma and Welling, "Auto-encoding variational Bayes", 2014, section 2.4.

    Checked by tests/contracts/bijections.py and tests/discrete/inference/test_vae.py.

    Args:
        event_shape: shape of one event z.
        context_features: width of h.
        log_scale_bound: B > 0, so that every σ lies within exp(±B).

    Raises:
        ValueError: a bound that is not positive.

    Example:
        >>> import torch
        >>> layer = ConditionalDiagonal(3, context_features=2)
        >>> epsilon, log_det = layer(torch.ones(4, 3), torch.zeros(4, 2))
        >>> epsilon.shape, log_det.shape
        (torch.Size([4, 3]), torch.Size([4]))
    """

    forward_direction = Direction(0)
    inverse_direction = Direction(0)

    def __init__(
        self, event_shape: int | Sequence[int], *, context_features: int, log_scale_bound: float = 7.0
    ) -> None:
        super().__init__(event_shape)
        self.transformer = AffineTransformer(log_scale_bound=log_scale_bound)
        self.heads = nn.Linear(context_features, 2 * self.event_shape.numel())

    def forward(self, x: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """ε and log|det dε/dz|."""
        epsilon, log_derivative = self.transformer.inverse(x.flatten(1), self._theta(context))
        return epsilon.unflatten(1, self.event_shape), sum_event(log_derivative)

    def inverse(self, z: Events, context: Context = None, *, generator: Rng = None) -> Mapped:
        """z = μ + σ ε and log|det dz/dε| = Σ log σ."""
        x, log_derivative = self.transformer.forward(z.flatten(1), self._theta(context))
        return x.unflatten(1, self.event_shape), sum_event(log_derivative)

    def _theta(self, context: Context) -> Tensor:
        """(a, μ) of each value, `(rows, values, 2)`."""
        check_context(context, self.heads.in_features)
        return self.heads(context).unflatten(1, (2, -1)).movedim(1, 2)


def amortized_posterior(
    name: PosteriorName | Flow,
    latent: int,
    *,
    features: int,
    layers: int = 4,
    hidden: Sequence[int] = (320,),
    activation: str = "relu",
) -> Flow:
    """q(z | h): z₀ = μ(h) + σ(h) ε, then steps that h steers too; draws and log q in one pass.

    - `diagonal`: no step.
    - `planar`: z ← z + û(h) tanh(w(h)ᵀz + b(h)).
    - `sylvester`: the same along several directions at once, as many as z has but 32 at most, by reflections.
    - `iaf`: gated masked autoregressive z ← σ_t ⊙ z + (1 - σ_t) ⊙ m_t with σ_t, m_t of (z, h), in alternating order, so
      that log q(z | h) = -Σ (½ ε² + ½ log 2π + log σ + Σ_t log σ_t).

    References:
        Rezende and Mohamed, "Variational inference with normalizing flows", 2015, algorithm 1 (planar). Kingma,
        Salimans, Jozefowicz, Chen, Sutskever, Welling, "Improving variational inference with inverse autoregressive
        flow", 2016, algorithm 1 (IAF). van den Berg, Hasenclever, Tomczak, Welling, "Sylvester normalizing flows for
        variational inference", 2018, section 4 (all of them, amortized).

    Checked by tests/discrete/inference/test_vae.py.

    Args:
        name: the steps, or a flow of one's own over `(latent,)` with context h.
        latent: width of z.
        features: width of h.
        layers: number of steps.
        hidden: widths of the networks of `iaf`.
        activation: of these networks.

    Raises:
        ValueError: an unknown name, a flow over another shape, or no step.
    """
    if isinstance(name, Flow):
        if name.event_shape != (latent,):
            raise ValueError(f"the posterior must be a flow over ({latent},), but is over {tuple(name.event_shape)}.")
        return name
    start = Flow(ConditionalDiagonal(latent, context_features=features), StandardNormal(latent))
    if name == "diagonal":
        return start
    if name == "planar":
        return PlanarFlow(latent, layers=layers, context_features=features, base=start)
    if name == "sylvester":
        return SylvesterFlow(
            latent, layers=layers, parametrization="householder", context_features=features, base=start
        )
    if name == "iaf":
        return IAF(
            latent,
            layers=layers,
            hidden=hidden,
            activation=activation,
            scale="gated",
            context_features=features,
            base=start,
        )
    raise ValueError(f"posterior must be diagonal, planar, iaf, sylvester or a Flow, but is {name!r}.")
