"""The variational autoencoder: a bound on log p(x) = log ∫ p(x | z) p(z) dz by an amortized posterior."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.bases import StandardNormal
from core.density import Context, DensityModel, LikelihoodEstimate, Nats, Values
from core.nets import MLP
from core.nets.gated_conv import GatedConvDecoder, GatedConvEncoder
from core.precision import whole_numbers
from core.rng import Rng
from core.shapes import fold_batch, fold_context, vector_size
from discrete.conditionals import Conditional, GaussianConditional
from discrete.flow import Flow
from discrete.inference.posteriors import PosteriorName, amortized_posterior
from discrete.likelihoods import Bernoulli

LikelihoodName = Literal["bernoulli", "gaussian"]


class Terms(NamedTuple):
    """What a bound is made of, at draws z of the posterior, each `(samples, *batch)`, nats.

    Attributes:
        log_likelihood: log p(x | z).
        log_prior: log p(z).
        log_posterior: log q(z | x).
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor

    @property
    def log_weights(self) -> Tensor:
        """log p(x | z) + log p(z) - log q(z | x): its mean over draws is the ELBO, exp of it has the mean p(x)."""
        return self.log_likelihood + self.log_prior - self.log_posterior


class VAE(DensityModel):
    """log p(x) ≥ E[log (1/K) Σ_k p(x | z_k) p(z_k) / q(z_k | x)], z_k ~ q(z | x): the ELBO for K = 1.

    The encoder gives features h(x), which steer every part of the posterior flow q(z | h); the decoder gives the
    parameters of p(x | z), value by value. The bound is random: its mean lies below log p(x), rises with K and reaches
    log p(x) as K → ∞, or at K = 1, draw by draw, where q(z | x) = p(z | x).

    References:
        Kingma and Welling, "Auto-encoding variational Bayes", 2014, eq. 3 and 7; Rezende and Mohamed, "Variational
        inference with normalizing flows", 2015, eq. 15; Kingma et al., "Improving variational inference with inverse
        autoregressive flow", 2016, algorithm 1; Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders", 2016,
        eq. 8; the networks for images, van den Berg et al., "Sylvester normalizing flows", 2018, appendix A.

    Checked by tests/discrete/inference/test_vae.py.

    Args:
        event_shape: features of a vector, or (channels, height, width).
        latent: width of z.
        posterior: steps behind μ(h) + σ(h) ε, see `amortized_posterior`: `diagonal` for none, `planar`, `iaf`,
            `sylvester`; or a flow over z with the context h, which draws and scores in one pass.
        layers: number of these steps.
        posterior_hidden: widths of the networks of `iaf`.
        likelihood: `bernoulli`, for values 0 and 1; `gaussian`, with mean and variance of each value from the decoder;
            or a `Conditional` of one's own.
        hidden: widths of the hidden layers of encoder and, backwards, decoder; for images, channels of each level of
            gated convolutions. (300, 300) and (32, 64) where omitted.
        features: width of h.
        activation: of dense networks.
        context_features: width of a context y, 0 for none: the model is one of x given y.
        encoder: a network of one's own, called with x, as the likelihood rescales it, and y: h `(rows, features)`.
        decoder: a network of one's own, called with z and y: parameters `(rows, *event, parameters_per_value)`.
        prior: density of z; a standard normal where omitted.
        importance_samples: number K of draws inside the logarithm.
        draws: number of bounds that `log_prob` averages.

    Raises:
        ValueError: an event that is neither vector nor image, an unknown name, a count below 1, or a posterior or prior
            over another shape.

    Note:
        With values 0 and 1 the bound is on a probability mass: no log2 K is added for bits per dimension. A Gaussian
        likelihood has densities without bound where values are constant; its scales lie within exp(±7).
        All draws · importance_samples draws of a row are decoded at once. Where memory is short ask several times: the
        log-mean-exp of what `log_prob` gives is the same bound.

    Example:
        >>> vae = VAE(4, latent=2, posterior="iaf", layers=2, posterior_hidden=(8,), hidden=(8,), features=3)
        >>> rng = torch.Generator().manual_seed(0)
        >>> x = vae.sample((5,), generator=rng)
        >>> vae.estimate_log_prob(x, generator=rng).kind
        'bound'
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        latent: int = 64,
        posterior: PosteriorName | Flow = "diagonal",
        layers: int = 4,
        posterior_hidden: Sequence[int] = (320,),
        likelihood: LikelihoodName | Conditional = "bernoulli",
        hidden: Sequence[int] | None = None,
        features: int = 256,
        activation: str = "relu",
        context_features: int = 0,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        prior: DensityModel | None = None,
        importance_samples: int = 1,
        draws: int = 1,
    ) -> None:
        super().__init__(event_shape)
        if importance_samples < 1 or draws < 1:
            raise ValueError(
                f"VAE needs importance_samples and draws of 1 or more, but has {importance_samples} and {draws}."
            )
        self.likelihood = _likelihood(likelihood) if isinstance(likelihood, str) else likelihood
        self.importance_samples, self.draws = importance_samples, draws
        self.prior = StandardNormal(latent) if prior is None else prior
        if self.prior.event_shape != (latent,):
            raise ValueError(f"VAE's prior must be over ({latent},), but is over {tuple(self.prior.event_shape)}.")
        self.posterior = amortized_posterior(
            posterior, latent, features=features, layers=layers, hidden=posterior_hidden, activation=activation
        )
        shape, parameters = self.event_shape, self.likelihood.parameters_per_value
        if encoder is None:
            encoder = _encoder(shape, features, hidden, activation, context_features)
        if decoder is None:
            decoder = _decoder(shape, latent, parameters, hidden, activation, context_features)
        self.encoder, self.decoder = encoder, decoder

    def terms(self, x: Values, context: Context = None, *, samples: int = 1, generator: Rng = None) -> Terms:
        """log p(x | z), log p(z) and log q(z | x) at draws z ~ q(z | x), each `(samples, *batch)`, differentiable.

        Args:
            x: `(*batch, *event)`.
            context: y, broadcasts to `(*batch, context_features)`.
            samples: draws of each row.
            generator: draws the noise.

        Raises:
            ValueError: `x` does not end in the event shape, `context` does not broadcast to its batch, or a network of
                one's own that gives another shape.
        """
        rows, batch_shape = fold_batch(whole_numbers(x, like=self.anchor, owner="VAE"), self.event_shape, owner="VAE")
        y = fold_context(context, batch_shape)
        h = self.encoder(self.likelihood.rescale(rows), y)
        # Rows first: a generator for each row must find them.
        shape = (len(rows), samples)
        z, log_q = self.posterior.rsample_and_log_prob(shape, context=h[:, None], generator=generator)
        theta = self._decode(z.flatten(0, 1), None if y is None else y.repeat_interleave(samples, 0))
        repeated = rows[:, None].expand(*shape, *self.event_shape)
        log_values = self.likelihood.log_prob(repeated, theta.unflatten(0, shape))
        found = log_values.flatten(2).sum(2), self.prior.log_prob(z), log_q
        return Terms(*(term.T.reshape(samples, *batch_shape) for term in found))

    def log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> Nats:
        """The bound in nats, `(*batch,)`, random and differentiable."""
        return self._bounds(x, context, generator).mean(0)

    def estimate_log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> LikelihoodEstimate:
        """The bound, with its standard error over `draws`; None of a single one."""
        bounds = self._bounds(x, context, generator)
        error = None if self.draws == 1 else bounds.detach().std(0) / math.sqrt(self.draws)
        return replace(LikelihoodEstimate.exact(bounds.mean(0)), std_error=error, kind="bound")

    def sample(self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None) -> Values:
        """Draws x ~ p(x | z), z from the prior, `(*shape, *event)`, without gradient."""
        with torch.no_grad():
            z = self.prior.sample(shape, generator=generator).reshape(math.prod(shape), *self.prior.event_shape)
            theta = self._decode(z, fold_context(context, torch.Size(shape)))
            return self.likelihood.sample(theta, generator=generator).reshape(*shape, *self.event_shape)

    def _bounds(self, x: Tensor, context: Tensor | None, generator: Rng) -> Tensor:
        """Independent bounds, `(draws, *batch)`."""
        K = self.importance_samples
        terms = self.terms(x, context, samples=self.draws * K, generator=generator)
        return log_mean_exp(terms.log_weights.unflatten(0, (self.draws, K)), 1)

    def _decode(self, z: Tensor, y: Tensor | None) -> Tensor:
        """Parameters of every value, `(rows, *event, parameters)`."""
        theta = self.decoder(z, y)
        if theta.shape != (expected := (len(z), *self.event_shape, self.likelihood.parameters_per_value)):
            raise ValueError(f"VAE's decoder must give parameters {expected}, but gives {tuple(theta.shape)}.")
        return theta


class NegativeELBO(nn.Module):
    """L = -mean log (1/K) Σ_k p(x | z_k) [p(z_k)/q(z_k | x)]^β + β max(0, λ - mean log q/p), nats.

    With β = 1 and λ = 0 it is minus the bound of the VAE, and in evaluation mode it always is. For K = 1 the two terms
    are -E log p(x | z) + β max(λ, KL): while β grows from 0 to 1 the decoder learns to use z before the divergence
    from the prior costs its full price, and λ nats of it are free at all times.

    References:
        Bowman et al., "Generating sentences from a continuous space", 2016, section 3.1 (β); Kingma et al., "Improving
        variational inference with inverse autoregressive flow", 2016, appendix C.8 (λ, here with one group).

    Checked by tests/discrete/inference/test_vae.py.

    Args:
        model: the VAE.
        warmup_steps: losses in training mode until β = 1, n-th of them with β = n / warmup_steps; 0 for none.
        free_nats: λ.

    Raises:
        ValueError: a negative setting.
    """

    metric = "negative_elbo_nats"
    steps: Tensor

    def __init__(self, model: VAE, *, warmup_steps: int = 0, free_nats: float = 0.0) -> None:
        super().__init__()
        if warmup_steps < 0 or free_nats < 0:
            raise ValueError(f"NegativeELBO takes no negative setting, but has {warmup_steps=} and {free_nats=}.")
        self.model = model
        self.warmup_steps, self.free_nats = warmup_steps, free_nats
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, batch: Values, context: Context = None, *, generator: Rng = None) -> Float[Tensor, ""]:
        """The loss of a batch `(rows, *event)`, context `(rows, features)`."""
        if not self.training:
            return -self.model.log_prob(batch, context, generator=generator).mean()
        beta = self._next_beta()
        K, draws = self.model.importance_samples, self.model.draws
        terms = self.model.terms(batch, context, samples=draws * K, generator=generator)
        log_ratio = terms.log_posterior - terms.log_prior
        bounds = log_mean_exp((terms.log_likelihood - beta * log_ratio).unflatten(0, (draws, K)), 1)
        return beta * torch.relu(self.free_nats - log_ratio.mean()) - bounds.mean()

    def _next_beta(self) -> Tensor:
        self.steps += 1
        return (self.steps / max(self.warmup_steps, 1)).clamp(max=1.0)


def log_mean_exp(values: Tensor, dim: int) -> Tensor:
    """log of the mean of exp along a dimension."""
    return values.logsumexp(dim) - math.log(values.shape[dim])


def _likelihood(name: str) -> Conditional:
    if name == "bernoulli":
        return Bernoulli()
    if name == "gaussian":
        return GaussianConditional(log_scale_bound=7.0)
    raise ValueError(f"likelihood must be bernoulli, gaussian or a Conditional, but is {name!r}.")


class _Unflatten(nn.Module):
    """A network whose output takes the shape of the values with their parameters last."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.shape = network, shape

    def forward(self, z: Tensor, context: Tensor | None) -> Tensor:
        return self.network(z, context).unflatten(1, self.shape)


def _encoder(
    event_shape: torch.Size, features: int, hidden: Sequence[int] | None, activation: str, context_features: int
) -> nn.Module:
    if len(event_shape) == 3:
        widths = _widths(hidden, (32, 64))
        return GatedConvEncoder(event_shape, features, hidden=widths, context_features=context_features)
    size, widths = vector_size(event_shape, owner="VAE without an encoder of one's own"), _widths(hidden, (300, 300))
    return MLP(size, features, hidden=widths, activation=activation, context_features=context_features)


def _decoder(
    event_shape: torch.Size,
    latent: int,
    parameters: int,
    hidden: Sequence[int] | None,
    activation: str,
    context_features: int,
) -> nn.Module:
    if len(event_shape) == 3:
        widths = _widths(hidden, (32, 64))
        return GatedConvDecoder(latent, event_shape, parameters, hidden=widths, context_features=context_features)
    size = vector_size(event_shape, owner="VAE without a decoder of one's own")
    widths = _widths(hidden, (300, 300))[::-1]
    network = MLP(latent, size * parameters, hidden=widths, activation=activation, context_features=context_features)
    return _Unflatten(network, (size, parameters))


def _widths(hidden: Sequence[int] | None, default: tuple[int, ...]) -> tuple[int, ...]:
    return default if hidden is None else tuple(hidden)
