"""What the inverse of an autoregressive layer keeps, beside a loop of D passes with a graph of them all."""

import torch
from torch import Tensor

from discrete import MaskedAutoregressive, invert_autoregressive


def loop(layer: MaskedAutoregressive, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """x and log|det dx/dz|, one degree a pass."""
    degrees = layer.conditioner.degrees
    x = torch.zeros_like(z)
    for degree in range(1, int(degrees.max()) + 1):
        update, _ = layer.transformer.inverse(z, layer.conditioner(x, context))
        x = torch.where(degrees == degree, update, x)
    _, log_derivative = layer.transformer.forward(x, layer.conditioner(x, context))
    return x, -log_derivative.sum(1)


def inverts(layer: MaskedAutoregressive, z: Tensor, context: Tensor | None, *, mode: str) -> None:
    """x, log-determinant, residual and number of passes are what they claim."""
    found = invert_autoregressive(layer.conditioner, layer.transformer, z, context, mode=mode, block=2)
    x, log_det = loop(layer, z, context)
    torch.testing.assert_close(found.x, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.log_det, log_det, rtol=1e-10, atol=1e-10)
    assert (found.residual < 1e-10).all(), f"residual {found.residual.max().item():g}"
    D = int(layer.conditioner.degrees.max())
    limits = {"incremental": (1, 1), "sequential": (D, D)}
    low, high = limits.get(mode, (1, D))
    assert ((found.iterations >= low) & (found.iterations <= high)).all(), f"passes {found.iterations.tolist()}"


def _losses(
    layer: MaskedAutoregressive, z: Tensor, context: Tensor | None, mode: str
) -> tuple[list[Tensor], list[Tensor]]:
    """What gradients are taken in, and a loss by the inverse and one by the loop."""
    z = z.clone().requires_grad_()
    context = None if context is None else context.clone().requires_grad_()
    found = invert_autoregressive(layer.conditioner, layer.transformer, z, context, mode=mode, block=2)
    losses = [(2 * x.sin()).sum() + log_det.square().sum() for x, log_det in (found[:2], loop(layer, z, context))]
    return [z, *([] if context is None else [context]), *layer.parameters()], losses


def gradients_are_those_of_the_loop(
    layer: MaskedAutoregressive, z: Tensor, context: Tensor | None, *, mode: str, tolerance: float = 1e-9
) -> None:
    """In z, in the context and in every parameter."""
    wanted, losses = _losses(layer, z, context, mode)
    found, expected = (torch.autograd.grad(loss, wanted) for loss in losses)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def second_derivatives_are_those_of_the_loop(
    layer: MaskedAutoregressive, z: Tensor, context: Tensor | None, *, mode: str, tolerance: float = 1e-8
) -> None:
    """Of the squared gradient in z, in z, context and every parameter."""
    wanted, losses = _losses(layer, z, context, mode)
    gradients = [torch.autograd.grad(loss, wanted[0], create_graph=True)[0].square().sum() for loss in losses]
    found, expected = (torch.autograd.grad(g, wanted, allow_unused=True, materialize_grads=True) for g in gradients)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
