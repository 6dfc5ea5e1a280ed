"""A mixture of logistics as an elementwise map to the normal law: lighter tail, rate and quantile, at any distance."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from discrete.bijections.quantile_table import QuantileTable
from discrete.bijections.quantiles import (
    FEW,
    TailAt,
    batch_second,
    bracketed_newton,
    choose,
    log_hazard,
    log_hazard_below,
    log_ndtr_below,
    lower_quantile,
    may_have,
    mixture_quantile,
    newton_step,
    replaced,
)

SATURATED = 40.0  # for u < -40 σ(u) is e^u to rounding, in either dtype, and far from underflow
KNOTS, REACH = 288, 6.0  # of a table, in all or 9 a component, so many scales from its mean
AMONG = 9  # knots that are averaged
BEYOND = (1.0, 2.5, 5.0, 9.0)  # scales behind the last of them, for the tails
CACHE = 2**17  # values that a CPU core has at hand: half a megabyte in float32


class LogisticMixture(NamedTuple):
    """F(x) = Σ_k w_k σ((x - μ_k)/s_k), all `(components, *shape)` for x of that shape, Σ_k w_k = 1."""

    log_w: Tensor
    mu: Tensor
    log_s: Tensor

    def gaussianize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z = Φ⁻¹(F(x)) by the lighter of both tails, and log dz/dx = log f/P - log λ(z), the quotient of hazards."""
        lower, log_p, log_rate = self.tail(x)
        z, log_lam = lower_quantile(log_p)
        return z * (2 * lower - 1), log_rate - log_lam

    def quantile(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x = F⁻¹(Φ(z)), and log dx/dz."""
        x, log_slope = mixture_quantile(type(self), z, *self)
        if torch.is_grad_enabled():  # else what the search saw last is enough
            lower = (z <= 0).to(z.dtype)
            _, log_p, log_rate = self.tail(x, lower)
            return x, log_hazard(z * (2 * lower - 1), log_p) - log_rate
        return x, -log_slope

    def tail(self, x: Tensor, lower: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """1 where the lighter tail P is F and 0 where it is 1 - F, log P and log f/P; or of the side asked for."""
        return _Tail.apply(x, *self, lower)

    def tail_at(self, x: Tensor) -> TailAt:
        """The lighter tail in logs of the components."""
        v = (x - self.mu) * torch.exp(-self.log_s)
        with torch.no_grad():
            side = 2 * self.tail(x)[0] - 1
        v = side * v
        log_tails = self.log_w + F.logsigmoid(v)
        log_rates = torch.log_softmax(log_tails, 0) + F.logsigmoid(-v) - self.log_s
        return TailAt(side, log_tails, self.log_densities(x), log_rates.logsumexp(0).exp())

    def log_densities(self, x: Tensor) -> Tensor:
        """log w_k σ'(u_k)/s_k."""
        u = (x - self.mu) * torch.exp(-self.log_s)
        return self.log_w + F.logsigmoid(u) + F.logsigmoid(-u) - self.log_s

    def search(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The root x of log P(x) = log Φ(-|z|), on the side of z, where log F is all but straight; and log dz/dx."""
        lower, below = (z <= 0).to(z.dtype), -z.abs()
        goal = log_ndtr_below(below)
        equation, rows_alike = _Equation(self, lower, goal), _shared(self.mu) and self.mu.shape[2:] == z.shape[1:]
        x, log_rate = equation.root_near(self.table(z.dtype)(z)) if rows_alike else equation.root()
        return x, log_rate - log_hazard_below(below, goal)

    def at(self, index: Tensor, shape: torch.Size) -> "LogisticMixture":
        """The parameters at some places of a flattened x of that shape."""
        places = torch.arange(self.mu[0].numel(), device=index.device).reshape(self.mu.shape[1:]).expand(shape)
        place = places.flatten()[index]
        return LogisticMixture(*(p.flatten(1).index_select(1, place) for p in self))

    def table(self, dtype: torch.dtype) -> QuantileTable:
        """That of all rows, which share their parameters."""
        steps = torch.linspace(-REACH, REACH, max(9, KNOTS // len(self.mu)), dtype=dtype, device=self.mu.device)
        offsets = steps.reshape(-1, *(1 for _ in self.mu.shape))
        ordered = (self.mu + offsets * self.log_s.exp()).flatten(0, 2).flatten(1).T.sort(1).values
        # Knots of several components fall together or leave gaps: their running mean spreads them.
        spread = F.avg_pool1d(ordered, AMONG, 1, AMONG // 2, count_include_pad=False)
        beyond = self.log_s.amax(0).exp().flatten(1).T * steps.new_tensor(BEYOND)
        first, last = ordered[:, :1], ordered[:, -1:]
        knots = torch.cat([first - beyond.flip(1), first, spread, last, last + beyond], 1)
        knots = knots.T.reshape(-1, *self.mu.shape[2:])
        values, log_slopes = self.gaussianize(knots)
        return QuantileTable.of(knots, values, torch.exp(-log_slopes))


class _Equation(NamedTuple):
    """log P(x) = log Φ(-|z|) for x: the mixture, the side of each x, and the right-hand side."""

    law: LogisticMixture
    lower: Tensor
    goal: Tensor

    def at(self, index: Tensor) -> "_Equation":
        """That of some places of x, flattened."""
        law = self.law.at(index, self.goal.shape)
        return _Equation(law, self.lower.flatten()[index], self.goal.flatten()[index])

    def residual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log P(x) - log Φ, signed so that it rises with x, and the log of its slope."""
        _, log_p, log_rate = self.law.tail(x, self.lower)
        return (2 * self.lower - 1) * (log_p - self.goal), log_rate

    def tolerance(self) -> Tensor:
        """Of the residual: the rounding of log P."""
        return 4 * torch.finfo(self.goal.dtype).eps * (1 - self.goal)

    def root_near(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The root from where a table has it, mostly in one step, and log f/P."""
        x, log_rate, moves = newton_step(self.residual, x, self.tolerance())
        if x.is_meta:
            return x, log_rate
        index = moves.flatten().nonzero()[:, 0]
        if len(index) > FEW * x.numel():
            found = self.root(x)
            return torch.where(moves, found[0], x), torch.where(moves, found[1], log_rate)
        if len(index):
            return replaced((x, log_rate), index, self.at(index).root(x.flatten()[index]))
        return x, log_rate

    def root(self, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The root, from x or the middle of where all components have theirs, and log f/P."""
        _, mu, log_s = self.law
        # The components' own quantiles lie within these, a scale farther out: at the least every F_k ≤ Φ(z).
        far = log_s.amax(0).exp() * (1 + torch.log1p(-self.goal.exp()) - self.goal)
        low, high = mu.amin(0) - far, mu.amax(0) + far
        x = (low + high) / 2 if x is None else torch.fmin(torch.fmax(x, low), high)
        return bracketed_newton(
            self.residual, x, low, high, tolerance=self.tolerance(), select=lambda index: self.at(index).residual
        )


def _shared(mu: Tensor) -> bool:
    """Whether all rows have the same parameters, `(components, 1, ...)`."""
    return mu.shape[1:2] == (1,)


def _parts(x: Tensor, mu: Tensor) -> int:
    """Rows at a time: on a CPU as many as keep `(components, rows, ...)` within the cache."""
    return max(1, CACHE // mu.numel()) if x.device.type == "cpu" and _shared(mu) else max(1, len(x))


class _Tail(Function):
    """The lighter tail of a mixture of logistics, some rows at a time, and its derivatives from the components' shares.

    With v = u on the lower side and -u on the upper one, r_k = w_k σ(v_k)/P and g_k = w_k σ(u_k) σ(-u_k)/(s_k f):
    d log P = Σ r_k (d log w_k + σ(-v_k) dv_k), d log f = Σ g_k (d log w_k + (σ(-u_k) - σ(u_k)) du_k - d log s_k).
    """

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        log_w: Tensor,
        mu: Tensor,
        log_s: Tensor,
        lower: Tensor | None,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        if lower is not None:
            lower = lower.expand(info.batch_size, *lower.shape) if in_dims[4] is None else lower.movedim(in_dims[4], 0)
        return _Tail.apply(*batch_second(info.batch_size, in_dims[:4], x, log_w, mu, log_s), lower), (0, 0, 0)

    @staticmethod
    def forward(
        x: Tensor, log_w: Tensor, mu: Tensor, log_s: Tensor, lower: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        law = mu, torch.exp(-log_s), log_w.exp(), torch.exp(log_w - log_s)
        sums = _shifted_sums if _far_from_all(x, *law[:2]) else _sums
        parts = [sums(part, *law) for part in x.split(_parts(x, mu))]
        P, Q, f, *shifts = (torch.cat(part) for part in zip(*parts, strict=True))
        lower = (P <= Q).to(P.dtype) if lower is None else lower.clone()
        log_p = choose(lower, P, Q).log_()
        log_rate = f.log_().sub_(log_p)
        if shifts:
            c, beyond = shifts[0], choose(lower, *shifts[1:])
            # Beyond all components both are the same large number, which must cancel by itself.
            log_p, log_rate = log_p.sub_(beyond), log_rate.add_(beyond - c)
        return lower, log_p, log_rate

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[0])
        ctx.save_for_backward(*inputs[:4], output[0])

    @staticmethod
    def backward(ctx: Any, _: Tensor, of_log_p: Tensor, of_log_rate: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters, lower = ctx.saved_tensors
        rows = _parts(x, parameters[1])
        splits = zip(*(part.split(rows) for part in (x, lower, of_log_p, of_log_rate)), strict=True)
        dx, dw, dmu, ds = zip(*(_gradients(*parameters, *part) for part in splits), strict=True)
        return torch.cat(dx), sum(dw), sum(dmu), sum(ds), None


def _far_from_all(x: Tensor, mu: Tensor, inverse_s: Tensor) -> bool:
    """Whether some |u_k| may exceed 40 for all k: not where one component is near the least and the greatest x."""
    if not _shared(mu) or not len(x):
        return True
    ends = torch.stack([x.amin(0), x.amax(0)])
    nearest = ((ends - mu) * inverse_s).abs().amax(1).amin(0)
    return may_have(~(nearest <= SATURATED))  # NaN says nothing of the other rows


def _shifted_sums(x: Tensor, mu: Tensor, inverse_s: Tensor, w: Tensor, w_over_s: Tensor) -> tuple[Tensor, ...]:
    """As `_sums`, each over its power of e, and the logs of those: that of f, and those of the tails."""
    u = torch.sub(x, mu).mul_(inverse_s)
    c, below, above = _excess(u.abs().amin(0)), _excess(-u.amax(0)), _excess(u.amin(0))
    return *_weighted(u.sub_(torch.copysign(c, u)).neg_(), w, w_over_s), c, below, above


def _sums(x: Tensor, mu: Tensor, inverse_s: Tensor, w: Tensor, w_over_s: Tensor) -> tuple[Tensor, ...]:
    """F, 1 - F and f."""
    return _weighted(torch.sub(mu, x).mul_(inverse_s), w, w_over_s)


def _weighted(minus_u: Tensor, w: Tensor, w_over_s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    left, right = _sigmoids(minus_u)
    f = left.mul(right).mul_(w_over_s).sum(0)
    return left.mul_(w).sum(0), right.mul_(w).sum(0), f


def _sigmoids(minus_u: Tensor) -> tuple[Tensor, Tensor]:
    """σ(u) and σ(-u); without a graph in place of -u, by one exponential, in half the time of two sigmoids."""
    if torch.is_grad_enabled():  # derivatives of e/(1 + e) would underflow
        return torch.sigmoid(-minus_u), torch.sigmoid(minus_u)
    # Beyond the limit both count for nothing beside a component with |u| ≤ 40 and a weight of e^-20/K or more, unless
    # scales are as far apart.
    limit = 600.0 if minus_u.dtype == torch.float64 else 80.0
    e = minus_u.clamp_(-limit, limit).exp_()
    left = (e + 1).reciprocal_()
    return left, e.mul_(left)


def _gradients(
    log_w: Tensor, mu: Tensor, log_s: Tensor, x: Tensor, lower: Tensor, of_log_p: Tensor, of_log_rate: Tensor
) -> tuple[Tensor, ...]:
    """In x and in the parameters, of log P and log f/P."""
    w, inverse_s = log_w.exp(), torch.exp(-log_s)
    u = (x - mu) * inverse_s
    with torch.no_grad():
        nearest, end = u.abs().amin(0), choose(lower, -u.amax(0), u.amin(0))
        gap = torch.exp(_excess(end) - _excess(nearest))
        c = torch.copysign(_excess(nearest), u)
    left, right = _sigmoids(c - u)
    tails, both = w * choose(lower, left, right), w * (left * right)
    densities = inverse_s * both
    g = densities * (of_log_rate / densities.sum(0))
    a = (of_log_p - of_log_rate) / tails.sum(0)
    du = both * ((2 * lower - 1) * gap * a) + g * (right - left)
    dx = du * inverse_s
    dw, dmu, ds = (part.sum_to_size(log_w.shape) for part in (tails * a + g, dx, u * du + g))
    return dx.sum(0), dw, -dmu, -ds


def _excess(distance: Tensor) -> Tensor:
    """How far u moves towards 0, c: σ(-u) is then e^c times as large, to rounding, and the log lacks c.

    For f that counts where all |u_k| > 40, for the tails only where x lies beyond all components.
    """
    return torch.relu(distance - SATURATED)
