"""What every elementwise transformer keeps. Plain functions; each raises AssertionError where the claim is broken.

`x` and `z` are `(rows, n)`, `theta` is `(rows, n, k)`. The log-derivatives are compared with autograd each on its own.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from discrete.bijections.transformers import Transformer

Mapping = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def derivative(mapping: Mapping, x: Tensor, theta: Tensor) -> Tensor:
    """dz/dx of each feature by autograd."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(mapping(x, theta.detach())[0].sum(), x)
    return gradient


def forward_log_derivative_is_that_of_autograd(
    transformer: Transformer, x: Tensor, theta: Tensor, *, tolerance: float = 1e-9
) -> None:
    """The second output of `forward` = log dz/dx."""
    expected = derivative(transformer.forward, x, theta).log()
    torch.testing.assert_close(transformer.forward(x, theta)[1], expected, rtol=tolerance, atol=tolerance)


def inverse_log_derivative_is_that_of_autograd(
    transformer: Transformer, z: Tensor, theta: Tensor, *, tolerance: float = 1e-9
) -> None:
    """The second output of `inverse` = log dx/dz."""
    expected = derivative(transformer.inverse, z, theta).log()
    torch.testing.assert_close(transformer.inverse(z, theta)[1], expected, rtol=tolerance, atol=tolerance)


def round_trips(transformer: Transformer, x: Tensor, theta: Tensor, *, tolerance: float = 1e-9) -> None:
    """inverse(forward(x)) = x and forward(inverse(z)) = z, with opposite log-derivatives."""
    for there, back in both_ways(transformer):
        middle, log_derivative = there(x, theta)
        end, opposite = back(middle, theta)
        torch.testing.assert_close(end, x, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(opposite, -log_derivative, rtol=tolerance, atol=tolerance)


def round_trips_up_to_rounding(transformer: Transformer, x: Tensor, theta: Tensor, *, roundings: float = 40.0) -> None:
    """x lies between the preimages of z ± c ε: the way back loses what the rounding of z has lost, and no more."""
    delta = roundings * torch.finfo(x.dtype).eps * x.abs().clamp(min=1)
    for there, back in both_ways(transformer):
        z, _ = there(x, theta)
        assert (back(z - delta, theta)[0] - delta <= x).all()
        assert (back(z + delta, theta)[0] + delta >= x).all()


def grows(transformer: Transformer, x: Tensor, theta: Tensor) -> None:
    """Both directions are strictly increasing along the first dimension of `x`, which is."""
    for mapping, _ in both_ways(transformer):
        assert (mapping(x, theta)[0].diff(dim=0) > 0).all()


def derivative_is_continuous(transformer: Transformer, x: Tensor, theta: Tensor, *, tolerance: float = 1e-9) -> None:
    """dz/dx a rounding left and right of `x` is the same."""
    sides = [derivative(transformer.forward, side(x), theta) for side in (just_below, just_above)]
    torch.testing.assert_close(*sides, rtol=tolerance, atol=tolerance)


def gradients_are_finite(transformer: Transformer, x: Tensor, theta: Tensor) -> None:
    """Values and gradients in input and parameters are finite, through either output and in both directions."""
    for mapping, _ in both_ways(transformer):
        for output in (0, 1):
            x, theta = (leaf.detach().requires_grad_() for leaf in (x, theta))
            value = mapping(x, theta)[output]
            gradients = torch.autograd.grad(value.sum(), (x, theta), allow_unused=True, materialize_grads=True)
            for tensor in (value, *gradients):
                assert tensor.isfinite().all()


def is_the_identity(transformer: Transformer, x: Tensor, theta: Tensor, *, tolerance: float = 0.0) -> None:
    """z = x with log-derivative 0, in both directions."""
    for mapping, _ in both_ways(transformer):
        z, log_derivative = mapping(x, theta)
        torch.testing.assert_close(z, x, rtol=0, atol=tolerance)
        torch.testing.assert_close(log_derivative, torch.zeros_like(x), rtol=0, atol=tolerance)


def both_ways(transformer: Transformer) -> list[tuple[Mapping, Mapping]]:
    return [(transformer.forward, transformer.inverse), (transformer.inverse, transformer.forward)]


def just_below(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, -torch.inf))


def just_above(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, torch.inf))
