"""What every score-matching objective keeps, on Gaussian data with linear scores, on a mixture, and as a module.

`Build` takes a score to a loss. On the line s = -A (x - m) and data N(m, Σ) every loss is a trace in closed form; on a
batch whose own mean and covariance are m and Σ it is that number, not an estimate of it.
"""

import copy
import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from core import GaussianMixture

Score = Callable[..., Tensor]
Build = Callable[[Score], nn.Module]

A = torch.tensor([[1.4, -0.6, 0.2], [0.5, 0.9, -0.3], [-0.4, 0.7, 1.8]], dtype=torch.float64)  # not symmetric
MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.3, -0.2], [0.3, 0.5, 0.1], [-0.2, 0.1, 0.8]], dtype=torch.float64)
PRECISION = torch.linalg.inv(COVARIANCE)
HALF_FISHER = 0.5 * PRECISION.trace().item()  # ½ E ‖∇ log p‖²


def gaussian_batch(rows: int, generator: torch.Generator) -> Tensor:
    """Rows whose mean and covariance (over n, not n - 1) are those of the law to rounding."""
    z = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    z = z - z.mean(0)
    whitener = torch.linalg.inv(torch.linalg.cholesky(z.T @ z / rows))
    return MEAN + z @ (torch.linalg.cholesky(COVARIANCE) @ whitener).T


def linear_score(a: Tensor) -> Score:
    return lambda x, *conditions: -(x - MEAN) @ a.T


def explicit_value(a: Tensor) -> float:
    """½ tr((A - Σ⁻¹) Σ (A - Σ⁻¹)ᵀ)."""
    return 0.5 * ((a - PRECISION) @ COVARIANCE @ (a - PRECISION).T).trace().item()


def implicit_value(a: Tensor) -> float:
    """½ tr(A Σ Aᵀ) - tr A."""
    return (0.5 * (a @ COVARIANCE @ a.T).trace() - a.trace()).item()


def denoising_value(a: Tensor, sigma: float) -> float:
    """½ tr(A (Σ + σ² I) Aᵀ) - tr A + D/(2σ²)."""
    return implicit_value(a) + 0.5 * sigma**2 * a.square().sum().item() + 3 / (2 * sigma**2)


def slips(a: Tensor) -> list[float]:
    """The implicit loss with its trace subtracted, with no ½ or a quarter, with directions of unit length."""
    square, trace = (a @ COVARIANCE @ a.T).trace().item(), a.trace().item()
    return [0.5 * square + trace, square - trace, 0.25 * square - trace, implicit_value(a) / 3]


def value_is(build: Build, expected: Callable[[Tensor], float], *, tolerance: float = 1e-10) -> None:
    """On the batch of exact moments the loss is the closed form, at A, at 0 and at Σ⁻¹."""
    batch = gaussian_batch(500, torch.Generator().manual_seed(0))
    for a in (A, torch.zeros_like(A), PRECISION):
        found = build(linear_score(a))(batch).item()
        assert abs(found - expected(a)) < tolerance, f"the loss is {found:.12f}, not {expected(a):.12f}"


def value_is_near(
    build: Build, expected: Callable[[Tensor], float], wrong: Iterable[float] = (), *, rows: int = 30_000
) -> None:
    """Within five standard errors, on draws that tell each value of `wrong` by more than twenty."""
    generator = torch.Generator().manual_seed(1)
    loss, groups = build(linear_score(A)), gaussian_batch(rows, generator).split(rows // 40)
    with torch.no_grad():
        losses = torch.stack([loss(group, generator=generator) for group in groups])
    found, error = losses.mean().item(), losses.std().item() / len(groups) ** 0.5
    off = (found - expected(A)) / error
    assert abs(off) < 5, f"the loss is {found:.4f}, {off:.1f} standard errors from {expected(A):.4f}"
    for value in wrong:
        assert abs(value - expected(A)) > 20 * error, f"these rows do not tell {value:.4f} from {expected(A):.4f}"


def minimum_is_the_precision(build: Build) -> None:
    """At A = Σ⁻¹ the loss is -½ tr Σ⁻¹, its gradient in A vanishes on the batch itself, and every way leads up."""
    generator = torch.Generator().manual_seed(2)
    a, batch = PRECISION.clone().requires_grad_(), gaussian_batch(500, generator)
    value = build(linear_score(a))(batch)
    (gradient,) = torch.autograd.grad(value, a)
    assert abs(value.item() + HALF_FISHER) < 1e-10, f"the minimum is {value.item():.12f}, not {-HALF_FISHER:.12f}"
    assert gradient.abs().max() < 1e-10, f"the gradient at the minimum is {gradient.abs().max().item():g}"
    for step in 0.1 * torch.randn(5, 3, 3, generator=generator, dtype=torch.float64):
        assert build(linear_score(a.detach() + step))(batch) > value, "there is something below the minimum"


class SmoothNet(nn.Module):
    """A small score of the plane, tanh inside; takes what its caller hands on behind x as features."""

    def __init__(self, conditions: int = 0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2 + conditions, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, *conditions: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(torch.cat([x, *(c.reshape(len(x), -1) for c in conditions)], 1))))


def parameter_gradient(loss: Tensor, net: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


def noisy_explicit(
    net: Score, mixture: GaussianMixture, batch: Tensor, generator: torch.Generator, levels: dict[float, float]
) -> Tensor:
    """Σ w ½ E ‖s - ∇ log p_σ‖² over levels σ of weight w, on noise of its own; σ is handed on where there are many."""
    total = torch.zeros((), dtype=batch.dtype)
    for sigma, weight in levels.items():
        std = batch.new_tensor(sigma)
        x = batch + sigma * torch.randn(batch.shape, generator=generator, dtype=batch.dtype)
        s = net(x) if len(levels) == 1 else net(x, std.expand(len(x)))
        truth = mixture.perturbed_score(x, torch.ones_like(std), std)
        total = total + weight * 0.5 * (s - truth).square().sum(1).mean()
    return total


def gradient_is_that_of_explicit(
    build: Build,
    net: nn.Module,
    mixture: GaussianMixture,
    levels: dict[float, float],
    *,
    rows: int = 1000,
    batches: int = 40,
) -> None:
    """Over batches of one mixture, the difference of the two gradients is 0 within five errors at every parameter.

    `levels` holds the noise σ and its weight; {0: 1} is the data itself.
    """
    generator, loss = torch.Generator().manual_seed(3), build(net)
    differences, gradients = [], []
    for _ in range(batches):
        batch = mixture.sample((rows,), generator=generator)
        found = parameter_gradient(loss(batch, generator=generator), net)
        gradients.append(parameter_gradient(noisy_explicit(net, mixture, batch, generator, levels), net))
        differences.append(found - gradients[-1])
    difference = torch.stack(differences)
    error = difference.std(0) / batches**0.5
    z = (difference.mean(0) / error).abs().max().item()
    assert z < 5, f"a gradient is {z:.1f} standard errors from that of explicit score matching"
    seen = (torch.stack(gradients).mean(0) / error).abs().max().item()
    assert seen > 20, f"these batches tell the gradient from 0 by {seen:.1f} standard errors only"


def converges_to(
    build: Callable[[float], nn.Module], limit: nn.Module, batch: Tensor, *, order: float = 2.0
) -> list[float]:
    """With the same directions the difference to the limit falls as δ^order, within 0.1; returns the differences."""
    value = limit(batch, generator=torch.Generator().manual_seed(4)).item()
    errors = [
        abs(build(delta)(batch, generator=torch.Generator().manual_seed(4)).item() - value)
        for delta in (0.02, 0.01, 0.005)
    ]
    for coarse, fine in pairwise(errors):
        measured = math.log2(coarse / fine)
        assert abs(measured - order) < 0.1, f"the error falls with order {measured:.3f}, not {order} (errors {errors})"
    return errors


def target_gets_no_gradient(build: Callable[[Score, nn.Module], nn.Module]) -> None:
    """Neither a gradient nor a place among the parameters, for a target that has some and hangs on the same graph."""
    torch.manual_seed(0)
    score, target = SmoothNet().double(), SmoothNet().double()
    loss = build(score, target)
    assert {id(p) for p in loss.parameters()} == {id(p) for p in score.parameters()}, "not the score's parameters"
    loss(torch.ones(4, 2, dtype=torch.float64)).backward()
    assert all(p.grad is not None for p in score.parameters()), "the score gets no gradient"
    assert all(p.grad is None for p in target.parameters()), "the target gets a gradient"


def is_clean(build: Build, score: Callable[[], nn.Module], batch: Tensor, context: Tensor) -> None:
    """A scalar that the generator decides alone, with gradients and without; copies hold parameters of their own."""
    module = score().double()
    loss = build(module)
    assert {id(p) for p in loss.parameters()} == {id(p) for p in module.parameters()}, "not the score's parameters"
    before = batch.clone()

    def run(loss: nn.Module, seed: int = 0) -> Tensor:
        return loss(batch, context, generator=torch.Generator().manual_seed(seed))

    value = run(loss)
    assert value.shape == (), f"the loss has the shape {tuple(value.shape)}"
    assert value.dtype == batch.dtype
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters()), "a gradient is missing"
    state = torch.get_rng_state()
    assert torch.equal(run(loss), value), "equal generators, other losses"
    assert torch.equal(state, torch.get_rng_state()), "the global generator was moved"
    with torch.no_grad():
        quiet = run(loss)
    assert not quiet.requires_grad, "a graph under no_grad"
    torch.testing.assert_close(quiet, value.detach(), rtol=1e-12, atol=1e-12)
    copied = copy.deepcopy(loss)
    shared = {id(p) for p in copied.parameters()} & {id(p) for p in loss.parameters()}
    assert not shared, "a copy shares parameters"
    assert torch.equal(run(copied), value), "a copy has another loss"
    assert torch.equal(batch, before), "the batch was changed in place"
    assert not batch.requires_grad, "requires_grad was switched on in the caller's tensor"


def hands_its_context_on(build: Build, batch: Tensor, context: Tensor) -> None:
    """score(..., context) gives the loss of the score that has it built in."""
    inside = build(lambda x, *conditions: torch.tanh(x) - context * x)
    handed = build(lambda x, *conditions: torch.tanh(x) - conditions[-1] * x)
    run = partial(torch.Generator().manual_seed, 5)
    expected, found = inside(batch, generator=run()), handed(batch, context, generator=run())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def shape_of_the_event_does_not_matter(build: Build, batch: Tensor, event: tuple[int, ...]) -> None:
    """An image gives the loss of its vector: squares and traces are summed over all event dimensions."""

    def flat(x: Tensor, *_: Tensor) -> Tensor:
        return torch.tanh(x @ torch.linspace(-1, 1, x.shape[1] ** 2, dtype=x.dtype).reshape(x.shape[1], -1)) * x

    def shaped(x: Tensor, *_: Tensor) -> Tensor:
        return flat(x.flatten(1)).reshape(x.shape)

    run = partial(torch.Generator().manual_seed, 6)
    vector, image = build(flat)(batch, generator=run()), build(shaped)(batch.reshape(-1, *event), generator=run())
    torch.testing.assert_close(image, vector, rtol=1e-12, atol=1e-12)
