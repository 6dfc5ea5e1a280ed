"""A mixture of any densities, its weights by expectation maximization, and one density at one context."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.density import Context, DensityModel, LikelihoodEstimate, Nats, Values, weakest
from core.rng import Rng, RowGenerators, rand, with_same_draws
from core.shapes import fold_context


class MixtureOfDensities(DensityModel):
    """log p(x | c) = log Σ_k w_k p_k(x | c), of parts of either side, closed, solved or bounds.

    With responsibilities r_k = w_k p_k(x)/p(x) an error e_k of log p_k moves log p by Σ_k r_k e_k to first order. All
    parts draw the same, dequantization and probes alike, so their errors go together: the standard error is at most
    Σ_k r_k s_k, by the triangle inequality of standard deviations, and that is what is given, not a sum in quadrature,
    which independent errors would have. Solver errors add in the same way, truncations with their signs. The kind is
    the weakest of the parts': a mixture of bounds is one, as E log Σ_k w_k p_k(x + u) ≤ log Σ_k w_k P_k(x).

    References:
        McLachlan and Peel, "Finite mixture models", 2000, section 1.4.

    Checked by tests/contracts/densities.py and tests/core/test_mixture.py.

    Args:
        parts: densities over one event shape, one or more; contexts go to all of them.
        weights: not negative, `(parts,)`, normalized to sum 1; equal where omitted. See `fit_weights`.

    Raises:
        ValueError: no part, parts over different event shapes, or weights that are none.

    Note:
        Noise of the trace in the parts pushes log p up by ½ Var_k(e_k) under r, of second order, beside its error.
        Without a generator each part draws noise of its own: a bound as well, but no longer the same for all.

    Example:
        >>> from core import DiagonalNormal, StandardNormal
        >>> mixture = MixtureOfDensities([StandardNormal(1), DiagonalNormal(1, loc=9.0)], torch.tensor([3.0, 1.0]))
        >>> round(mixture.log_prob(torch.zeros(1)).item(), 4)  # log ¾ - ½ log 2π
        -1.2066
    """

    log_weights: Tensor

    def __init__(self, parts: Sequence[DensityModel], weights: Float[Tensor, " parts"] | None = None) -> None:
        shapes = [tuple(part.event_shape) for part in parts]
        if not shapes or len(set(shapes)) > 1:
            raise ValueError(f"MixtureOfDensities needs parts over one event shape, but they are over {shapes}.")
        super().__init__(parts[0].event_shape)
        w = torch.ones(len(shapes)) if weights is None else weights
        if w.shape != (len(shapes),) or not bool((w >= 0).all()) or not 0 < w.sum() < math.inf:
            raise ValueError(
                f"MixtureOfDensities of {len(shapes)} parts needs as many weights, none negative and one above 0, but "
                f"they are {w.tolist()}."
            )
        self.parts = nn.ModuleList(parts)
        self.register_buffer("log_weights", (w / w.sum()).log().to(self.anchor.dtype))

    def log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> Nats:
        """Log-density in nats, `(*batch,)`."""
        return self.log_joint(x, context, generator=generator).logsumexp(-1)

    def log_joint(self, x: Values, context: Context = None, *, generator: Rng = None) -> Float[Tensor, "*batch parts"]:
        """log w_k p_k(x | context) in nats; its softmax over the parts are the responsibilities p(k | x)."""
        calls = [lambda part=part: part.log_prob(x, context, generator=generator) for part in self.parts]
        return torch.stack(with_same_draws(calls, generator), -1) + self.log_weights

    def estimate_log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> LikelihoodEstimate:
        """Log-density with the errors of the parts, weighted by their responsibilities; calls of vector fields add up.

        An error that a part does not have counts as 0, and is None where none has it.
        """
        calls = [lambda part=part: part.estimate_log_prob(x, context, generator=generator) for part in self.parts]
        parts: list[LikelihoodEstimate] = with_same_draws(calls, generator)
        joint = torch.stack([part.log_prob for part in parts], -1) + self.log_weights
        log_prob = joint.logsumexp(-1)
        r = torch.where(joint == -math.inf, 0.0, (joint - log_prob[..., None]).exp())
        nfe = [part.nfe for part in parts if part.nfe is not None]
        return LikelihoodEstimate(
            log_prob,
            _weighted(r, [part.std_error for part in parts]),
            _weighted(r, [part.solver_error for part in parts]),
            _weighted(r, [part.truncation for part in parts]),
            weakest(*(part.kind for part in parts)),
            torch.stack(nfe).sum(0) if nfe else None,
        )

    @torch.no_grad()
    def sample(self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None) -> Values:
        """Draws `(*shape, *event)` without gradient: a part by its weight, then an event of that part.

        A row's number is one uniform draw below the sums of the weights, so that generators of rows stay their own.
        """
        batch, contexts = torch.Size(shape), fold_context(context, torch.Size(shape))
        rows = math.prod(batch)
        u = rand((*(batch or (1,)), 1), generator, like=self.anchor).reshape(rows)
        k = torch.bucketize(u, self.log_weights.exp().cumsum(0)[:-1], right=True)
        x = u.new_empty(rows, *self.event_shape)
        if not u.is_meta:
            for i, part in enumerate(self.parts):
                chosen = (k == i).nonzero().flatten()
                if len(chosen):
                    given = None if contexts is None else contexts[chosen]
                    own = generator.rows(chosen.tolist()) if isinstance(generator, RowGenerators) else generator
                    x[chosen] = part.sample((len(chosen),), context=given, generator=own)  # type: ignore[operator]
        return x.reshape(*batch, *self.event_shape)


class AtContext(DensityModel):
    """log p(x | c) at one c, whatever context is asked for: the density that a conditional model has there.

    A mixture of these over all c, weighted by p(c), is the marginal density p(x), and its responsibilities are Bayes'
    p(c | x).

    Checked by tests/contracts/densities.py and tests/core/test_mixture.py.

    Args:
        model: the conditional density.
        context: c, `(features,)`.

    Example:
        >>> from core import StandardNormal
        >>> AtContext(StandardNormal(2), torch.ones(3)).sample((5,)).shape
        torch.Size([5, 2])
    """

    context: Tensor

    def __init__(self, model: DensityModel, context: Float[Tensor, " features"]) -> None:
        super().__init__(model.event_shape)
        self.model = model
        self.register_buffer("context", context.clone())

    def log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> Nats:
        """Log-density in nats, `(*batch,)`."""
        return self.model.log_prob(x, self.context, generator=generator)

    def estimate_log_prob(self, x: Values, context: Context = None, *, generator: Rng = None) -> LikelihoodEstimate:
        """Log-density with the errors of the model."""
        return self.model.estimate_log_prob(x, self.context, generator=generator)

    def sample(self, shape: Sequence[int] = (), *, context: Context = None, generator: Rng = None) -> Values:
        """Draws `(*shape, *event)` without gradient."""
        return self.model.sample(shape, context=self.context, generator=generator)


def fit_weights(
    log_probs: Float[Tensor, "rows parts"], *, tolerance: float = 1e-6, iterations: int = 10_000
) -> Float[Tensor, " parts"]:
    """The weights that maximize L(w) = (1/n) Σ_i log Σ_k w_k p_k(x_i), by expectation maximization.

    w_k ← w_k g_k with g_k = ∂L/∂w_k = (1/n) Σ_i p_k(x_i)/p(x_i), from equal weights. L is concave and Σ_k w_k g_k = 1,
    so that max L - L(w) ≤ max_k g_k - 1: the end is known by it. After t steps max L - L(w) ≤ (log K)/t.

    Rows must be held out: on its own training rows the part that overfits most would get all the weight.

    References:
        Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm", 1977, section 4.3.
        Cover, "An algorithm for maximizing expected log investment return", 1984, whose problem is the same.

    Checked by tests/core/test_mixture.py.

    Args:
        log_probs: log p_k(x_i), nats, -inf where a part has no density.
        tolerance: nats a row by which L may fall short.
        iterations: the most.

    Returns:
        The weights, float64, sum 1.

    Raises:
        ValueError: no row, a value that is NaN or +inf, or a row in which all parts have density 0.

    Example:
        >>> fit_weights(torch.tensor([[0.0, -9.0], [0.0, -9.0], [-9.0, 0.0]])).round(decimals=3).tolist()
        [0.667, 0.333]
    """
    log_p = log_probs.double()
    highest = log_p.amax(1, keepdim=True) if log_p.numel() else log_p.new_zeros(0, 1)
    bad = (~highest.isfinite() | log_p.isnan().any(1, keepdim=True)).nonzero()
    if not log_p.numel() or len(bad):
        found = f"row {int(bad[0, 0])} holds {log_probs[bad[0, 0]].tolist()}" if len(bad) else "there is none"
        raise ValueError(f"fit_weights needs rows in which a log-density is finite and none NaN, but {found}.")
    p = (log_p - highest).exp()
    w = p.new_full(p.shape[1:], 1 / p.shape[1])
    for _ in range(iterations):
        g = (p / (p @ w)[:, None]).mean(0)
        if g.max() - 1 <= tolerance:
            break
        w = w * g
    return w / w.sum()


def _weighted(r: Tensor, errors: Sequence[Tensor | None]) -> Tensor | None:
    """Σ_k r_k e_k; None where no part has the error."""
    if all(error is None for error in errors):
        return None
    e = torch.stack([torch.zeros_like(r[..., 0]) if error is None else error for error in errors], -1)
    return torch.where(r > 0, r * e, 0.0).sum(-1)
