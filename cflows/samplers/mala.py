from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from cflows.samplers.langevin import check_walk
from cflows.samplers.sampler import Callback
from cflows.score import LogDensity, log_density_and_score
from cflows.sde import Rows
from core.rng import Rng, rand, randn
from core.shapes import align, sum_event


class Point(NamedTuple):
    """Where chains are, with log p̃ `(rows,)` in nats and ∇ log p̃ there."""

    x: Tensor
    log_density: Tensor
    score: Tensor


@torch.no_grad()
def mala(
    log_density: LogDensity,
    x: Rows,
    *,
    step_size: float,
    steps: int,
    generator: Rng = None,
    callback: Callback | None = None,
) -> tuple[Rows, Float[Tensor, " rows"]]:
    """Metropolis-adjusted Langevin: propose y ~ q(y|x) = N(x + ε ∇ log p̃(x), 2ε I), accept with probability a(x, y).

    a(x, y) = min(1, p̃(y) q(x|y)/(p̃(x) q(y|x))) makes p stationary at every ε; a chain stays where it is when its
    proposal is rejected, as all of those are whose log-density is not finite.

    References:
        Roberts and Tweedie, "Exponential convergence of Langevin distributions and their discrete approximations",
        1996, section 1.4.
        Roberts and Rosenthal, "Optimal scaling of discrete approximations to Langevin diffusions", 1998: in many
        dimensions the best acceptance is 0.574.

    Checked by tests/cflows/test_langevin.py.

    Args:
        log_density: log p̃(x), `(rows,)`, nats up to a constant, differentiable; `flow.log_prob` for one.
        x: where the chains start, `(rows, *event)`, each row a chain of its own; inside the support.
        step_size: ε as in `langevin`, positive.
        steps: number of steps, each one evaluation of log p̃ with its gradient; one more at the start.
        generator: draws the proposals and what decides on them.
        callback: called with (step, x) after each step, such as a `Trajectory`.

    Returns:
        Where the chains end, like `x`, without gradient, and the share of accepted proposals of each, `(rows,)`.

    Raises:
        ValueError: a step size that is not positive, or no steps.

    Note:
        A chain that starts where log p̃ or its score is NaN never moves: its acceptance is 0.

    Example:
        >>> x = torch.zeros(10_000, 1)
        >>> log_density = lambda x: -x.square().sum(1) / 2
        >>> x, acceptance = mala(log_density, x, step_size=0.5, steps=50, generator=torch.Generator().manual_seed(0))
        >>> round(x.var().item(), 1), round(acceptance.mean().item(), 1)
        (1.0, 0.9)
    """
    check_walk("mala", step_size, steps)
    here = evaluated(log_density, x.detach())
    accepted = x.new_zeros(len(x))
    for step in range(steps):
        z = randn(x.shape, generator, like=x)
        there = evaluated(log_density, here.x + step_size * here.score + (2 * step_size) ** 0.5 * z)
        u = rand((len(x),), generator, like=x)
        accept = (u.log() < log_acceptance(here, there, step_size=step_size)) & there.log_density.isfinite()
        here = Point(*(torch.where(align(accept, new), new, old) for new, old in zip(there, here, strict=True)))
        accepted += accept
        if callback is not None:
            callback(step, here.x)
    return here.x, accepted / steps


def evaluated(log_density: LogDensity, x: Tensor) -> Point:
    """The point with its log-density and score."""
    return Point(x, *log_density_and_score(log_density, x))


def log_acceptance(here: Point, there: Point, *, step_size: float) -> Float[Tensor, " rows"]:
    """log p̃(y) - log p̃(x) + log q(x|y) - log q(y|x), nats, of steps x → y; where above 0, accepted for sure.

    The proposal part is -½ ⟨s(x) + s(y), y - x + ½ ε (s(y) - s(x))⟩, without the difference of two large squares.
    """
    total, change = here.score + there.score, there.score - here.score
    proposal = -0.5 * sum_event(total * (there.x - here.x + 0.5 * step_size * change))
    return there.log_density - here.log_density + proposal
