"""What a Mint layer keeps: its own formula, a triangular Jacobian, and an inverse that says how well it fits."""

from collections.abc import Callable

import torch
from torch import Tensor

from discrete import MaskedConvolution
from discrete.bijections.inversion import Inversion

Invert = Callable[[MaskedConvolution, Tensor], Inversion]


def jacobian(layer: MaskedConvolution, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Of every row, `(rows, values, values)`, values in the order of the layer."""
    index = order_of(layer)
    rows = []
    for i in range(len(x)):
        c = None if context is None else context[i : i + 1]
        J = torch.autograd.functional.jacobian(lambda row, c=c: layer(row[None], c)[0].flatten(), x[i])
        rows.append(J.reshape(len(index), len(index))[index][:, index])
    return torch.stack(rows)


def order_of(layer: MaskedConvolution) -> Tensor:
    """Flat indices of the values in the order of the layer."""
    _, H, W = layer.image_shape
    return layer.degrees() @ torch.tensor([H * W, W, 1])


def jacobian_is_triangular(layer: MaskedConvolution, x: Tensor, context: Tensor | None = None) -> None:
    """Exactly zero above the diagonal, positive on it, and its product is the determinant that the layer gives."""
    J = jacobian(layer, x, context)
    assert torch.equal(J, J.tril()), "a value depends on one that comes after it"
    diagonal = J.diagonal(dim1=1, dim2=2)
    assert (diagonal > 0).all(), f"a value falls as it grows: {diagonal.min().item():g}"
    torch.testing.assert_close(layer(x, context)[1], diagonal.log().sum(1), rtol=1e-11, atol=1e-11)


def inverts(layer: MaskedConvolution, x: Tensor, *, invert: Invert, tolerance: float) -> None:
    """x comes back, as near as the residual says, which is the truth and below the tolerance."""
    z, log_det = layer(x)
    found = invert(layer, z)
    image, _ = layer(found.x)
    torch.testing.assert_close(found.residual, (image - z).flatten(1).abs().amax(1), rtol=1e-6, atol=1e-13)
    assert (found.residual <= tolerance).all(), f"residual {found.residual.max().item():g}"
    torch.testing.assert_close(found.x, x, rtol=100 * tolerance, atol=100 * tolerance)
    torch.testing.assert_close(found.log_det, -log_det, rtol=1e4 * tolerance, atol=1e4 * tolerance)


def newton_step(layer: MaskedConvolution, x: Tensor, z: Tensor, context: Tensor | None) -> Tensor:
    """x + J⁻¹ (z - f(x)) with x and J held constant: at a solution its gradients are those of the inverse."""
    index = order_of(layer)
    J = jacobian(layer, x.detach(), context).detach()
    left = (z - layer(x.detach(), context)[0]).flatten(1)[:, index]
    return x.detach() + torch.linalg.solve(J, left)[:, index.argsort()].reshape(x.shape)


def gradients_are_those_of_the_inverse_function(
    layer: MaskedConvolution, z: Tensor, context: Tensor | None = None, *, tolerance: float = 1e-9
) -> None:
    """In z, in the context and in every parameter, of x and of the log-determinant."""
    z = z.clone().requires_grad_()
    context = None if context is None else context.clone().requires_grad_()
    wanted = [z, *([] if context is None else [context]), *layer.parameters()]
    x, log_det = layer.inverse(z, context)
    other = newton_step(layer, x, z, context)
    pairs = ((x, log_det), (other, -layer(other, context)[1]))
    losses = [(2 * x.sin()).sum() + log_det.square().sum() for x, log_det in pairs]
    found, expected = (torch.autograd.grad(loss, wanted) for loss in losses)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
