"""What the inverses without a closed form share: their result, rounding, gradients by the implicit function theorem."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.shapes import largest


class Inversion(NamedTuple):
    """An inverse with what it took and how well it fits.

    Attributes:
        x: f⁻¹(z), `(rows, *event)`.
        log_det: log|det dx/dz|, `(rows,)`, nats.
        iterations: updates that each row took, a network pass each, `(rows,)`; 1 for the incremental inverse.
        residual: max |f(x) - z| of each row, `(rows,)`.
    """

    x: Tensor
    log_det: Tensor
    iterations: Tensor
    residual: Tensor


def rounding(z: Float[Tensor, "rows ..."]) -> Float[Tensor, " rows"]:
    """100 roundings of the largest finite value of a row, or of 1: a residual that cannot be told from none."""
    return 100 * torch.finfo(z.dtype).eps * largest(z.where(z.isfinite(), 0)).clamp(min=1)


def views(tensors: Sequence[Tensor | None]) -> list[Any]:
    """What stands for context and parameters in a backward pass, so that gradients in them leave the solution as is."""
    return [t if t is None else t.view_as(t) for t in tensors]


def gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor | None],
    v: Tensor | Sequence[Tensor],
    *,
    create_graph: bool = False,
) -> list[Tensor | None]:
    """vᵀ ∂outputs in each input that asks for it, None for the others."""
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    found = iter(
        torch.autograd.grad(outputs, wanted, v, create_graph=create_graph, allow_unused=True) if wanted else ()
    )
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]


def solve_densely(image: Tensor, x: Tensor, g: Tensor, order: Int[Tensor, " values"]) -> Tensor:
    """v with Jᵀ v = g, with a graph of its own, by the whole J = ∂image/∂x, lower triangular in `order`.

    For derivatives of the second order and above.
    """
    order, values = order.to(x.device), image.flatten(1)
    rows = [torch.autograd.grad(z.sum(), x, create_graph=True)[0].flatten(1) for z in values.T]
    J = torch.stack(rows, 1)[:, order][:, :, order]
    v = torch.linalg.solve_triangular(J.mT, g.flatten(1)[:, order, None], upper=True)[..., 0]
    return v[:, order.argsort()].reshape(x.shape)
