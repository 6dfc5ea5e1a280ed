"""What a distillation objective keeps, on Gaussians, whose divergence and its gradient are known in closed form.

Every function takes a builder `(student, teacher) -> objective`, so that a wrong one can be handed in; the objective is
called with a number of draws.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.distributions import kl_divergence as closed_form

from discrete import Flow

Build = Callable[[Flow, Flow], nn.Module]
BLOCKS, DRAWS = 64, 1000


def gaussian(flow: Flow, context: Tensor | None = None) -> MultivariateNormal:
    """The law of a flow with z = W x + b given one context `(features,)`: N(-W⁻¹ b, (Wᵀ W)⁻¹), differentiable."""
    D = flow.event_shape[0]
    corners = torch.cat([torch.zeros(1, D), torch.eye(D)]).double()
    z, _ = flow.bijection(corners, None if context is None else context.expand(D + 1, -1))
    W = (z[1:] - z[0]).T
    return MultivariateNormal(-torch.linalg.solve(W, z[0]), precision_matrix=W.T @ W)


def exact_divergence(student: Flow, teacher: Flow, context: Tensor | None = None) -> Tensor:
    """KL(student ‖ teacher), nats."""
    return closed_form(gaussian(student, context), gaussian(teacher, context))


def value_is_the_divergence(build: Build, student: Flow, teacher: Flow, generator: torch.Generator) -> None:
    """The mean of the loss over blocks of draws lies within four standard errors."""
    objective, exact = build(student, teacher), exact_divergence(student, teacher).detach()
    losses = torch.stack([objective(DRAWS, generator=generator).detach() for _ in range(BLOCKS)])
    within_four_errors(losses, exact)


def gradient_is_that_of_the_divergence(build: Build, student: Flow, teacher: Flow, generator: torch.Generator) -> None:
    """The mean gradient over blocks of draws, in every parameter of the student, lies within four standard errors."""
    exact = gradient(exact_divergence(student, teacher), student)
    within_four_errors(gradients(build(student, teacher), student, generator), exact)


def vanishes_draw_by_draw_at_the_optimum(build: Build, student: Flow, generator: torch.Generator) -> None:
    """One draw at a time, the loss is zero where the teacher is the student."""
    objective = build(student, deepcopy(student))
    losses = torch.stack([objective(1, generator=generator).detach() for _ in range(50)])
    torch.testing.assert_close(losses, torch.zeros_like(losses), rtol=0, atol=1e-11)


def gradient_vanishes_draw_by_draw_at_the_optimum(build: Build, student: Flow, generator: torch.Generator) -> None:
    """One draw at a time, the gradient is zero where the teacher is the student: it has no variance there."""
    found = gradients(build(student, deepcopy(student)), student, generator, draws=1)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-10)


def teacher_is_left_alone(build: Build, student: Flow, teacher: Flow, generator: torch.Generator) -> None:
    """Parameters, gradients, flags and modes of the teacher are as before, one parameter frozen and one not."""
    first, *rest = teacher.parameters()
    first.requires_grad_(False)
    for parameter in rest:
        parameter.grad = torch.ones_like(parameter)
    teacher.train()
    next(teacher.children()).eval()
    before = _state(teacher)
    build(student, teacher)(10, generator=generator).backward()
    for old, new in zip(before, _state(teacher), strict=True):
        assert torch.equal(old, new), f"the teacher has changed: {old} is now {new}"
    assert all(p.grad is not None for p in student.parameters()), "a parameter of the student has no gradient"


def gradient(value: Tensor, module: nn.Module) -> Tensor:
    """The gradient of a scalar in all parameters, as one vector."""
    parts = torch.autograd.grad(value, list(module.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def gradients(
    objective: Callable[..., Tensor], student: Flow, generator: torch.Generator, *, draws: int = DRAWS
) -> Tensor:
    """Independent gradients of the loss, `(blocks, parameters)`."""
    return torch.stack([gradient(objective(draws, generator=generator), student) for _ in range(BLOCKS)])


def within_four_errors(found: Tensor, exact: Tensor) -> None:
    """The mean over blocks is `exact`, in every entry."""
    std, mean = torch.std_mean(found, 0)
    distance = (mean - exact).abs() / (std / len(found) ** 0.5 + 1e-10)
    assert distance.max() < 4, f"{distance.max():.1f} standard errors off: {mean} for {exact}"


def _state(module: nn.Module) -> list[Tensor]:
    flags = [torch.tensor([part.training for part in module.modules()])]
    flags.append(torch.tensor([p.requires_grad for p in module.parameters()]))
    values = [p.detach().clone() for p in module.parameters()]
    return flags + values + [torch.empty(0) if p.grad is None else p.grad.clone() for p in module.parameters()]
