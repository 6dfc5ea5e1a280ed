"""What every bijection keeps. Plain float64 functions; each raises AssertionError where the claim is broken.

`x` and `z` are `(rows, *event)` on the data and the noise side. The log-determinants of the two directions are compared
with autograd each on its own: that they cancel says nothing, since both can be wrong by the same factor.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from discrete import Bijection

Mapping = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
SIZES = (0, 1, 3, 65)


def _row_jacobian(mapping: Mapping, row: Tensor, context: Tensor | None, *, create_graph: bool = False) -> Tensor:
    """Square Jacobian of one event."""
    context = None if context is None else context[None]
    jacobian = torch.autograd.functional.jacobian(
        lambda y: mapping(y[None], context)[0].flatten(), row, create_graph=create_graph
    )
    return jacobian.reshape(row.numel(), row.numel())


def _log_det_matches(mapping: Mapping, x: Tensor, context: Tensor | None, tolerance: float) -> None:
    _, log_det = mapping(x, context)
    rows = [_row_jacobian(mapping, row, None if context is None else context[i]) for i, row in enumerate(x)]
    torch.testing.assert_close(
        log_det.detach(), torch.linalg.slogdet(torch.stack(rows)).logabsdet, rtol=tolerance, atol=tolerance
    )


def forward_log_det_is_that_of_the_jacobian(
    bijection: Bijection, x: Tensor, context: Tensor | None = None, *, tolerance: float = 1e-9
) -> None:
    """log_det of `forward` = log|det dz/dx| by autograd."""
    _log_det_matches(bijection.forward, x, context, tolerance)


def inverse_log_det_is_that_of_the_jacobian(
    bijection: Bijection, z: Tensor, context: Tensor | None = None, *, tolerance: float = 1e-9
) -> None:
    """log_det of `inverse` = log|det dx/dz| by autograd."""
    _log_det_matches(bijection.inverse, z, context, tolerance)


def log_det_is_differentiable(
    bijection: Bijection, x: Tensor, context: Tensor | None = None, *, tolerance: float = 1e-7
) -> None:
    """The gradient of log_det in input and parameters is that of slogdet of the Jacobian: likelihood trains on it."""
    row, context = x[0].clone().requires_grad_(), None if context is None else context[0]
    wanted = [row, *bijection.parameters()]
    log_det = bijection(row[None], None if context is None else context[None])[1].sum()
    jacobian = _row_jacobian(bijection.forward, row, context, create_graph=True)
    # A Jacobian that is constant in x and the parameters carries no graph: its gradient is zero.
    target = torch.linalg.slogdet(jacobian).logabsdet + 0.0 * row.sum()
    gradients = torch.autograd.grad(log_det + 0.0 * row.sum(), wanted, allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(target, wanted, allow_unused=True, materialize_grads=True)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def shapes_fit(
    bijection: Bijection, draw_x: Callable[[int], Tensor], draw_z: Callable[[int], Tensor], context: Tensor | None
) -> None:
    """Both directions take 0, 1, 3 and 65 rows; log_det is always `(rows,)` in the dtype of the input."""
    directions = (
        (bijection.forward, draw_x, bijection.event_shape, bijection.latent_shape),
        (bijection.inverse, draw_z, bijection.latent_shape, bijection.event_shape),
    )
    for mapping, draw, source, target in directions:
        for rows in SIZES:
            x = draw(rows)
            assert x.shape == (rows, *source)
            y, log_det = mapping(x, None if context is None else context[:rows])
            assert y.shape == (rows, *target), f"{rows} rows came out as {tuple(y.shape)}"
            assert log_det.shape == (rows,), f"log_det of {rows} rows is {tuple(log_det.shape)}"
            assert y.dtype == log_det.dtype == x.dtype, f"{x.dtype} in, {y.dtype} and {log_det.dtype} out"


def round_trips(
    bijection: Bijection, x: Tensor, z: Tensor, context: Tensor | None = None, *, tolerance: float = 1e-9
) -> None:
    """inverse(forward(x)) = x and forward(inverse(z)) = z with opposite log-determinants."""
    for there, back, start in ((bijection.forward, bijection.inverse, x), (bijection.inverse, bijection.forward, z)):
        middle, log_det = there(start, context)
        end, opposite = back(middle, context)
        torch.testing.assert_close(end, start, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(opposite, -log_det, rtol=tolerance, atol=tolerance)


def coupling_has_its_structure(
    bijection: Bijection, x: Tensor, context: Tensor | None = None, *, passes: Sequence[int]
) -> None:
    """Coordinates that pass are the identity, bit by bit; each of the others moves, and with itself and those alone."""
    z, _ = bijection(x, context)
    size = x[0].numel()
    moves = [i for i in range(size) if i not in passes]
    kept, given = (values.flatten(1)[:, list(passes)] for values in (z, x))
    assert torch.equal(kept, given), "a coordinate that should pass was changed"
    for i, row in enumerate(x):
        jacobian = _row_jacobian(bijection.forward, row, None if context is None else context[i])
        assert torch.equal(jacobian[list(passes)], torch.eye(size, dtype=x.dtype)[list(passes)]), "passing row"
        block = jacobian[moves][:, moves]
        assert torch.equal(block, torch.diag(block.diagonal())), "a moving coordinate depends on another one"
        assert (block.diagonal() > 0).all(), "a moving coordinate does not grow with itself"
        assert jacobian[moves][:, list(passes)].count_nonzero() > 0, "nothing steers the moving coordinates"


def autoregressive_has_its_structure(
    bijection: Bijection, x: Tensor, context: Tensor | None = None, *, order: Sequence[int]
) -> None:
    """In the declared order the Jacobian is triangular, exactly zero above, positive on and nowhere zero below it."""
    for i, row in enumerate(x):
        jacobian = _row_jacobian(bijection.forward, row, None if context is None else context[i])
        jacobian = jacobian[list(order)][:, list(order)]
        assert torch.equal(jacobian, jacobian.tril()), "a feature depends on one that comes after it"
        assert (jacobian.diagonal() > 0).all(), "a feature does not grow with itself"
        below = torch.ones_like(jacobian).tril(-1).bool()
        assert (jacobian[below] != 0).all(), "a feature does not depend on one that comes before it"


def context_matters(bijection: Bijection, x: Tensor, context: Tensor) -> None:
    """Another context gives another image, row by row."""
    z, _ = bijection(x, context)
    other, _ = bijection(x, context + 1.0)
    assert ((z - other).abs().flatten(1).amax(1) > 1e-6).all(), "the context is ignored"


def fused_is_one_by_one(fused: Callable[..., Any], layers: Sequence[Bijection], x: Tensor, context: Any = None) -> None:
    """A row of layers in one call, and their inverses from the last: events, log-determinants, every gradient."""
    wanted = [p for layer in layers for p in layer.parameters()]
    for inverse in (False, True):
        y = x.clone().requires_grad_()
        z, log_det = fused(y, context, inverse=inverse)
        alone, total = y, y.new_zeros(len(y))
        for layer in reversed(layers) if inverse else layers:
            alone, part = (layer.inverse if inverse else layer)(alone, context)
            total = total + part
        torch.testing.assert_close((z, log_det), (alone, total), rtol=1e-12, atol=1e-12)
        gradients, expected = (
            torch.autograd.grad((of.square().sum() + det.sum()), [y, *wanted], allow_unused=True)
            for of, det in ((z, log_det), (alone, total))
        )
        torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-10)
