"""What every density model keeps, in float64; each function raises AssertionError where the claim is broken."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from core import DensityModel
from discrete import Flow

Reference = Callable[[DensityModel, np.ndarray], np.ndarray]
Box = tuple[float, float] | None
BATCHES = ((), (0,), (1,), (3,), (2, 3))


def matches_reference(model: DensityModel, reference: Reference, x: Tensor, *, tolerance: float = 1e-10) -> None:
    """log_prob equals the closed form of another library."""
    expected = torch.as_tensor(reference(model, x.numpy()))
    torch.testing.assert_close(model.log_prob(x).detach(), expected, rtol=tolerance, atol=tolerance)


def takes_any_batch_shape(model: DensityModel, draw: Callable[[int], Tensor], context: Tensor | None = None) -> None:
    """Batch shapes (), (0,), (1,), (3,), (2, 3): as if rows were asked one by one; context broadcasts."""
    x = draw(6)
    flat = model.log_prob(x, None if context is None else context[0])
    assert flat.shape == (6,), f"6 rows give {tuple(flat.shape)}"
    for batch in BATCHES:
        count = math.prod(batch)
        result = model.log_prob(x[:count].reshape(*batch, *model.event_shape), None if context is None else context[0])
        assert result.shape == batch, f"batch {batch} gives {tuple(result.shape)}"
        assert result.dtype == x.dtype
        torch.testing.assert_close(result.flatten(), flat[:count], rtol=1e-12, atol=1e-12)
    if context is not None:
        table = model.log_prob(x[:2, None].expand(2, 3, *model.event_shape), context[:3])
        each = [[model.log_prob(x[i], context[j]) for j in range(3)] for i in range(2)]
        torch.testing.assert_close(table, torch.stack([torch.stack(row) for row in each]), rtol=1e-12, atol=1e-12)


def estimate_agrees(
    model: DensityModel,
    x: Tensor,
    context: Tensor | None = None,
    *,
    exact: bool,
    generator: Callable[[], torch.Generator],
) -> None:
    """The estimate's first field is log_prob; errors have its shape, and are zero for an exact density."""
    estimate = model.estimate_log_prob(x, context, generator=generator())
    log_prob = model.log_prob(x, context, generator=generator())
    torch.testing.assert_close(estimate.log_prob, log_prob, rtol=1e-12, atol=1e-12)
    errors = (estimate.std_error, estimate.solver_error, estimate.truncation)
    for error in errors:
        assert error is not None, "an error is missing"
        assert error.shape == log_prob.shape, f"an error of shape {tuple(error.shape)}"
        assert not exact or torch.count_nonzero(error) == 0, "an exact density reports an error"
    assert estimate.nfe is not None
    assert exact == bool((estimate.nfe == 0).all()), f"nfe is {estimate.nfe}"


def quadrature(model: DensityModel, *, points: int, box: Box) -> tuple[Tensor, Tensor]:
    """Points `(n, D)` and their weights `(n,)`, D = 1 or 2, by the midpoint rule, which never asks for the ends.

    Without a box the rule is in u, x = 3 sinh u, out to |x| = 164.
    """
    low, high = (-4.7, 4.7) if box is None else box
    step = (high - low) / points
    u = low + step * (torch.arange(points, dtype=torch.float64) + 0.5)
    axis, weight = (3 * u.sinh(), 3 * u.cosh() * step) if box is None else (u, torch.full_like(u, step))
    (size,) = model.event_shape
    grid = torch.cartesian_prod(*[axis] * size).reshape(-1, size)
    return grid, torch.cartesian_prod(*[weight] * size).reshape(-1, size).prod(1)


def integrates_to_one(
    model: DensityModel, context: Tensor | None = None, *, points: int, box: Box = None, tolerance: float
) -> None:
    """∫ p(x | context) dx = 1 within the error of the quadrature."""
    x, weight = quadrature(model, points=points, box=box)
    with torch.no_grad():
        mass = (model.log_prob(x, context).exp() * weight).sum().item()
    assert abs(mass - 1) <= tolerance, f"the density integrates to {mass:.8f}"


def samples_follow_the_density(
    model: DensityModel,
    context: Tensor | None = None,
    *,
    points: int,
    count: int,
    generator: torch.Generator,
    box: Box = None,
) -> None:
    """Averages of bounded functions over draws and under the density agree within five standard errors."""
    x, weight = quadrature(model, points=points, box=box)
    mass = model.log_prob(x, context).detach().exp() * weight
    draws = model.sample((count,), context=context, generator=generator)
    for name, value in _bounded(draws).items():
        expected = (_bounded(x)[name] * mass).sum().item()
        allowance = 5 * value.std().item() / count**0.5 + 2e-3
        found = value.mean().item()
        assert abs(found - expected) <= allowance, f"E {name} is {found:.5f} over draws, {expected:.5f} in the density"


def _bounded(x: Tensor) -> dict[str, Tensor]:
    """Functions of `(n, D)` with values in [-1, 1] that see location, scale, asymmetry and dependence."""
    first, last = x[:, 0], x[:, -1]
    return {
        "tanh x": first.tanh(),
        "tanh 5(x - ½)": (5 * (last - 0.5)).tanh(),
        "cos x": first.cos(),
        "exp(-x²)": (-last.square()).exp(),
        "tanh x tanh y": first.tanh() * last.tanh(),
    }


def sample_is_clean(
    model: DensityModel, context: Tensor | None = None, *, generator: Callable[[], torch.Generator]
) -> None:
    """Shape, dtype, no gradient; the generator alone decides, and the global one is neither read nor moved."""
    for batch in BATCHES:
        one = None if context is None else context[0]
        x = model.sample(batch, context=one, generator=generator())
        assert x.shape == (*batch, *model.event_shape), f"sample({batch}) has shape {tuple(x.shape)}"
        assert x.dtype == model.anchor.dtype
        assert not x.requires_grad, "a sample carries gradient"
        state = torch.get_rng_state()
        with torch.random.fork_rng():
            torch.manual_seed(12345)
            again = model.sample(batch, context=one, generator=generator())
        assert torch.equal(x, again), "the same generator gives other draws"
        assert torch.equal(state, torch.get_rng_state()), "the global generator was moved"
    with torch.random.fork_rng():
        before = torch.get_rng_state()
        model.sample((2,), context=one, generator=generator())
        assert torch.equal(before, torch.get_rng_state()), "drawing with a generator moved the global one"
    used = generator()
    first, second = (model.sample((4,), context=one, generator=used) for _ in range(2))
    assert not torch.equal(first, second), "two draws in a row are equal"


def rsample_agrees(
    model: DensityModel, context: Tensor | None = None, *, generator: Callable[[], torch.Generator]
) -> None:
    """log q of rsample_and_log_prob is log_prob at the draws, and so is its gradient in every parameter."""
    for batch in ((), (3,), (2, 3)):
        one = None if context is None else context[0]
        x, log_q = model.rsample_and_log_prob(batch, context=one, generator=generator())
        assert x.shape == (*batch, *model.event_shape)
        assert torch.equal(x.detach(), model.sample(batch, context=one, generator=generator())), "sample disagrees"
        log_p = model.log_prob(x, one)
        torch.testing.assert_close(log_q, log_p, rtol=1e-9, atol=1e-9)
        parameters = list(model.parameters())
        if parameters:
            ours, theirs = (
                torch.autograd.grad(
                    value.sum(), parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                for value in (log_q, log_p)
            )
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
            reached = torch.autograd.grad(x.sum(), parameters, allow_unused=True, materialize_grads=True)
            assert any(g.count_nonzero() for g in reached), "draws carry no gradient of the parameters"


def change_of_variables_holds(flow: Flow, x: Tensor, context: Tensor | None = None, *, tolerance: float) -> None:
    """log p(x) = log p_base(f(x)) + log|det df/dx| with the Jacobian by autograd."""
    base = flow.base.log_prob(flow.bijection(x, context)[0], context)
    for i, row in enumerate(x):
        one = None if context is None else context[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda y, c=one: flow.bijection(y[None], c)[0].flatten(), row)
        expected = base[i] + torch.linalg.slogdet(jacobian.reshape(row.numel(), -1)).logabsdet
        torch.testing.assert_close(
            flow.log_prob(row, None if one is None else one[0]), expected, rtol=0, atol=tolerance
        )


def distribution_is_torch(
    flow: Flow, x: Tensor, context: Tensor | None = None, *, generator: Callable[[], torch.Generator]
) -> None:
    """distribution() is a torch Distribution: shapes, values and draws are those of the flow."""
    law = flow.distribution(context)
    batch = () if context is None else context.shape[:-1]
    assert isinstance(law, Distribution)
    assert law.batch_shape == batch
    assert law.event_shape == flow.event_shape
    torch.testing.assert_close(law.log_prob(x), flow.log_prob(x, context), rtol=1e-12, atol=1e-12)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        draws = law.sample((5,))
        torch.manual_seed(3)
        assert torch.equal(draws, flow.sample((5, *batch), context=context)), "draws differ from the flow's"
        moving = law.rsample((5,))
    assert draws.shape == moving.shape == (5, *batch, *flow.event_shape)
    assert moving.requires_grad == any(p.requires_grad for p in flow.parameters())
    assert not draws.requires_grad
