"""What causal networks and the layers built on them keep, in float64."""

import torch
from torch import Tensor

from core.nets import CausalTransformer
from discrete import Bijection, PatchAutoregressive


def sweep_equals_the_pass(network: CausalTransformer, x: Tensor, context: Tensor | None = None) -> None:
    """Token by token with the cache the outputs are those of one pass."""
    seen = []

    def choose(i: int, y: Tensor) -> Tensor:
        seen.append(y)
        return x[:, i]

    assert torch.equal(network.sweep(choose, len(x), context), x), "the sweep returns other tokens than were chosen"
    torch.testing.assert_close(torch.stack(seen, 1), network(x, context).detach(), rtol=1e-12, atol=1e-12)


def outputs_see_the_tokens_before_alone(network: CausalTransformer, x: Tensor, context: Tensor | None = None) -> None:
    """The Jacobian of one row's outputs is zero, exactly, in a token and those behind it, and in no token before it."""
    context = None if context is None else context[:1]
    jacobian = torch.autograd.functional.jacobian(lambda v: network(v[None], context)[0], x[0])
    sees = jacobian.abs().amax((1, 3)) > 0
    tokens = torch.arange(len(sees))
    assert torch.equal(sees, tokens[:, None] > tokens), f"output i sees token j where True: {sees.tolist()}"


def jacobian_is_block_triangular(
    bijection: Bijection, x: Tensor, context: Tensor | None = None, *, token: Tensor
) -> None:
    """∂z_a/∂x_b is zero, exactly, unless a = b or b belongs to a token before that of a, and then it is not.

    Args:
        bijection: the layer.
        x: `(rows, *event)`.
        context: `(rows, features)`.
        token: place of each value's token, in the shape of the event.
    """
    context = None if context is None else context[:1]
    jacobian = torch.autograd.functional.jacobian(lambda v: bijection(v[None], context)[0].flatten(), x[0])
    size, token = token.numel(), token.flatten()
    expected = (token[:, None] > token) | torch.eye(size, dtype=torch.bool)
    assert torch.equal(jacobian.reshape(size, size) != 0, expected), "the Jacobian has another structure"


def every_value_sees_every_value(bijection: Bijection, x: Tensor) -> None:
    """No entry of the Jacobian is zero: what one order of the tokens hides another one shows."""
    jacobian = torch.autograd.functional.jacobian(lambda v: bijection(v[None])[0].flatten(), x[0])
    hidden = int((jacobian == 0).sum())
    assert hidden == 0, f"{hidden} pairs of values never meet"


def jacobi_tells_the_truth(layer: PatchAutoregressive, z: Tensor, *, tolerance: float) -> None:
    """The residual is that of the x returned, within the tolerance, after T passes at most; a row alone takes as many.

    The tolerance has to leave something undone, so that a residual of 0 is a lie.
    """
    found = layer.invert(z, mode="jacobi", tolerance=tolerance)
    T = int(layer.conditioner.degrees.max())
    true = (layer(found.x)[0] - z).abs().flatten(1).amax(1)
    assert true.max() > 1e-9, "nothing was left undone: choose another tolerance"
    torch.testing.assert_close(found.residual, true.detach(), rtol=0, atol=1e-15)
    assert (true <= tolerance).all(), f"a row rests at {true.max().item():g}, above its tolerance"
    assert (found.iterations <= T).all(), f"{found.iterations.tolist()} passes for {T} tokens"
    for i in range(len(z)):
        alone = layer.invert(z[i : i + 1], mode="jacobi", tolerance=tolerance)
        assert alone.iterations[0] == found.iterations[i], "a row alone takes another number of passes"
        torch.testing.assert_close(alone.x[0], found.x[i], rtol=1e-12, atol=1e-12)
