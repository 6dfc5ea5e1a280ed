from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cflows.noise_ladder import as_ladder
from cflows.samplers.langevin import check_walk, langevin
from cflows.samplers.sampler import Callback
from cflows.sde import Rows
from core.rng import Rng


@torch.no_grad()
def annealed_langevin(
    score: Callable[[Rows, Tensor], Rows],
    sigmas: Sequence[float] | Tensor,
    x: Rows,
    *,
    step_size: float,
    steps: int,
    denoise: bool = False,
    generator: Rng = None,
    callback: Callback | None = None,
) -> Rows:
    """Langevin down a ladder of noise: for σ₁ > ... > σ_L, T times x ← x + (αᵢ/2) s(x, σᵢ) + √αᵢ z, αᵢ = ε σᵢ²/σ_L².

    Each level starts where the one before it ended, and is `langevin` of step size αᵢ/2 on p ∗ N(0, σᵢ² I): wide noise
    joins the modes and settles their weights, little noise their shape. The law at the end is near p ∗ N(0, σ_L² I);
    with `denoise` a last x ← x + σ_L² s(x, σ_L), the mean of the data given x, takes the noise out.

    References:
        Song and Ermon, "Generative modeling by estimating gradients of the data distribution", 2019, algorithm 1.
        Song and Ermon, "Improved techniques for training score-based generative models", 2020, algorithm 1, and
        Jolicoeur-Martineau et al., "Adversarial score matching and improved sampling", 2021, section 2, for `denoise`.

    Checked by tests/cflows/test_langevin.py (its exact law on Gaussians, the weights of two modes).

    Args:
        score: s(x, σ), like x, with σ `(rows,)` like x in dtype and device.
        sigmas: the ladder, positive and strictly falling.
        x: where the chains start, `(rows, *event)`, each row a chain of its own.
        step_size: ε = α_L, positive, twice the step of `langevin` at the last level; `matched_step_size` finds one.
        steps: T, steps a level, each one score evaluation.
        denoise: whether the noise of the last level is taken out.
        generator: draws the noise.
        callback: called with (step, x) after each of the L·T steps, and once more when the noise is taken out.

    Returns:
        Where the chains end, like `x`, without gradient.

    Raises:
        ValueError: a ladder that is not positive and falling, a step size that is not positive, or no steps.

    Example:
        >>> score = lambda x, sigma: -(x - 3.0) / (0.25 + sigma.square()[:, None])  # of N(3, ½²) data
        >>> x, rng = torch.zeros(10_000, 1), torch.Generator().manual_seed(0)
        >>> x = annealed_langevin(score, [2.0, 1.0, 0.1], x, step_size=1e-2, steps=50, generator=rng)
        >>> round(x.mean().item(), 1)
        3.0
    """
    check_walk("annealed_langevin", step_size, steps)
    ladder: list[float] = as_ladder(torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")).tolist()
    for i, sigma in enumerate(ladder):
        alpha = step_size * (sigma / ladder[-1]) ** 2
        x = langevin(
            _at(score, x.new_full((len(x),), sigma)),
            x,
            step_size=alpha / 2,
            steps=steps,
            generator=generator,
            callback=_later(callback, i * steps),
        )
    if denoise:
        x = x + ladder[-1] ** 2 * score(x, x.new_full((len(x),), ladder[-1]))
        if callback is not None:
            callback(len(ladder) * steps, x)
    return x


def _at(score: Callable[[Rows, Tensor], Rows], sigma: Tensor) -> Callable[[Rows], Rows]:
    return lambda x: score(x, sigma)


def _later(callback: Callback | None, offset: int) -> Callback | None:
    """A callback that counts its steps from the offset."""
    return None if callback is None else lambda step, x: callback(offset + step, x)
