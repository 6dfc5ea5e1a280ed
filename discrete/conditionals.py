"""Laws of one value whose parameters a network gives, normals and their mixtures, and draws from them in turn."""

import abc

import torch
from jaxtyping import Float
from torch import Tensor

from core.bases import LOG_2PI
from core.nets.masked import MaskedMLP
from core.rng import Rng, rand, randn
from discrete.bijections.mixture import MixtureTransformer
from discrete.bijections.transformers import AffineTransformer

Value = Float[Tensor, "*values"]
Parameters = Float[Tensor, "*values parameters"]


class Conditional(abc.ABC):
    """log p(x; θ) of one value x, each value on its own."""

    parameters_per_value: int

    @abc.abstractmethod
    def log_prob(self, x: Value, theta: Parameters) -> Value:
        """log p(x; θ) in nats.

        Args:
            x: values, `(...)`.
            theta: parameters θ, `(..., parameters_per_value)`.
        """

    @abc.abstractmethod
    def sample(self, theta: Parameters, *, generator: Rng = None) -> Value:
        """Draws `(...)` in the dtype of `theta`, without gradient."""

    @abc.abstractmethod
    def rescale(self, x: Value) -> Value:
        """What networks are fed of x."""


class GaussianConditional(Conditional):
    """log p(x; θ) = -½ z² - ½ log 2π + s with z = x exp(s) + t and s = B tanh(a/B): N(-t exp(-s), exp(-2s)).

    θ = (a, t) is that of the affine layer which takes x to a standard normal z.

    Checked by tests/discrete/test_made.py.

    Args:
        log_scale_bound: B > 0, so that every standard deviation lies within exp(±B).

    Raises:
        ValueError: a bound that is not positive.

    Example:
        >>> law = GaussianConditional(log_scale_bound=3.0)
        >>> law.log_prob(torch.zeros(1, 1), torch.zeros(1, 1, 2)).item()  # -½ log 2π
        -0.9189385175704956
    """

    parameters_per_value = 2

    def __init__(self, *, log_scale_bound: float) -> None:
        self.transformer = AffineTransformer(log_scale_bound=log_scale_bound)

    def log_prob(self, x: Value, theta: Parameters) -> Value:
        """log N(z; 0, 1) + s."""
        z, s = self.transformer.forward(x, theta)
        return -0.5 * (z.square() + LOG_2PI) + s

    def sample(self, theta: Parameters, *, generator: Rng = None) -> Value:
        """One normal a value."""
        with torch.no_grad():
            x, _ = self.transformer.inverse(_randn(theta, generator), theta)
        return x

    def rescale(self, x: Value) -> Value:
        """x itself."""
        return x


class MixtureConditional(Conditional):
    """log p(x; θ) = log Σ_k w_k N(x; μ_k, s_k²).

    θ is that of `MixtureTransformer`, which takes x to a standard normal; at θ = 0 the law is nearly standard normal.

    References:
        Uria, Murray, Larochelle, "RNADE: the real-valued neural autoregressive density-estimator", 2013.

    Checked by tests/discrete/test_made.py.

    Args:
        components: number of normals.
        log_scale_bound: B > 0, so that every scale lies within exp(±B) of its start.

    Raises:
        ValueError: no component, or a bound that is not positive.

    Example:
        >>> law = MixtureConditional(components=1, log_scale_bound=3.0)
        >>> law.log_prob(torch.zeros(1, 1), torch.zeros(1, 1, 3)).item()  # -½ log 2π
        -0.9189385175704956
    """

    def __init__(self, *, components: int, log_scale_bound: float) -> None:
        self.transformer = MixtureTransformer(components=components, log_scale_bound=log_scale_bound)
        self.parameters_per_value = self.transformer.parameters_per_feature

    def log_prob(self, x: Value, theta: Parameters) -> Value:
        """log Σ_k w_k N(x; μ_k, s_k²)."""
        mixture = self.transformer.mixture(theta)
        return mixture.log_densities(mixture.standardize(x)).logsumexp(0)

    def sample(self, theta: Parameters, *, generator: Rng = None) -> Value:
        """One uniform a value for the component, one normal for the value."""
        with torch.no_grad():
            mixture = self.transformer.mixture(theta)
            u = rand(theta.shape[:-1], generator, like=theta)
            # Rounding of the sum cannot lead past the last component.
            k = (u >= mixture.log_w.exp().cumsum(0)[:-1]).sum(0, keepdim=True)
            mu, log_s = mixture.mu.gather(0, k)[0], mixture.log_s.gather(0, k)[0]
            return mu + log_s.exp() * _randn(theta, generator)

    def rescale(self, x: Value) -> Value:
        """x itself."""
        return x


def draw_in_turn(
    network: MaskedMLP,
    conditional: Conditional,
    rows: int,
    context: Float[Tensor, "rows context"] | None,
    generator: Rng,
    *,
    mask: int = 0,
) -> Float[Tensor, "rows features"]:
    """Draws `(rows, features)` of Π_d p(x_d; θ_d(x_<d)) by one sweep of the network, in the order of the mask."""
    x = next(network.parameters()).new_empty(rows, network.features)

    def choose(feature: slice, theta: Tensor) -> Tensor:
        x[:, feature] = conditional.sample(theta, generator=generator)
        return conditional.rescale(x[:, feature])

    network.sweep(choose, rows, context, mask=mask)
    return x


def _randn(theta: Tensor, generator: Rng) -> Tensor:
    return randn(theta.shape[:-1], generator, like=theta)
