"""Laws of one whole number 0..K-1 whose parameters a network gives: what autoregressive models of integers end in."""

import abc
import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from core.rng import Rng, rand
from discrete.bijections.transformers import soft_bound
from discrete.conditionals import Conditional

Whole = Float[Tensor, "*values"]  # whole numbers as floats
Parameters = Float[Tensor, "*values parameters"]
LikelihoodName = Literal["mixture", "categorical"]


class Likelihood(Conditional, abc.ABC):
    """log P(k; θ) of one whole number k in 0..K-1, each value on its own.

    Args:
        bins: number K of levels, 2 or more.

    Raises:
        ValueError: fewer than two bins.
    """

    def __init__(self, *, bins: int) -> None:
        if bins < 2:
            raise ValueError(f"{type(self).__name__} needs 2 bins or more, but has bins={bins}.")
        self.bins = bins

    @abc.abstractmethod
    def _log_mass(self, k: Tensor, theta: Tensor) -> Tensor:
        """log P(k; θ) of a k within 0..K-1."""

    def log_prob(self, k: Whole, theta: Parameters) -> Whole:
        """log P(k; θ) in nats, -inf where k is no whole number within 0..K-1, NaN where it is NaN.

        Args:
            k: whole numbers as floats, `(...)`.
            theta: parameters θ, `(..., parameters_per_value)`.
        """
        supported = self.supports(k)
        log_mass = self._log_mass(torch.where(supported, k, 0.0), theta)
        return torch.where(supported, log_mass, torch.where(k.isnan(), math.nan, -math.inf))

    def supports(self, k: Whole) -> Bool[Tensor, "*values"]:
        """Whether k is a whole number within 0..K-1."""
        return (k >= 0) & (k <= self.bins - 1) & (k == k.floor())

    def rescale(self, k: Whole) -> Whole:
        """2k/(K-1) - 1 in [-1, 1], what networks are fed; 0 for a k of no mass, which may be infinite."""
        return torch.where(self.supports(k), 2 * k / (self.bins - 1) - 1, 0.0)


class Bernoulli(Likelihood):
    """P(1; θ) = σ(θ), P(0; θ) = σ(-θ).

    References:
        Germain, Gregor, Murray, Larochelle, "MADE: masked autoencoder for distribution estimation", 2015, eq. 3.

    Checked by tests/discrete/test_made.py.

    Example:
        >>> Bernoulli().log_prob(torch.tensor([0.0, 1.0, 2.0]), torch.zeros(3, 1)).exp()
        tensor([0.5000, 0.5000, 0.0000])
    """

    parameters_per_value = 1

    def __init__(self) -> None:
        super().__init__(bins=2)

    def sample(self, theta: Parameters, *, generator: Rng = None) -> Whole:
        """One uniform per value."""
        with torch.no_grad():
            return (_uniform(theta, 1, generator) < theta.sigmoid())[..., 0].to(theta.dtype)

    def _log_mass(self, k: Tensor, theta: Tensor) -> Tensor:
        return F.logsigmoid((2 * k - 1) * theta[..., 0])


class Categorical(Likelihood):
    """P(k; θ) = softmax(θ)_k: any law of K levels, which knows nothing of their order.

    References:
        van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel recurrent neural networks", 2016, section 2.2.

    Checked by tests/discrete/test_likelihoods.py.

    Args:
        bins: number K of levels, 2 or more; θ holds K logits.

    Example:
        >>> Categorical(bins=4).log_prob(torch.tensor([0.0, 4.0]), torch.zeros(2, 4)).exp()
        tensor([0.2500, 0.0000])
    """

    def __init__(self, *, bins: int) -> None:
        super().__init__(bins=bins)
        self.parameters_per_value = bins

    def sample(self, theta: Parameters, *, generator: Rng = None) -> Whole:
        """One uniform per value, through the inverse of the distribution function."""
        with torch.no_grad():
            return _invert(theta.softmax(-1), _uniform(theta, 1, generator)).to(theta.dtype)

    def _log_mass(self, k: Tensor, theta: Tensor) -> Tensor:
        return theta.log_softmax(-1).gather(-1, k.long()[..., None])[..., 0]


class DiscretizedLogisticMixture(Likelihood):
    """P(k; θ) = Σ_j π_j [F_j(k + ½) - F_j(k - ½)], F_j(y) = σ((y - m_j) t_j), F_j(-½) = 0, F_j(K - ½) = 1.

    On values v = 2k/(K-1) - 1 in [-1, 1] component j is a logistic law of mean μ_j and log-scale s_j, counted here in
    levels, so that neighbouring bins share their edge to the bit: m = (K-1)(μ+1)/2, t = 2 exp(-s)/(K-1). The ends take
    the tails. No difference of sigmoids is formed:

        log [F(k + ½) - F(k - ½)] = log σ((k + ½ - m) t) + log σ(-(k - ½ - m) t) + log(1 - exp(-t)),

    without the first term at k = K-1, the second at 0 and the third at both.

    References:
        Salimans, Karpathy, Chen, Kingma, "PixelCNN++", 2017, eq. 2.

    Checked by tests/discrete/test_likelihoods.py.

    Args:
        bins: number K of levels, 2 or more.
        components: number of logistics; θ holds as many logits of π, means μ and log-scales before their bound.

    Raises:
        ValueError: fewer than two bins, or no component.

    Note:
        Log-scales are s = B tanh(a/B), B = 3 + log(K-1): the narrowest logistic gives the bin around its mean all mass
        but 4e-9, the widest is flat. Draws come from uniforms of θ's precision: a tail below 1e-7 is coarse in float32.

    Example:
        >>> law = DiscretizedLogisticMixture(bins=3, components=1)
        >>> masses = law.log_prob(torch.arange(3.0), torch.zeros(3, 3)).exp()
        >>> masses  # σ(-½), σ(½) - σ(-½), σ(-½)
        tensor([0.3775, 0.2449, 0.3775])
    """

    def __init__(self, *, bins: int, components: int) -> None:
        super().__init__(bins=bins)
        if components < 1:
            raise ValueError(f"DiscretizedLogisticMixture needs 1 component or more, but has components={components}.")
        self.parameters_per_value = 3 * components
        self.log_scale_bound = 3 + math.log(bins - 1)

    def sample(self, theta: Parameters, *, generator: Rng = None) -> Whole:
        """Two uniforms per value: a component, then its logistic, rounded to the nearest level."""
        with torch.no_grad():
            logits, m, t = self._unpack(theta)
            u = _uniform(theta, 2, generator)
            j = _invert(logits.softmax(-1), u[..., :1])[..., None]
            y = m.gather(-1, j) + u[..., 1:].logit() / t.gather(-1, j)
            return y[..., 0].round().clamp(0, self.bins - 1)  # the ends take the tails

    def _log_mass(self, k: Tensor, theta: Tensor) -> Tensor:
        logits, m, t = self._unpack(theta)
        k = k[..., None]
        inner_left, inner_right = k > 0, k < self.bins - 1
        below = torch.where(inner_right, F.logsigmoid((k + 0.5 - m) * t), 0.0)
        above = torch.where(inner_left, F.logsigmoid((m - (k - 0.5)) * t), 0.0)
        between = torch.where(inner_left & inner_right, torch.log(-torch.expm1(-t)), 0.0)
        return torch.logsumexp(logits.log_softmax(-1) + below + above + between, -1)

    def _unpack(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of π, means in levels and inverse scales per level, each `(..., components)`."""
        logits, mu, a = theta.chunk(3, -1)
        t = 2 * torch.exp(-soft_bound(a, self.log_scale_bound)) / (self.bins - 1)
        return logits, (self.bins - 1) * (mu + 1) / 2, t


def build_likelihood(name: str, *, bins: int, components: int) -> Likelihood:
    """Likelihood by name; `components` counts for the mixture alone.

    Raises:
        ValueError: a name that is not known.
    """
    if name not in ("mixture", "categorical"):
        raise ValueError(f"likelihood must be mixture or categorical, but is {name!r}.")
    if name == "categorical":
        return Categorical(bins=bins)
    return DiscretizedLogisticMixture(bins=bins, components=components)


def _uniform(theta: Tensor, count: int, generator: Rng) -> Tensor:
    """Uniforms `(..., count)`."""
    return rand((*theta.shape[:-1], count), generator, like=theta)


def _invert(masses: Tensor, u: Tensor) -> Tensor:
    """Index of the class whose share of [0, 1) holds u `(..., 1)`; rounding of the sum cannot lead past the last."""
    return (u >= masses.cumsum(-1)[..., :-1]).sum(-1)
