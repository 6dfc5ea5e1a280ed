"""Base distributions: densities in closed form from which flows and reverse-time processes start."""

import abc
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from core.density import Context, ExactDensity, Nats, Values
from core.rng import Rng, for_all_rows, rand, randn
from core.shapes import align, as_float, fold_batch, sum_event

LOG_2PI = math.log(2 * math.pi)


class Base(ExactDensity, abc.ABC):
    """A closed-form density without context. Subclasses say the density of folded rows and how to draw them."""

    @abc.abstractmethod
    def _log_prob(self, x: Tensor) -> Tensor:
        """Log-density of `(rows, *event)`, `(rows,)`, nats."""

    @abc.abstractmethod
    def _rsample(self, shape: tuple[int, ...], generator: Rng) -> Tensor:
        """Draws `(*shape, *event)`, differentiable in the parameters where the base has any."""

    def log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> Nats:
        """Log-density in nats; `context` and `generator` are ignored.

        Raises:
            ValueError: the trailing dimensions of `x` are not the event shape.
        """
        rows, batch_shape = fold_batch(x, self.event_shape, owner=type(self).__name__)
        return self._log_prob(rows).reshape(batch_shape)

    def rsample_and_log_prob(
        self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None
    ) -> tuple[Values, Nats]:
        """Differentiable draws `(*shape, *event)` and their log-densities `(*shape,)`, nats."""
        x = self._rsample(tuple(shape), generator)
        return x, self.log_prob(x)

    def sample(self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None) -> Values:
        """Draws `(*shape, *event)` without gradient."""
        with torch.no_grad():
            return self._rsample(tuple(shape), generator)

    def _randn(self, shape: tuple[int, ...], generator: Rng) -> Tensor:
        # A generator for each row must see how many rows there are: one, of a single draw.
        drawn = randn((*(shape or (1,)), *self.event_shape), generator, like=self.anchor)
        return drawn.reshape(*shape, *self.event_shape)

    def _rand(self, shape: tuple[int, ...], generator: Rng) -> Tensor:
        drawn = rand((*(shape or (1,)), *self.event_shape), generator, like=self.anchor)
        return drawn.reshape(*shape, *self.event_shape)


class StandardNormal(Base):
    """log p(x) = -½ Σ xᵢ² - ½ D log 2π.

    Checked by tests/contracts/densities.py::matches_reference.

    Example:
        >>> StandardNormal(2).log_prob(torch.zeros(2)).item()  # -log 2π
        -1.8378770351409912
    """

    def _log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * sum_event(x.square() + LOG_2PI)

    def _rsample(self, shape: tuple[int, ...], generator: Rng) -> Tensor:
        return self._randn(shape, generator)


class DiagonalNormal(Base):
    """log p(x) = Σ [-½ ((xᵢ - locᵢ)/scaleᵢ)² - log scaleᵢ - ½ log 2π].

    Checked by tests/contracts/densities.py::matches_reference.

    Args:
        event_shape: shape of one event.
        loc: mean, broadcast to the event.
        scale: standard deviation, positive, broadcast to the event.
        learnable: whether mean and log-scale are parameters or fixed buffers.

    Raises:
        ValueError: a scale that is not positive.

    Example:
        >>> DiagonalNormal(1, scale=50.0, learnable=False).log_prob(torch.zeros(1)).item()  # -log 50 - ½ log 2π
        -4.83096170425415
    """

    loc: Tensor
    log_scale: Tensor

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        loc: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
        learnable: bool = True,
    ) -> None:
        super().__init__(event_shape)
        loc, scale = as_float(loc), as_float(scale)
        if not bool((scale > 0).all()):
            raise ValueError(f"DiagonalNormal needs a positive scale, but its smallest is {scale.min().item():g}.")
        dtype = torch.result_type(self.anchor, loc + scale)
        for name, value in (("loc", loc), ("log_scale", scale.log())):
            full = value.to(dtype).broadcast_to(self.event_shape).clone()
            if learnable:
                self.register_parameter(name, nn.Parameter(full))
            else:
                self.register_buffer(name, full)

    def _log_prob(self, x: Tensor) -> Tensor:
        z = (x - self.loc) * torch.exp(-self.log_scale)
        return -sum_event(0.5 * (z.square() + LOG_2PI) + self.log_scale)

    def _rsample(self, shape: tuple[int, ...], generator: Rng) -> Tensor:
        return self.loc + self.log_scale.exp() * self._randn(shape, generator)


class StandardLogistic(Base):
    """log p(x) = -Σ [softplus(xᵢ) + softplus(-xᵢ)], the base of NICE (Dinh et al., 2014, section 3.4).

    Checked by tests/contracts/densities.py::matches_reference.

    Example:
        >>> StandardLogistic(1).log_prob(torch.zeros(1)).item()  # log 1/4
        -1.3862943649291992
    """

    def _log_prob(self, x: Tensor) -> Tensor:
        return -sum_event(F.softplus(x) + F.softplus(-x))

    def _rsample(self, shape: tuple[int, ...], generator: Rng) -> Tensor:
        # rand includes 0 and excludes 1: half a step up keeps the logit finite and the law symmetric.
        u = self._rand(shape, generator)
        return torch.logit(u * (1 - torch.finfo(u.dtype).eps) + torch.finfo(u.dtype).eps / 2)


class StandardUniform(Base):
    """log p(x) = 0 on [0, 1)^D and -inf outside.

    Checked by tests/contracts/densities.py::matches_reference.

    Example:
        >>> StandardUniform(2).log_prob(torch.tensor([[0.5, 0.0], [0.5, 1.0]])).tolist()
        [0.0, -inf]
    """

    def _log_prob(self, x: Tensor) -> Tensor:
        inside = torch.where((x >= 0) & (x < 1), 0.0, -math.inf)
        return sum_event(torch.where(x.isnan(), math.nan, inside)).to(x.dtype)

    def _rsample(self, shape: tuple[int, ...], generator: Rng) -> Tensor:
        return self._rand(shape, generator)


class GaussianMixture(Base):
    """log p(x) = log Σ_k w_k N(x; μ_k, C_k), known in closed form under every linear noising process too.

    With C_k = Q_k diag(λ_k) Q_kᵀ, the law of scale·x + std·ε is the mixture of N(scale μ_k, scale² C_k + std² I), whose
    factors keep Q_k: log-density and score at every noise level cost two small products.

    Checked by tests/contracts/densities.py::matches_reference and tests/core/test_bases.py.

    Args:
        means: `(components, features)`.
        covariances: symmetric positive definite, `(components, features, features)`.
        weights: positive, `(components,)`; normalized to sum 1.

    Raises:
        ValueError: shapes that do not fit, a covariance that is not symmetric positive definite, a weight not positive.

    Example:
        >>> mixture = GaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1, 1), torch.tensor([0.5, 0.5]))
        >>> mixture.score(torch.tensor([[1.0]])).item()  # -(1 - tanh 1)
        -0.2384...
    """

    means: Tensor
    log_weights: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor

    def __init__(
        self,
        means: Float[Tensor, "components features"],
        covariances: Float[Tensor, "components features features"],
        weights: Float[Tensor, " components"],
    ) -> None:
        if means.ndim != 2:
            raise ValueError(
                f"GaussianMixture needs means (components, features), but their shape is {tuple(means.shape)}."
            )
        super().__init__(means.shape[1])
        expected = (*means.shape, means.shape[1]), means.shape[:1]
        if (covariances.shape, weights.shape) != expected:
            raise ValueError(
                f"GaussianMixture of means {tuple(means.shape)} needs covariances {tuple(expected[0])} and weights "
                f"{tuple(expected[1])}, but they are {tuple(covariances.shape)} and {tuple(weights.shape)}."
            )
        eigenvalues, eigenvectors = torch.linalg.eigh(covariances)
        if not torch.allclose(covariances, covariances.mT) or not bool((eigenvalues > 0).all()):
            raise ValueError(
                "GaussianMixture needs symmetric positive definite covariances, but the smallest eigenvalue found is "
                f"{eigenvalues.min().item():g}."
            )
        if not bool((weights > 0).all()):
            raise ValueError(f"GaussianMixture needs positive weights, but the smallest is {weights.min().item():g}.")
        self.register_buffer("means", means.clone())
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.register_buffer("eigenvalues", eigenvalues)
        self.register_buffer("eigenvectors", eigenvectors)
        self.register_buffer("anchor", torch.zeros((), dtype=means.dtype, device=means.device), persistent=False)

    def perturbed_log_prob(
        self, x: Float[Tensor, "rows features"], scale: Float[Tensor, "*rows"], std: Float[Tensor, "*rows"]
    ) -> Float[Tensor, " rows"]:
        """Log-density of scale·x₀ + std·ε at `x`, nats.

        Args:
            x: `(rows, features)`.
            scale: 0-dimensional or `(rows,)`.
            std: 0-dimensional or `(rows,)`, not negative.
        """
        whitened, variances = self._whiten(x, scale, std)
        return torch.logsumexp(self._joint(whitened, variances), -1)

    def perturbed_score(
        self, x: Float[Tensor, "rows features"], scale: Float[Tensor, "*rows"], std: Float[Tensor, "*rows"]
    ) -> Float[Tensor, "rows features"]:
        """Score ∇ log p of scale·x₀ + std·ε at `x`: -Σ_k r_k (scale² C_k + std² I)⁻¹ (x - scale μ_k)."""
        whitened, variances = self._whiten(x, scale, std)
        r = torch.softmax(self._joint(whitened, variances), -1).unsqueeze(-1)
        pull = r * whitened / variances
        return -torch.einsum("kdj,rkj->rd", self.eigenvectors.to(pull), pull)

    def score(self, x: Float[Tensor, "rows features"]) -> Float[Tensor, "rows features"]:
        """Score ∇ log p(x)."""
        return self.perturbed_score(x, torch.ones_like(self.anchor), torch.zeros_like(self.anchor))

    def _whiten(self, x: Tensor, scale: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Q_kᵀ(x - scale μ_k), `(rows, components, features)`, and the variances scale² λ_k + std² beside them."""
        x = x.unsqueeze(1)
        scale, std = align(scale, x), align(std, x)
        centred = x - scale * self.means
        centred = torch.einsum("kdj,rkd->rkj", self.eigenvectors.to(centred), centred)
        return centred, scale.square() * self.eigenvalues + std.square()

    def _joint(self, whitened: Tensor, variances: Tensor) -> Tensor:
        """log w_k N(x; k), `(rows, components)`."""
        volume = (variances.log() + LOG_2PI).sum(-1)  # once for all rows where they share a time
        return self.log_weights - 0.5 * ((whitened.square() / variances).sum(-1) + volume)

    def _log_prob(self, x: Tensor) -> Tensor:
        return self.perturbed_log_prob(x, torch.ones_like(self.anchor), torch.zeros_like(self.anchor))

    def _rsample(self, shape: tuple[int, ...], generator: Rng) -> Tensor:
        noise = self._randn(shape, generator)
        count = math.prod(shape)
        weights = self.log_weights.exp()
        one = for_all_rows(generator, owner="GaussianMixture")
        k = torch.multinomial(weights, max(count, 1), replacement=True, generator=one)[:count].reshape(shape)
        spread = self.eigenvalues[k].sqrt() * noise
        return self.means[k] + torch.einsum("...dj,...j->...d", self.eigenvectors[k], spread)
