"""The normal law in logs far out on its tails, and the root of an increasing function."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from core.bases import LOG_2PI

Residual = Callable[[Tensor], tuple[Tensor, Tensor]]
Select = Callable[[Tensor], Residual]

ITERATIONS = 64  # of the root finder: 2 are usual, 20 are rare
FEW = 0.25  # share of elements from which on those that still move go on alone
# z + t as a function of t - √(2 log 2), t = √(-2 log p): within 2.7e-8 max(1, |z|) for every z ≤ 0, by weighted least
# squares on 4000 values of t up to 10⁶, the weights raised where the error is largest.
MEDIAN = 1.1774100065231323  # √(2 log 2) in single precision
NUMERATOR = (1.17741000367, 1.10041744969, 0.243944146865, 0.01427003052, 0.000175653497209, 2.46228236507e-07)
DENOMINATOR = (
    1.0,
    1.33859937137,
    0.542387582537,
    0.0737499455886,
    0.00300447173521,
    2.67591457999e-05,
    2.60069762356e-08,
)


def log_ndtr(z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log Φ(z), differentiable to any order: d log Φ/dz = λ(z) = φ(z)/Φ(z), which underflows to 0 and never to NaN.

    Checked by tests/discrete/test_mixture.py.
    """
    return _LogNdtr.apply(z)


def ndtri_exp(log_p: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """z with log Φ(z) = log p < 0, the normal quantile of a log-probability: dz/d log p = 1/λ(z), to any order.

    A rational function of √(-2 log p), as in Abramowitz and Stegun but good to single precision; for double precision
    then one step of Halley's method on log Φ, which cubes the error: with n = (log Φ(z) - log p)/λ,
    z ← z - n/(1 + n (z + λ)/2), since λ' = -λ (z + λ).

    References:
        Abramowitz and Stegun, "Handbook of mathematical functions", 1964, 26.2.23, the form of the function.

    Checked by tests/discrete/test_mixture.py::test_quantile_is_exact_to_two_roundings.

    Args:
        log_p: finite and below 0, nats.

    Note:
        Two roundings of z, of 1 at least, from what the rounded log p says, in single precision 2.3 at worst, for every
        z < 0 as far as z² is finite.
        Towards log p = 0 it is log p that has lost the digits: hand in the smaller of log p and log(1 - p).

    Example:
        >>> ndtri_exp(torch.tensor([-2000.0, math.log(0.1)]))
        tensor([-63.1654,  -1.2816])
    """
    return _NdtriExp.apply(log_p)


def lower_quantile(log_p: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """z = Φ⁻¹(p) of log p ≤ log ½, as `ndtri_exp`, and log λ(z), λ = φ/Φ; differentiable to any order."""
    return _LowerQuantile.apply(log_p)


def log_normal(z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log φ(z)."""
    return -0.5 * (z * z + LOG_2PI)


def hazard(z: Float[Tensor, "..."], log_p: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """λ(z) = φ(z)/Φ(z) given log p = log Φ(z): for large z it underflows to 0."""
    near = torch.exp((log_normal(z) - log_p).clamp(max=4.0))  # up to where the fraction takes over λ < 38
    return choose(_is_far(log_p), _fraction(z), near)


def log_hazard(z: Float[Tensor, "..."], log_p: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log λ(z) given log p = log Φ(z)."""
    return choose(_is_far(log_p), _fraction(z).log(), log_normal(z) - log_p)


def choose(mask: Float[Tensor, "..."], a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """a where the mask is 1 and b where it is 0, both finite: a quarter of what `torch.where` takes on a CPU."""
    return torch.lerp(b, a, mask)


def bracketed_newton(
    residual: Residual,
    x: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    tolerance: Tensor,
    select: Select | None = None,
) -> tuple[Tensor, Tensor]:
    """The root in [low, high] of an increasing function of each element: Newton's steps, or halves of the bracket.

    An element rests at its first x with |r| ≤ tolerance, or behind its first step of two roundings, whatever the others
    do. A step that leaves the bracket, or is longer than half of the last but one, gives way to one to the middle.

    Checked by tests/discrete/test_mixture.py and tests/discrete/test_gaussianization.py.

    Args:
        residual: r(x), of the sign of x - root, and log r'(x), both shaped like x.
        x: where to start, within the bracket.
        low: r(low) ≤ 0.
        high: r(high) ≥ 0.
        tolerance: not below the rounding errors of r.
        select: the function of some elements alone, of their places in the flattened x; with it the last of them to
            rest do not keep the others busy.

    Returns:
        The root, NaN where x is, and log r' there.
    """
    width = high - low
    return _newton(residual, _Search(x, low, high, width, width, tolerance), select, ITERATIONS)


class _Search(NamedTuple):
    """Where each element of a search stands: its x and bracket, its last two steps, and the residual it rests at."""

    x: Tensor
    low: Tensor
    high: Tensor
    last: Tensor
    before: Tensor
    tolerance: Tensor


def _newton(residual: Residual, start: _Search, select: Select | None, iterations: int) -> tuple[Tensor, Tensor]:
    x, low, high, last, before, tolerance = start
    moves, log_slope = torch.ones_like(x), torch.zeros_like(x)
    for i in range(1 if x.is_meta else iterations):
        r, found = residual(x)
        log_slope = choose(moves, found, log_slope)
        above = (r > 0).to(x.dtype)
        low, high = choose(above, low, x), choose(above, x, high)
        newton = x - r * torch.exp(-found.clamp(min=-80.0))
        within = torch.minimum(torch.maximum(newton, low), high)
        kept = (within == newton) & ((newton - x).abs() <= before / 2)
        step = (choose(kept.to(x.dtype), within, torch.lerp(low, high, 0.5)) - x) * moves
        step = step * (r.abs() > tolerance)
        x, last, before = x + step, step.abs(), last
        moves = moves * (last > 2 * torch.finfo(x.dtype).eps * x.abs())
        if x.is_meta:
            continue
        left = int(moves.count_nonzero())
        if not left:
            break
        if select is not None and left <= FEW * x.numel():
            index = moves.flatten().nonzero()[:, 0]
            state = _Search(*(t.flatten()[index] for t in (x, low, high, last, before, tolerance)))
            few = partial(_places, select, index)
            return replaced((x, log_slope), index, _newton(select(index), state, few, iterations - i - 1))
    return x, log_slope


def _places(select: Select, index: Tensor, places: Tensor) -> Residual:
    return select(index[places])


def newton_step(residual: Residual, x: Tensor, tolerance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x behind one of Newton's steps, log r' before it, and whether that leaves more to do.

    As in `bracketed_newton` an element rests where |r| ≤ tolerance, or behind a step of two roundings.
    """
    r, log_slope = residual(x)
    step = r * torch.exp(-log_slope.clamp(min=-80.0)) * (r.abs() > tolerance)
    return x - step, log_slope, ~(step.abs() <= 2 * torch.finfo(x.dtype).eps * x.abs())


def replaced(wholes: tuple[Tensor, Tensor], index: Tensor, parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two tensors with other values at some places, flattened."""
    a, b = (w.flatten().index_copy(0, index, p).reshape(w.shape) for w, p in zip(wholes, parts, strict=True))
    return a, b


class TailAt(NamedTuple):
    """A mixture at x, on the side of its lighter tail P: F on side 1, 1 - F on side -1.

    Attributes:
        side: 1 or -1.
        log_tails: logs of the components' shares of P, `(components, ...)`.
        log_densities: logs of their shares of the density f, `(components, ...)`.
        rate: f/P.
    """

    side: Tensor
    log_tails: Tensor
    log_densities: Tensor
    rate: Tensor


def mixture_quantile(law: Any, z: Tensor, log_w: Tensor, mu: Tensor, log_s: Tensor) -> tuple[Tensor, Tensor]:
    """x = F⁻¹(Φ(z)) of a mixture of one shape, differentiable to any order through F(x; w, μ, s) = Φ(z).

    f dx = φ(z) dz - Σ F_k dw_k + f Σ r_k (dμ_k + u_k ds_k) with the shares r_k of f; on the upper side the weights come
    with 1 - F_k in the place of -F_k, the same since Σ dw_k = 0.

    Checked by tests/discrete/test_mixture.py and tests/discrete/test_gaussianization.py.

    Args:
        law: of (log w, μ, log s), with `search(z)`, which finds x and what its slope there is, and `tail_at(x)`.
        z: of any shape, to which those of one component broadcast.
        log_w: logs of weights that sum to 1, `(components, ...)`.
        mu: likewise.
        log_s: likewise.

    Returns:
        x, and the logarithm of a slope there as `search` knows it, without gradient.
    """
    return _MixtureQuantile.apply(law, z, log_w, mu, log_s)


class _MixtureQuantile(Function):
    """The root of a search, and its derivatives by the implicit function theorem."""

    @staticmethod
    def forward(law: Any, z: Tensor, log_w: Tensor, mu: Tensor, log_s: Tensor) -> tuple[Tensor, Tensor]:
        return law(log_w, mu, log_s).search(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.law = inputs[0]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[0], *inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, z, log_w, mu, log_s = ctx.saved_tensors
        side, log_tails, log_densities, rate = ctx.law(log_w, mu, log_s).tail_at(x)
        dx = gradient / rate
        r = gradient * torch.softmax(log_densities, 0)
        dz = dx * hazard(side * z, log_tails.logsumexp(0))
        parts = -side * dx * torch.softmax(log_tails, 0), r, r * (x - mu)
        return None, dz, *(part.sum_to_size(log_w.shape) for part in parts)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], law: Any, *tensors: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return mixture_quantile(law, *batch_second(info.batch_size, in_dims[1:], *tensors)), (0, 0)


def batch_second(n: int, in_dims: tuple[int | None, ...], x: Tensor, *parameters: Tensor) -> list[Tensor]:
    """What `vmap` hands in with its dimension first in x, and behind the components in parameters."""
    first, *rest = (
        t.expand(n, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip((x, *parameters), in_dims, strict=True)
    )
    return [first, *(p.movedim(0, 1) for p in rest)]


class _LogNdtr(Function):
    """log Φ whose backward pass costs one exponential."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.special.log_ndtr(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * hazard(*ctx.saved_tensors)


class _NdtriExp(Function):
    """The inverse function of log Φ."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], log_p: Tensor) -> tuple[Tensor, int]:
        return ndtri_exp(log_p), in_dims[0]

    @staticmethod
    def forward(log_p: Tensor) -> Tensor:
        upper = (log_p > math.log(0.5)).to(log_p.dtype)
        rest = log_p.clamp(min=-1.0).expm1_().neg_().log_()
        return _lower_quantile(choose(upper, rest, log_p))[0] * (1 - 2 * upper)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        log_p, z = ctx.saved_tensors
        return gradient / hazard(z, log_p)


class _LowerQuantile(Function):
    """z and log λ(z): dz/d log p = 1/λ, d log λ/d log p = -(z + λ)/λ."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], log_p: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return lower_quantile(log_p), (in_dims[0], in_dims[0])

    @staticmethod
    def forward(log_p: Tensor) -> tuple[Tensor, Tensor]:
        return _lower_quantile(log_p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, of_z: Tensor, of_log_lam: Tensor) -> Tensor:
        z, log_lam = ctx.saved_tensors
        lam = log_lam.exp()
        return (of_z - of_log_lam * (z + lam)) / lam


def _lower_quantile(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """z ≤ 0 with log Φ(z) = log p ≤ log ½, and log λ(z); in place, which halves its time."""
    t = log_p.mul(-2).sqrt_()
    s = t - MEDIAN
    z = _polynomial(NUMERATOR, s).div_(_polynomial(DENOMINATOR, s)).sub_(t)
    if log_p.dtype == torch.float64:
        value = log_ndtr_below(z)
        lam = hazard(z, value)
        n = value.sub_(log_p).div_(lam)
        z = z.sub_(n.div(lam.add_(z).mul_(n).mul_(0.5).add_(1)))
    return z, log_hazard_below(z, log_p)


def log_hazard_below(z: Tensor, log_p: Tensor) -> Tensor:
    """`log_hazard` for z ≤ 0, without gradient: the fraction only where some z asks for it."""
    log_lam = z.mul(z).add_(LOG_2PI).mul_(-0.5).sub_(log_p)
    return choose(_is_far(log_p), _fraction(z).log(), log_lam) if _may_be_far(log_p) else log_lam


def log_ndtr_below(z: Tensor) -> Tensor:
    """log Φ(z) for z ≤ 0, without gradient: in a fifth of the time that torch takes."""
    log_p = z.clamp(min=_end(z.dtype) - 0.5).mul_(-math.sqrt(0.5)).erfc_().mul_(0.5).log_()
    return choose(_is_far(log_p), log_normal(z) - _fraction(z).log(), log_p) if _may_be_far(log_p) else log_p


def _polynomial(coefficients: tuple[float, ...], s: Tensor) -> Tensor:
    """Σ c_i s^i."""
    value = torch.full_like(s, coefficients[-1])
    for c in coefficients[-2::-1]:
        value.mul_(s).add_(c)
    return value


def may_have(mask: Tensor) -> bool:
    """Whether any value is not 0; always where that must not be asked: of another device than a CPU, or in a graph."""
    return mask.device.type != "cpu" or torch.compiler.is_compiling() or bool(mask.any())


def _is_far(log_p: Tensor) -> Tensor:
    """1 where λ is the continued fraction, good to rounding for z < -12 and -37; 0 where Φ has not underflowed."""
    return (log_p < _far(log_p.dtype)).to(log_p.dtype)


def _may_be_far(log_p: Tensor) -> bool:
    return bool(log_p.numel()) and may_have(~(log_p.amin() >= _far(log_p.dtype)))  # NaN says nothing of the others


def _far(dtype: torch.dtype) -> float:
    return -700.0 if dtype == torch.float64 else -80.0


def _fraction(z: Tensor) -> Tensor:
    """λ(z) = t + 1/(t + 2/(t + ...)), t = -z, for z far below 0."""
    t = -z.clamp(max=_end(z.dtype))
    return t + 1 / (t + 2 / (t + 3 / (t + 4 / (t + 5 / t))))


def _end(dtype: torch.dtype) -> float:
    """z below which λ is the continued fraction, to rounding."""
    return -37.0 if dtype == torch.float64 else -12.0
