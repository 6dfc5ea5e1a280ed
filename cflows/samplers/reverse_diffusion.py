from dataclasses import dataclass

from torch import Tensor

from cflows.samplers.sampler import Noise, OneStepSampler, Orders
from cflows.sde import SDE, Rows, Score
from core.shapes import align


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(OneStepSampler):
    """x ← (2 - α_{t|s}) x + σ_{t|s}² s(x, t) + σ_{t|s} ε with the kernel x_t | x_s ~ N(α_{t|s} x_s, σ_{t|s}² I).

    The process is discretized forwards, here exactly, and that discretization is reversed to first order in its step.
    One score evaluation a step. For α_{t|s} = 1, as with VE, this is `AncestralSampling(variance="transition")`.

    References:
        Song et al., 2021, app. E, eq. 46 with f_i(x) = (α_{t|s} - 1) x and G_i = σ_{t|s} I. Their code takes √(1 - β_i)
        and √β_i of VP from a table of steps at whose times the score is not asked, an error that no number of steps
        removes; here the kernel and the score have one grid.

    Checked by tests/cflows/test_solvers_stochastic.py (its exact bias on Gaussian data, its orders).

    Attributes:
        steps: number of steps.
        t_min: last time, above 0 for a score network.
        spacing: how the times are spread, as in `time_grid`.
        denoise: leave out the noise of the last step.

    Raises:
        ValueError: fewer than one step, t_min outside [0, 1), or an unknown spacing.

    Example:
        >>> import torch
        >>> from cflows import VESDE
        >>> x = 50 * torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
        >>> score = lambda x, t: -x / (9 + VESDE().marginal(t)[1] ** 2)  # of N(0, 9) data
        >>> x = ReverseDiffusion(steps=200)(score, VESDE(), x, generator=torch.Generator().manual_seed(1))
        >>> round(x.std().item())
        3
    """

    @property
    def orders(self) -> Orders:
        """Strong 1, weak 1."""
        return Orders(1.0, 1.0)

    def step(self, score: Score, sde: SDE, x: Rows, t: Tensor, s: Tensor, noise: Noise) -> Rows:
        """One step from t to s."""
        alpha, sigma = (align(part, x) for part in sde.transition_kernel(s, t))
        return (2 - alpha) * x + sigma.square() * score(x, t) + sigma * noise(x)
