"""The inverse of z = x + g(x) with g a contraction: Banach's iteration, differentiated implicitly."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from core.nets.lipschitz import LipschitzMap
from core.shapes import largest
from discrete.bijections.inversion import gradients, views

ROUNDINGS, MOST_ROUNDINGS = 20, 1000  # of a residual, when it is small enough and when iterations have had their time
CHECKED = 4  # iterations between two looks at whether all rows rest: each makes the host wait


class FixedPoint(NamedTuple):
    """A solution of x + g(x) = z with what it took and how well it fits.

    Attributes:
        x: the solution, `(rows, ...)`.
        iterations: updates that each row took, `(rows,)`.
        residual: max |x + g(x) - z| of each row, `(rows,)`.
    """

    x: Tensor
    iterations: Tensor
    residual: Tensor


def fixed_point(
    g: Callable[[Tensor], Tensor],
    z: Tensor,
    *,
    lipschitz: float,
    tolerance: float | None = None,
    smallest: float = 1.0,
) -> FixedPoint:
    """x with x + g(x) = z by x ← z - g(x): the error falls by the factor L or better a step, from any start.

    A row rests when its residual has fallen to the tolerance, whatever the others do.

    References:
        Behrmann et al., "Invertible residual networks", 2019, algorithm 1.

    Checked by tests/discrete/test_residual.py.

    Args:
        g: a contraction of constant L that keeps rows apart.
        z: `(rows, ...)`.
        lipschitz: L, within (0, 1).
        tolerance: residual at which a row rests; where omitted 20 roundings of its largest value, or of `smallest`, and
            1000 once L^k leaves nothing but rounding.
        smallest: size below which values are rounded no finer.

    Returns:
        x, and each row's updates and residual.

    Raises:
        RuntimeError: a row has not come to rest after twice the iterations that L allows for: g is no contraction
            or not finite, or the tolerance is below what rounding lets through.
    """
    x, enough = z, largest_count(lipschitz, z.shape[1:].numel(), z.dtype, tolerance=tolerance)
    most = 2 * enough  # L may be a little short of the truth
    iterations = z.new_zeros(len(z), dtype=torch.long)
    rests = torch.zeros_like(iterations, dtype=torch.bool)
    residual = z.new_zeros(len(z))
    for i in range(most + 1):
        image = z - g(x)
        change = largest(image - x)
        residual = torch.where(rests, residual, change)
        roundings = ROUNDINGS if i < enough else MOST_ROUNDINGS
        rests = rests | (change <= (_rounding(x, z, smallest) * roundings if tolerance is None else tolerance))
        if z.is_meta or ((i % CHECKED == CHECKED - 1 or i == most) and bool(rests.all())):
            return FixedPoint(x, iterations, residual)
        x = torch.where(rests.reshape(-1, *(1 for _ in z.shape[1:])), x, image)
        iterations = iterations + ~rests
    row = int((~rests).nonzero()[0, 0])
    raise RuntimeError(
        f"the inverse of z = x + g(x) does not converge in row {row}: its residual is {residual[row].item():g} after "
        f"{most} iterations, twice what a Lipschitz constant of {lipschitz:g} allows for."
    )


def largest_count(lipschitz: float, size: int, dtype: torch.dtype, *, tolerance: float | None = None) -> int:
    """Iterations after which L^k · 2 √size, the residual from a start of size 1, is below 20 roundings or less."""
    limit = ROUNDINGS * torch.finfo(dtype).eps
    limit = limit if tolerance is None else min(limit, tolerance)
    return math.ceil(math.log(limit / (2 * math.sqrt(size))) / math.log(lipschitz))


def solve_implicitly(g: LipschitzMap, z: Tensor, *, lipschitz: float, tolerance: float | None = None) -> Tensor:
    """x with x + g(x) = z, differentiable in z and all of g to any order, without a graph of the iteration."""
    with torch.no_grad():
        x = fixed_point(g, z, lipschitz=lipschitz, tolerance=tolerance).x
    tensors = g.tensors()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (z, *tensors)):
        x = cast(Tensor, _Implicit.apply(x, g, lipschitz, z, *tensors))
    return x


def _rounding(x: Tensor, z: Tensor, smallest: float) -> Tensor:
    return torch.finfo(z.dtype).eps * torch.maximum(largest(x), largest(z)).clamp(min=smallest)


class _Implicit(torch.autograd.Function):
    """x(z, φ) with x + g(x; φ) = z: dx = (I + J)⁻¹ (dz - ∂g/∂φ dφ)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: LipschitzMap, lipschitz: float, z: Tensor, *tensors: Tensor | None) -> Tensor:
        x = x.clone()
        ctx.g, ctx.lipschitz = g, lipschitz
        ctx.save_for_backward(x, *tensors)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """v = (I + J)⁻ᵀ gradient for z, by the same iteration, and -vᵀ ∂g of the rest."""
        x, *tensors = ctx.saved_tensors
        twice = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if twice else x.detach()
            v = _dense_solve(ctx.g.holding(tensors), x, gradient) if twice else _solve(ctx, x, gradient)
            rest = views(tensors)
            image = ctx.g.holding(rest)(x)
            return None, None, None, v, *gradients(image, rest, -v, create_graph=twice)


@torch.no_grad()
def _solve(ctx: Any, x: Tensor, gradient: Tensor) -> Tensor:
    _, J = ctx.g.linearize(x)
    return fixed_point(lambda v: J.pull(v[None])[0], gradient, lipschitz=ctx.lipschitz, smallest=0.0).x


def _dense_solve(g: LipschitzMap, x: Tensor, gradient: Tensor) -> Tensor:
    """The same with a graph of its own, by the whole Jacobian: for derivatives of the second order and above."""
    J = g.linearize(x)[1].dense(x)
    eye = torch.eye(J.shape[1], dtype=J.dtype, device=J.device)
    return torch.linalg.solve((eye + J).mT, gradient.flatten(1)).reshape(gradient.shape)
