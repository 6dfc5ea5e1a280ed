"""The inverse of an autoregressive map: incremental at the cost of one pass, or by fixed-point iteration."""

from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from core.modes import evaluating
from core.precision import outside_autocast
from core.shapes import largest
from discrete.bijections.inversion import Inversion, gradients, rounding, solve_densely, views
from discrete.bijections.transformers import Transformer

InverseMode = Literal["incremental", "jacobi", "gauss_seidel", "sequential"]
MODES = ("incremental", "jacobi", "gauss_seidel", "sequential")


@outside_autocast
def invert_autoregressive(
    conditioner: nn.Module,
    transformer: Transformer,
    z: Float[Tensor, "rows n"],
    context: Float[Tensor, "rows context"] | None = None,
    *,
    mode: InverseMode = "incremental",
    tolerance: float | None = None,
    block: int = 8,
) -> Inversion:
    """x with τ(x_d; θ_d(x_<d)) = z_d for all d, and log|det dx/dz| = -Σ log ∂τ/∂x_d.

    `incremental` evaluates each unit of the network once, as soon as its inputs are known: T steps that together make
    one pass. `sequential` takes T passes, each of which makes one degree known. `jacobi` updates every feature in every
    pass, x ← τ⁻¹(z; θ(x)): exact after T passes, since pass d makes degree d exact, and after few where features
    depend on one another weakly. `gauss_seidel` does so for blocks of degrees, one after the other. A row rests when
    its residual falls to the tolerance, whatever the other rows do.

    The inverse is differentiable in z, context and parameters, to any order, by the implicit function theorem: no graph
    of the iteration is kept.

    References:
        Song, Meng, Liao, Ermon, "Accelerating feedforward computation via parallel nonlinear equation solving", 2021,
        section 3.

    Checked by tests/discrete/test_autoregressive_inverse.py.

    Args:
        conditioner: gives θ(x, context), `(rows, n, k)`, as the conditioner of a `MaskedAutoregressive`; its `degrees`
            1..T say which features come together, and `incremental` needs its `sweep`. It is run without dropout.
        transformer: τ.
        z: `(rows, n)`.
        context: `(rows, context_features)` or None.
        mode: `incremental`, `jacobi`, `gauss_seidel` or `sequential`.
        tolerance: residual at which a row rests; where omitted 100 roundings of its largest value, or of 1.
        block: degrees in a block of `gauss_seidel`.

    Returns:
        x, the log-determinant in nats, and each row's updates and residual.

    Raises:
        ValueError: an unknown mode, a negative tolerance, a block below 1, or z of another dtype than the network.

    Note:
        Transforms of `torch.func` do not reach into the inverse, nor does autocast.

    Example:
        >>> from discrete import MaskedAutoregressive
        >>> layer = MaskedAutoregressive(3, hidden=(8,))
        >>> inversion = invert_autoregressive(layer.conditioner, layer.transformer, torch.ones(2, 3), mode="jacobi")
        >>> inversion.iterations.tolist(), inversion.residual.tolist()  # a fresh layer is the identity
        ([1, 1], [0.0, 0.0])
    """
    x, log_det, iterations = solve_autoregressive(
        conditioner, transformer, z, context, mode=mode, tolerance=tolerance, block=block
    )
    with torch.no_grad(), evaluating(conditioner):
        image, _ = transformer.forward(x, conditioner(x, context))
    return Inversion(x, log_det, iterations, largest(image - z))


def solve_autoregressive(
    conditioner: nn.Module,
    transformer: Transformer,
    z: Tensor,
    context: Tensor | None,
    *,
    mode: InverseMode = "incremental",
    tolerance: float | None = None,
    block: int = 8,
) -> tuple[Tensor, Tensor, Tensor]:
    """x, log-determinant and passes of `invert_autoregressive`, without the pass that its residual takes."""
    check_inverse(mode, tolerance=tolerance, block=block)
    log_det = None
    with evaluating(conditioner):
        with torch.no_grad():
            if mode == "incremental":
                x, log_det = _sweep(conditioner, transformer, z, context)
                iterations = z.new_ones(len(z), dtype=torch.long)
            else:
                size = {"jacobi": z.shape[1], "sequential": 1, "gauss_seidel": block}[mode]
                x, iterations = _iterate(conditioner, transformer, z, context, tolerance=tolerance, block=size)
        parameters = [p for p in conditioner.parameters() if p.requires_grad]
        known = [z, *parameters] if context is None else [z, context, *parameters]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in known):
            x, log_det = cast(Tensor, _Implicit.apply(x, conditioner, transformer, z, context, *parameters)), None
        if log_det is None:
            log_det = _log_det(conditioner, transformer, x, context)
    return x, log_det, iterations


def check_inverse(mode: str, *, tolerance: float | None, block: int = 1) -> None:
    """Refuses an unknown mode, a negative tolerance and a block below 1."""
    if mode not in MODES or block < 1 or (tolerance is not None and tolerance < 0):
        raise ValueError(
            f"mode must be one of {', '.join(MODES)}, block 1 or more and tolerance 0 or more, but they are {mode!r}, "
            f"{block} and {tolerance}."
        )


def _sweep(
    conditioner: nn.Module, transformer: Transformer, z: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    log_derivatives = []
    z = z.T.contiguous().T  # features apart in memory
    columns = z.T.unsqueeze(-1).unbind()  # views of all at once

    def choose(features: slice, theta: Tensor) -> Tensor:
        if theta.dtype != z.dtype:
            raise ValueError(f"z is {z.dtype}, but the network that gives its parameters is {theta.dtype}.")
        part = columns[features.start] if theta.shape[1] == 1 else z[:, features]
        x, log_derivative = transformer.inverse(part, theta)
        log_derivatives.append(log_derivative.T)
        return x

    x = cast(Any, conditioner).sweep(choose, len(z), context)
    return x, torch.cat(log_derivatives).sum(0)


def _iterate(
    conditioner: nn.Module,
    transformer: Transformer,
    z: Tensor,
    context: Tensor | None,
    *,
    tolerance: float | None,
    block: int,
) -> tuple[Tensor, Tensor]:
    """Fixed-point iteration on blocks of degrees; a block of size b is exact after b passes."""
    degrees = cast(Tensor, conditioner.degrees).to(z.device)
    T = int(cast(Tensor, conditioner.degrees).max())
    limit = rounding(z) if tolerance is None else tolerance
    x = torch.zeros_like(z)
    iterations = z.new_zeros(len(z), dtype=torch.long)
    for low in range(1, T + 1, block):
        inside = (degrees >= low) & (degrees < low + block)
        rests = torch.zeros_like(iterations, dtype=torch.bool)
        for i in range(min(block, T + 1 - low)):
            theta = conditioner(x, context)
            if i > 0:
                image, _ = transformer.forward(x, theta)
                rests = rests | (largest((image - z) * inside) <= limit)
                if not z.is_meta and bool(rests.all()):
                    break
            update, _ = transformer.inverse(z, theta)
            # Degrees before low + i are exact. Those behind may overflow on their way, and 0 · ∞ would then reach all.
            update = torch.where((degrees > low + i) & ~update.isfinite(), 0, update)
            x = torch.where(inside & (degrees >= low + i) & ~rests[:, None], update, x)
            iterations = iterations + ~rests
    return x, iterations


def _log_det(conditioner: nn.Module, transformer: Transformer, x: Tensor, context: Tensor | None) -> Tensor:
    _, log_derivative = transformer.forward(x, conditioner(x, context))
    return -log_derivative.sum(1)


class _Implicit(torch.autograd.Function):
    """x(z, context, φ) with f(x; context, φ) = z: dx = J⁻¹ (dz - ∂f/∂context dcontext - ∂f/∂φ dφ), J = ∂f/∂x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        conditioner: nn.Module,
        transformer: Transformer,
        z: Tensor,
        context: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        x = x.clone()
        ctx.conditioner, ctx.transformer = conditioner, transformer
        ctx.names = [name for name, p in conditioner.named_parameters() if p.requires_grad]
        ctx.save_for_backward(x, context, *parameters)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """v = J⁻ᵀ g for z, and -vᵀ ∂f of the rest."""
        x, context, *parameters = ctx.saved_tensors
        conditioner, transformer = ctx.conditioner, ctx.transformer
        twice = torch.is_grad_enabled()
        with torch.enable_grad(), evaluating(conditioner):
            if not twice:
                x = x.detach().requires_grad_()
            rest = views((context, *parameters))
            theta = functional_call(conditioner, dict(zip(ctx.names, rest[1:], strict=True)), (x, rest[0]))
            image, _ = transformer.forward(x, theta)
            if twice:
                v = solve_densely(image, x, g, conditioner.degrees.argsort(stable=True))
            elif hasattr(conditioner, "solve_transposed"):
                s, t = _slopes(transformer, x, theta)
                v = conditioner.solve_transposed(x.detach(), context, s, t, g)
            else:
                s, _ = _slopes(transformer, x, theta)
                v = _iterative_solve(image, x, s, g, passes=int(conditioner.degrees.max()))
            return None, None, None, v, *gradients(image, rest, -v, create_graph=twice)


def _slopes(transformer: Transformer, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """∂τ/∂x, `(rows, n)`, and ∂τ/∂θ, `(rows, n, k)`."""
    x, theta = (t.detach().requires_grad_() for t in (x, theta))
    image, _ = transformer.forward(x, theta)
    s, t = torch.autograd.grad(image.sum(), (x, theta))
    return s, t


def _iterative_solve(image: Tensor, x: Tensor, s: Tensor, g: Tensor, *, passes: int) -> Tensor:
    """v ← v + (g - Jᵀ v)/s, exact after as many passes as there are degrees; a row rests when nothing is left of it."""
    v = torch.zeros_like(g)
    left = g
    for _ in range(passes):
        v = v + left / s
        left = g - torch.autograd.grad(image, x, v, retain_graph=True)[0]
        left = left * (largest(left) > torch.finfo(g.dtype).eps * largest(g))[:, None]
        if not bool(left.any()):
            break
    return v
