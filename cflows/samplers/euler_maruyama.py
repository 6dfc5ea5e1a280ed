from dataclasses import dataclass

from torch import Tensor

from cflows.samplers.sampler import Noise, OneStepSampler, Orders
from cflows.sde import SDE, Rows, Score, reverse_drift
from core.shapes import align


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(OneStepSampler):
    """x ← x - [f(x, t) - g(t)² s(x, t)] Δt + g(t) √Δt ε, Δt = t - s, one score evaluation a step.

    References:
        Song et al., 2021, eq. 6 and section 4.1; the scheme is Kloeden and Platen, 1992, eq. 10.2.4. For noise that
        does not depend on x its strong order is 1, not ½ (ibid., section 10.3).

    Checked by tests/cflows/test_samplers.py (its exact bias on Gaussian data, its orders).

    Attributes:
        steps: number of steps.
        t_min: last time, above 0 for a score network.
        spacing: how the times are spread, as in `time_grid`.
        denoise: return the mean of the last step instead of a draw, as is usual for images.

    Raises:
        ValueError: fewer than one step, t_min outside [0, 1), or an unknown spacing.
    """

    @property
    def orders(self) -> Orders:
        """Strong 1, weak 1."""
        return Orders(1.0, 1.0)

    def step(self, score: Score, sde: SDE, x: Rows, t: Tensor, s: Tensor, noise: Noise) -> Rows:
        """One step from t to s."""
        dt = t - s
        mean = x - reverse_drift(score, sde, x, t) * dt
        return mean + align(sde.diffusion(t), x) * dt.sqrt() * noise(x)
