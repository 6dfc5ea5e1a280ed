"""The fully visible Boltzmann machine, and objectives that fit it without its normalizing constant."""

import abc
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cflows.objectives.rows import mean_over_rows
from cflows.samplers.sampler import Callback
from core.density import Context, ExactDensity, Nats, Values
from core.precision import whole_numbers
from core.rng import Rng, for_all_rows, rand
from core.shapes import as_float, fold_batch

MOST_SPINS = 20  # 2²⁰ log-densities take 8 MiB in float64


class BoltzmannMachine(ExactDensity):
    """p(y) = exp(½ yᵀWy + bᵀy)/Z, Z = Σ_y exp(½ yᵀWy + bᵀy), over spins y in {-1, +1}ⁿ.

    W is symmetric with a zero diagonal, one parameter for each pair; ½ counts each pair once. A mass in nats, exact
    for 20 spins or fewer, where Z is summed: the states of two halves u, v of y interact through uᵀ W_uv v alone, so
    that one matrix product gives all 2ⁿ log-densities. Beyond, `log_density`, `conditional_logits` and `gibbs` go on,
    and with them the objectives `ContrastiveDivergence`, `PseudoLikelihood` and `RatioMatching`.

    References:
        Ackley, Hinton, Sejnowski, "A learning algorithm for Boltzmann machines", 1985.
        Geman and Geman, "Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of images", 1984.

    Checked by tests/cflows/test_boltzmann_machine.py.

    Args:
        event_shape: shape of one event of n spins, flattened in row-major order for W and b.
        bias: whether b is learned; it is zero otherwise.
        W: couplings to start from, `(n, n)`; zero where omitted, independent fair coins.

    Raises:
        ValueError: couplings of another shape, not symmetric or with a diagonal that is not zero.

    Note:
        Values that are not -1 or +1 have log-mass -inf, NaN where one is NaN.

    Example:
        >>> model = BoltzmannMachine(2, W=torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        >>> model.log_normalizer().item()  # log(2e + 2/e)
        1.8200...
        >>> model.log_prob(torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 0.0]])).exp()
        tensor([0.4404, 0.0596, 0.0000], grad_fn=<ExpBackward0>)
    """

    b: Tensor

    def __init__(self, event_shape: int | Sequence[int], *, bias: bool = False, W: Tensor | None = None) -> None:
        super().__init__(event_shape)
        self.n = self.event_shape.numel()
        start = torch.zeros(self.n, self.n) if W is None else _symmetric(as_float(W.detach()), self.n)
        self.pairs = nn.Buffer(torch.triu_indices(self.n, self.n, 1, device=start.device), persistent=False)
        self.couplings = nn.Parameter(start[tuple(self.pairs)])
        b = start.new_zeros(self.n)
        self.b = nn.Parameter(b) if bias else nn.Buffer(b, persistent=False)

    @property
    def W(self) -> Float[Tensor, "n n"]:  # noqa: N802 (the letter of the formula)
        """Couplings, `(n, n)`: symmetric, zero on the diagonal, in the autograd graph."""
        upper = self.couplings.new_zeros(self.n, self.n).index_put(tuple(self.pairs), self.couplings)
        return upper + upper.T

    def log_density(self, y: Values) -> Nats:
        """½ yᵀWy + bᵀy = log p(y) + log Z in nats, `(*batch,)`, for any n; -inf where a value is no spin.

        Raises:
            ValueError: `y` does not end in the event shape.
        """
        rows, batch_shape = self._rows(y)
        spin = rows.abs() == 1
        outside = torch.where(spin, 0.0, torch.where(rows.isnan(), math.nan, -math.inf)).sum(1)
        return (_log_density(torch.where(spin, rows, 1.0), self.W, self.b) + outside).reshape(batch_shape)

    def log_normalizer(self) -> Float[Tensor, ""]:
        """log Z in nats; its gradient in a coupling is the model's moment E[yᵢ yⱼ].

        Raises:
            ValueError: more than 20 spins.
        """
        return self._log_densities().logsumexp(0)

    def log_prob(self, y: Values, context: Context = None, *, generator: Rng = None) -> Nats:
        """Log-mass in nats, `(*batch,)`, -inf where a value is no spin; `context` and `generator` are ignored.

        Raises:
            ValueError: more than 20 spins, or `y` does not end in the event shape.
        """
        return self.log_density(y) - self.log_normalizer()

    def sample(self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None) -> Values:
        """Independent draws `(*shape, *event)` without gradient, exact, through the inverse distribution function.

        Raises:
            ValueError: more than 20 spins, where `gibbs` draws.
        """
        with torch.no_grad():
            # In float32 small masses would vanish beside sums near 1.
            below = self._log_densities().double().softmax(0).cumsum(0)[:-1]
            u = rand((math.prod(shape),), generator, like=below)
            states = torch.searchsorted(below, u, right=True)
            return _spins(states, self.n).to(self.b.dtype).reshape(*shape, *self.event_shape)

    def conditional_logits(self, y: Values) -> Values:
        """log p(yᵢ = +1 | y₋ᵢ)/p(yᵢ = -1 | y₋ᵢ) = 2 ((Wy)ᵢ + bᵢ) in nats, `(*batch, *event)`, for any n.

        Raises:
            ValueError: `y` does not end in the event shape.
        """
        return (2 * (self._rows(y)[0] @ self.W + self.b)).reshape(y.shape)

    @torch.no_grad()
    def gibbs(self, y: Values, *, sweeps: int, generator: Rng = None, callback: Callback | None = None) -> Values:
        """Gibbs chains: spin after spin in their order, each drawn given the others as they are by then; for any n.

        Args:
            y: where the chains start, `(*batch, *event)`, each event a chain of its own; the chains end like it.
            sweeps: how often every spin is drawn; each sweep keeps p.
            generator: draws the uniforms.
            callback: called with (sweep, y) after each sweep, such as a `Trajectory`.

        Raises:
            ValueError: no sweeps, or `y` does not end in the event shape.
        """
        if sweeps < 1:
            raise ValueError(f"gibbs needs 1 sweep or more, but has sweeps={sweeps}.")
        fields = list(zip(self.W, self.b, strict=True))
        spins = self._rows(y)[0].T.clone(memory_format=torch.contiguous_format)  # a spin of all chains lies together
        for sweep in range(sweeps):
            u = rand(spins.shape, for_all_rows(generator, owner="gibbs"), like=spins)
            for i, (w, b) in enumerate(fields):
                spins[i] = torch.where(u[i] < torch.sigmoid(2 * (w @ spins + b)), 1.0, -1.0)
            if callback is not None:
                callback(sweep, spins.T.clone().reshape(y.shape))
        return spins.T.reshape(y.shape)

    def _rows(self, y: Values) -> tuple[Float[Tensor, "rows n"], torch.Size]:
        """Events as vectors in the dtype of the model, and the batch shape."""
        owner = type(self).__name__
        rows, batch_shape = fold_batch(whole_numbers(y, like=self.b, owner=owner), self.event_shape, owner=owner)
        return rows.flatten(1), batch_shape

    def _log_densities(self) -> Float[Tensor, " states"]:
        """½ yᵀWy + bᵀy of all 2ⁿ states, in the order of `_spins`."""
        if self.n > MOST_SPINS:
            raise ValueError(
                f"BoltzmannMachine sums over all 2ⁿ states for n = {MOST_SPINS} spins or fewer, but has n = {self.n}: "
                "log_density goes without log Z, and gibbs draws."
            )
        k, W, b = self.n // 2, self.W, self.b
        u, v = (_spins(torch.arange(2**m, device=b.device), m).to(b.dtype) for m in (k, self.n - k))
        within = _log_density(u, W[:k, :k], b[:k])[:, None] + _log_density(v, W[k:, k:], b[k:])
        return (within + u @ W[:k, k:] @ v.T).flatten()


class ContrastiveDivergence(nn.Module):
    """L = mean log p̃(y⁻) - mean log p̃(y): its gradient in a coupling is -(⟨yᵢ yⱼ⟩ over data - ⟨yᵢ yⱼ⟩ over y⁻).

    With y⁻ from the model, that is the gradient of -E log p. Here y⁻ comes from `sweeps` of Gibbs sampling, held fixed
    in the gradient, that start at the data (CD) or go on where the last call left them (persistent, PCD). At the law
    of the data both have zero expected gradient, since a sweep keeps it. The value of L is no likelihood.

    References:
        Hinton, "Training products of experts by minimizing contrastive divergence", 2002 (CD).
        Tieleman, "Training restricted Boltzmann machines using approximations to the likelihood gradient", 2008 (PCD).

    Checked by tests/cflows/test_boltzmann_machine.py.

    Args:
        model: the Boltzmann machine.
        sweeps: Gibbs sweeps a call.
        persistent: whether chains go on from call to call, in training mode; in evaluation mode they stay.
        chains: number of persistent chains, a buffer of that many events.
        generator: draws where persistent chains start, independent fair coins.

    Example:
        >>> objective = ContrastiveDivergence(BoltzmannMachine(3))
        >>> objective(torch.ones(1, 3)).item()  # no couplings yet
        0.0
    """

    chains: Tensor | None

    def __init__(
        self,
        model: BoltzmannMachine,
        *,
        sweeps: int = 1,
        persistent: bool = False,
        chains: int = 100,
        generator: Rng = None,
    ) -> None:
        super().__init__()
        self.model, self.sweeps = model, sweeps
        size, device = (chains, *model.event_shape), model.b.device
        one = for_all_rows(generator, owner="ContrastiveDivergence")
        coins = torch.randint(2, size, generator=one, device=device) if persistent else None
        self.register_buffer("chains", None if coins is None else (2 * coins - 1).to(model.b))

    def forward(self, batch: Values, context: Context = None, *, generator: Rng = None) -> Float[Tensor, ""]:
        """The surrogate of a batch `(rows, *event)` of spins; `context` is ignored.

        Raises:
            ValueError: an empty batch, no chains or no sweeps.
        """
        start = batch if self.chains is None else self.chains
        negative = self.model.gibbs(start, sweeps=self.sweeps, generator=generator)
        if self.chains is not None and self.training:
            self.chains.copy_(negative)
        data, model = (mean_over_rows(self.model.log_density(y), owner=type(self).__name__) for y in (batch, negative))
        return model - data


class _ConditionalScore(nn.Module, abc.ABC):
    """L = E Σᵢ l(log p(yᵢ | y₋ᵢ)/p(-yᵢ | y₋ᵢ)): only conditionals of single spins, in which Z cancels."""

    def __init__(self, model: BoltzmannMachine) -> None:
        super().__init__()
        self.model = model

    @abc.abstractmethod
    def _loss(self, log_odds: Tensor) -> Tensor:
        """l of each spin, like `log_odds`."""

    def forward(self, batch: Values, context: Context = None, *, generator: Rng = None) -> Float[Tensor, ""]:
        """The loss of a batch `(rows, *event)`, NaN where a value is no spin; `context`, `generator` are ignored.

        Raises:
            ValueError: an empty batch.
        """
        spins = torch.where(batch.abs() == 1, batch, math.nan)
        each = self._loss(spins * self.model.conditional_logits(spins))
        return mean_over_rows(each.flatten(1).sum(1), owner=type(self).__name__)


class PseudoLikelihood(_ConditionalScore):
    """L = -E Σᵢ log p(yᵢ | y₋ᵢ) = E Σᵢ log(1 + exp(-2 yᵢ ((Wy)ᵢ + bᵢ))): n logistic regressions that share W; no Z.

    References:
        Besag, "Statistical analysis of non-lattice data", 1975.
        Hyvärinen, "Consistency of pseudolikelihood estimation of fully visible Boltzmann machines", 2006.

    Checked by tests/cflows/test_boltzmann_machine.py.

    Args:
        model: the Boltzmann machine.

    Example:
        >>> PseudoLikelihood(BoltzmannMachine(3))(torch.ones(1, 3)).item()  # 3 log 2
        2.0794...
    """

    def _loss(self, log_odds: Tensor) -> Tensor:
        return -F.logsigmoid(log_odds)


class RatioMatching(_ConditionalScore):
    """L = E Σᵢ (1 - p(yᵢ | y₋ᵢ))² = E Σᵢ σ(-2 yᵢ ((Wy)ᵢ + bᵢ))²: score matching for spins; no Z.

    Ratios of p under one turned spin take the place of derivatives of log p. Up to a constant L is the squared
    distance of conditionals, E Σᵢ (p(yᵢ | y₋ᵢ) - p_data(yᵢ | y₋ᵢ))².

    References:
        Hyvärinen, "Some extensions of score matching", 2007, ratio matching.

    Checked by tests/cflows/test_boltzmann_machine.py.

    Args:
        model: the Boltzmann machine.

    Example:
        >>> RatioMatching(BoltzmannMachine(3))(torch.ones(1, 3)).item()  # 3 · ¼
        0.75
    """

    def _loss(self, log_odds: Tensor) -> Tensor:
        return torch.sigmoid(-log_odds).square()


def _log_density(y: Float[Tensor, "rows k"], W: Float[Tensor, "k k"], b: Float[Tensor, " k"]) -> Float[Tensor, " rows"]:
    return (y * (0.5 * y @ W + b)).sum(1)


def _spins(states: Int[Tensor, " rows"], n: int) -> Int[Tensor, "rows n"]:
    """The binary digits of numbers 0..2ⁿ-1, most significant first, -1 for 0."""
    places = torch.arange(n - 1, -1, -1, device=states.device)
    return 2 * ((states[:, None] >> places) & 1) - 1


def _symmetric(W: Tensor, n: int) -> Tensor:
    """The couplings as they are, checked."""
    if W.shape != (n, n) or not torch.equal(W, W.T) or bool(W.diagonal().count_nonzero()):
        raise ValueError(f"W must be symmetric, ({n}, {n}), with a zero diagonal, but is {W.tolist()}.")
    return W
