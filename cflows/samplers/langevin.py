from collections.abc import Callable

import torch

from cflows.samplers.sampler import Callback
from cflows.sde import Rows
from core.rng import Rng, randn


@torch.no_grad()
def langevin(
    score: Callable[[Rows], Rows],
    x: Rows,
    *,
    step_size: float,
    steps: int,
    generator: Rng = None,
    callback: Callback | None = None,
) -> Rows:
    """Unadjusted Langevin x ← x + ε s(x) + √(2ε) z, z ~ N(0, I): Euler steps of dx = ∇ log p dt + √2 dw.

    Its stationary law is not p: on N(0, s²) the variance is s²/(1 - ε/(2s²)), an error linear in ε, and from
    ε = 2s² on the chain diverges. `mala` has no such error.

    Half of the literature counts ε/2 and √ε for ε and √(2ε): twice this step size.

    References:
        Roberts and Tweedie, "Exponential convergence of Langevin distributions and their discrete approximations",
        1996.
        Song and Ermon, "Generative modeling by estimating gradients of the data distribution", 2019, eq. 4 (with ε/2).

    Checked by tests/cflows/test_langevin.py (its exact law on Gaussians).

    Args:
        score: s, like x; any callable: a network, `GradientScore` of a density.
        x: where the chains start, `(rows, *event)`, each row a chain of its own.
        step_size: ε, positive, in the unit of x squared.
        steps: number of steps, each one score evaluation.
        generator: draws the noise.
        callback: called with (step, x) after each step, such as a `Trajectory`.

    Returns:
        Where the chains end, like `x`, without gradient.

    Raises:
        ValueError: a step size that is not positive, or no steps.

    Note:
        Chains cross no region where the density vanishes, whatever the score: see `annealed_langevin`.

    Example:
        >>> x = torch.zeros(10_000, 1)
        >>> x = langevin(lambda x: -x, x, step_size=0.5, steps=100, generator=torch.Generator().manual_seed(0))
        >>> round(x.var().item(), 1)  # 1/(1 - 0.25)
        1.3
    """
    check_walk("langevin", step_size, steps)
    x = x.detach()
    for step in range(steps):
        z = randn(x.shape, generator, like=x)
        x = x + step_size * score(x) + (2 * step_size) ** 0.5 * z
        if callback is not None:
            callback(step, x)
    return x


def check_walk(owner: str, step_size: float, steps: int) -> None:
    """Steps that go somewhere.

    Raises:
        ValueError: a step size that is not positive, or no steps.
    """
    if not step_size > 0 or steps < 1:
        raise ValueError(f"{owner} needs a positive step_size and 1 step or more, but has {step_size} and {steps}.")
