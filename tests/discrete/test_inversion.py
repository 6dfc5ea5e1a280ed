"""What the inverses without a closed form share, on a Jacobian that is known."""

import pytest
import torch
from helpers import normal, rng

from discrete.bijections.inversion import gradients, rounding, solve_densely, views

ORDERS = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 2, 3, 0], [2, 0, 3, 1]]


def triangular(order: list[int]) -> torch.Tensor:
    """A matrix that is lower triangular when rows and columns come in this order."""
    L = normal(4, (4,), rng(0)).tril() + 3 * torch.eye(4, dtype=torch.float64)
    back = torch.tensor(order).argsort()
    return L[back][:, back]


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("shape", [(4,), (1, 2, 2)], ids=str)
def test_the_dense_solution_is_that_of_the_whole_system(order: list[int], shape: tuple[int, ...]) -> None:
    J, x, g = triangular(order), normal(3, shape, rng(1)).requires_grad_(), normal(3, shape, rng(2))
    image = (x.flatten(1) @ J.mT).reshape(x.shape)
    v = solve_densely(image, x, g, torch.tensor(order))
    torch.testing.assert_close(v.flatten(1) @ J, g.flatten(1))


def test_the_dense_solution_has_a_graph() -> None:
    """v = g/(2 x) of z = x²: dv/dx = -g/(2 x²)."""
    x, g = normal(3, (1,), rng(3)).requires_grad_(), normal(3, (1,), rng(4))
    v = solve_densely(x.square(), x, g, torch.tensor([0]))
    (slope,) = torch.autograd.grad(v.sum(), x)
    torch.testing.assert_close(slope, -g / (2 * x.detach().square()))


def test_gradients_of_views_leave_out_what_does_not_ask() -> None:
    x, frozen = torch.ones(2, requires_grad=True), torch.ones(2)
    a, b, none = views([x, frozen, None])
    found = gradients(3 * a * b, [a, b, none], torch.tensor([1.0, 2.0]))
    assert found[1:] == [None, None]
    torch.testing.assert_close(found[0], torch.tensor([3.0, 6.0]))


def test_rounding_is_of_the_largest_finite_value_or_of_one() -> None:
    z = torch.tensor([[0.1, -0.2], [5.0, float("inf")]])
    torch.testing.assert_close(rounding(z), 100 * torch.finfo(z.dtype).eps * torch.tensor([1.0, 5.0]))
