"""The inverse of a Mint layer: a damped fixed-point iteration, and value after value where that does not converge."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call
from torch.nn import functional as F

from core.shapes import largest, sum_event
from discrete.bijections.inversion import gradients, rounding, solve_densely, views
from discrete.bijections.mint import Image, Mint, activate

Degrees = Int[Tensor, "values 3"]  # channel, row and column of every value, in order
Place = tuple[int, int, int]
Hidden = Callable[[int, Tensor, Place], tuple[Tensor, Tensor]]  # h and h' of an inner layer at the features of a value
SHRINK, GROWTH = 0.7, 1.15  # of α; with ½ and 2, one undoing the other, a value may go to and fro for ever
ROOT_STEPS = 100  # of the search for a single value: 5 are usual


@dataclass(frozen=True)
class Solver:
    """How a Mint layer is inverted: `step`, `tolerance` and `iterations` of `MaskedConvolution`.

    Raises:
        ValueError: a step outside (0, 2), a negative tolerance, or no iteration.
    """

    step: float = 1.0
    tolerance: float | None = None
    iterations: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.step < 2 or self.iterations < 1 or (self.tolerance is not None and self.tolerance < 0):
            raise ValueError(
                f"an inverse needs a step within (0, 2), 1 iteration or more and a tolerance of 0 or more, but has "
                f"step={self.step}, iterations={self.iterations} and tolerance={self.tolerance}."
            )

    @property
    def refines(self) -> bool:
        """Whether a row goes on below its limit."""
        return self.tolerance is None

    def limit(self, z: Tensor) -> Tensor | float:
        """The residual at which a row may rest."""
        return rounding(z) if self.tolerance is None else self.tolerance


def solve(layer: Any, z: Image, context: Tensor | None) -> tuple[Image, Tensor, Tensor]:
    """x, log|det dx/dz| and iterations of `MaskedConvolution.invert`."""
    with torch.no_grad():
        x, iterations = _search(layer.mint(context), z, layer.solver, layer.degrees())
    parameters = [p for p in layer.parameters() if p.requires_grad]
    known = [z, *parameters] if context is None else [z, context, *parameters]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in known):
        x = cast(Tensor, _Implicit.apply(x, layer, z, context, *parameters))
    _, slope = layer.mint(context).evaluate(x)
    return x, -sum_event(slope.log()), iterations


def _search(mint: Mint, z: Image, solver: Solver, degrees: Degrees) -> tuple[Image, Tensor]:
    """x with f(x) = z, and the iterations of each row; one more than the most marks rows solved by degrees."""
    x, iterations, rests = _iterate(mint, z, solver)
    if not z.is_meta and not bool(rests.all()):
        left = (~rests).nonzero()[:, 0]
        part = mint.rows(left)
        x[left] = _by_degrees(part, z[left], x[left], degrees, lambda _, u, place: activate(u, part.activation))
        iterations = iterations + ~rests
    return x, iterations


def _iterate(mint: Mint, z: Image, solver: Solver) -> tuple[Image, Tensor, Tensor]:
    """x ← x + α (z - f(x))/slope, each row on its own: the last x, the iterations, and which rows rest."""
    x, limit = z / mint.t, solver.limit(z)
    alpha, error, last = torch.full_like(z, solver.step), torch.zeros_like(z), z.new_full((len(z),), math.inf)
    rests, iterations = torch.zeros_like(last, dtype=torch.bool), torch.zeros_like(last, dtype=torch.long)
    for i in range(1 if z.is_meta else solver.iterations + 1):
        image, slope = mint.evaluate(x)
        before, error = error, z - image
        residual = largest(error)
        rests = rests | ((residual <= limit) & ~(solver.refines & (residual < last)))
        if i == solver.iterations or (not z.is_meta and bool(rests.all())):
            break
        overshoots = (error * before < 0) & (error.abs() > 0.9 * before.abs())
        alpha, last = torch.where(overshoots, SHRINK * alpha, (GROWTH * alpha).clamp(max=solver.step)), residual
        move = alpha * error / slope
        # A value that waits for others may overflow on its way.
        x = torch.where(rests[:, None, None, None] | ~move.isfinite(), x, x + move)
        iterations = iterations + ~rests
    return x, iterations, rests


class _Value(NamedTuple):
    """One value of z as a function of that of x, all before it known.

    Attributes:
        u: what those before it add to its features of each layer, `(rows, features)`.
        d: its own entries of each kernel, on the diagonal of the Jacobian.
        t: its own factor.
        hidden: h and h' of an inner layer.
        place: channel, row and column.
    """

    u: tuple[Tensor, ...]
    d: tuple[Tensor, ...]
    t: Tensor
    hidden: Hidden
    place: Place

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """h¹ and h² with their slopes in x."""
        d1, d2, _ = self.d
        h1, s1 = self.hidden(0, self.u[0] + x[:, None] * d1[:, 0], self.place)
        h2, s2 = self.hidden(1, self.u[1] + h1 @ d2.mT, self.place)
        s1 = s1 * d1[:, 0]
        return h1, h2, s1, s2 * (s1 @ d2.mT)

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value of z and its slope in x."""
        _, h2, _, s2 = self.features(x)
        d3 = self.d[2][0]
        return self.t * x + self.u[2][:, 0] + h2 @ d3, self.t + s2 @ d3

    def root(self, z: Tensor, x: Tensor) -> Tensor:
        """x for each row from a start, by Newton's method in a bracket, which a slope of t or more gives."""
        value, slope = self.evaluate(x)
        far = x + (z - value) / self.t
        low, high = torch.minimum(x, far), torch.maximum(x, far)
        best, least = x, (z - value).abs()
        last = before = high - low
        rests = least == 0
        for _ in range(ROOT_STEPS):
            newton = x + (z - value) / slope
            kept = (newton >= low) & (newton <= high) & ((newton - x).abs() <= before / 2)
            x, previous = torch.where(kept, newton, (low + high) / 2), x
            last, before = (x - previous).abs(), last
            value, slope = self.evaluate(x)
            error = torch.where(rests, math.inf, (z - value).abs())
            best, least = torch.where(error < least, x, best), torch.minimum(error, least)
            # A step that is no number rests as well.
            rests = rests | (least == 0) | ~(last > torch.finfo(x.dtype).eps * x.abs())
            if bool(rests.all()):
                break
            low, high = torch.where(value <= z, x, low), torch.where(value >= z, x, high)
        return best


def _by_degrees(mint: Mint, z: Image, start: Image, degrees: Degrees, hidden: Hidden) -> Image:
    """x with f(x) = z, value after value from `start`: at the multiply-adds of one pass, and always at an end."""
    C, n, k = len(mint.t), mint.reach, 2 * mint.reach + 1
    d, x = mint.diagonals(), torch.zeros_like(z)
    known = [F.pad(z.new_zeros(len(z), W.shape[1], *z.shape[2:]), (n, n, n, n)) for W in mint.W]
    for c, i, j in degrees.tolist():
        groups = [slice(c * len(b) // C, (c + 1) * len(b) // C) for b in mint.W]
        # What it adds to its own features is still zero.
        u = tuple(
            h[:, :, i : i + k, j : j + k].flatten(1) @ W[group].flatten(1).mT + b[..., group]
            for h, W, b, group in zip(known, mint.W, mint.b, groups, strict=True)
        )
        value = _Value(u, tuple(part[c] for part in d), mint.t[c, i, j], hidden, (c, i, j))
        x[:, c, i, j] = value.root(z[:, c, i, j], start[:, c, i, j])
        h1, h2, *_ = value.features(x[:, c, i, j])
        for h, group, new in zip(known, (slice(c, c + 1), *groups), (x[:, c, i, j, None], h1, h2), strict=False):
            h[:, group, i + n, j + n] = new
    return x


class _Implicit(Function):
    """x(z, context, φ) with f(x; context, φ) = z: dx = J⁻¹ (dz - ∂f/∂context dcontext - ∂f/∂φ dφ), J = ∂f/∂x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: nn.Module, z: Tensor, context: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        x = x.clone()
        ctx.layer, ctx.names = layer, [name for name, p in layer.named_parameters() if p.requires_grad]
        ctx.save_for_backward(x, context, *parameters)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """v = J⁻ᵀ g for z, and -vᵀ ∂f of the rest."""
        x, context, *parameters = ctx.saved_tensors
        layer, twice = ctx.layer, torch.is_grad_enabled()
        with torch.enable_grad():
            if not twice:
                x = x.detach().requires_grad_()
            rest = views((context, *parameters))
            events = x.reshape(len(x), *layer.event_shape)
            image, _ = functional_call(layer, dict(zip(ctx.names, rest[1:], strict=True)), (events, rest[0]))
            image = image.reshape(x.shape)
            if twice:
                degrees, (_, H, W) = layer.degrees(), layer.image_shape
                v = solve_densely(image, x, g, degrees @ degrees.new_tensor([H * W, W, 1]))
            else:
                v = _solve_transposed(layer, image, x, context, g)
            return None, None, v, *gradients(image, rest, -v, create_graph=twice)


def _solve_transposed(layer: Any, image: Image, x: Image, context: Tensor | None, g: Image) -> Image:
    """v with Jᵀ v = g by v ← v + (g - Jᵀ v)/slope; a row rests at 100 roundings of g or v; the others go by degrees."""
    with torch.no_grad():
        mint: Mint = layer.mint(context)
        _, slope = mint.evaluate(x.detach())
    v, left = torch.zeros_like(g), g
    rests = torch.zeros_like(g[:, 0, 0, 0], dtype=torch.bool)
    for _ in range(layer.solver.iterations):
        v = v + left / slope
        left = g - torch.autograd.grad(image, x, v, retain_graph=True)[0]
        rests = rests | (largest(left) <= 100 * torch.finfo(g.dtype).eps * torch.maximum(largest(g), largest(v)))
        if bool(rests.all()):
            return v
        left = torch.where(rests[:, None, None, None], 0, left)
    index = (~rests).nonzero()[:, 0]
    with torch.no_grad():
        v[index] = _backwards(mint.rows(index), x.detach()[index], v[index], g[index], layer.degrees())
    return v


def _backwards(mint: Mint, x: Image, start: Image, g: Image, degrees: Degrees) -> Image:
    """v with Jᵀ v = g, the last value first: the same by degrees, with h' for h."""
    h1, s1 = mint.hidden(0, x)
    _, s2 = mint.hidden(1, h1)
    slopes = [s.unflatten(1, (len(mint.t), -1)) for s in (s2, s1)]

    def linear(layer: int, u: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        c, i, j = place
        s = slopes[layer][:, c, :, i, j]
        return s * u, s

    return _by_degrees(mint.transposed(), g, start, degrees.flip(0), linear)
