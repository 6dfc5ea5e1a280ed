from dataclasses import dataclass

import torch

from cflows.samplers.sampler import Callback, Sampler
from cflows.sde import SDE, Rows, Score, reverse_drift
from core.density import Rng
from core.shapes import align


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(Sampler):
    """x ← x - [f(x, t) - g(t)² s(x, t)] Δt + g(t) √Δt ε, from t = 1 to t_min in equal steps.

    References:
        Song et al., 2021, eq. 6 and section 4.1; the scheme is Kloeden and Platen, 1992, eq. 10.2.4.

    Checked by tests/cflows/test_samplers.py (its exact bias on Gaussian data, weak order 1).

    Attributes:
        steps: number of steps, each one score evaluation.
        t_min: last time, above 0 for a score network.
        denoise: return the mean of the last step instead of a draw, as is usual for images.

    Raises:
        ValueError: fewer than one step, or t_min outside [0, 1).
    """

    steps: int = 1000
    t_min: float = 1e-3
    denoise: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.t_min < 1:
            raise ValueError(
                f"EulerMaruyama needs 1 step or more and t_min within [0, 1), but has steps={self.steps} and "
                f"t_min={self.t_min}."
            )

    @torch.no_grad()
    def __call__(
        self, score: Score, sde: SDE, x_T: Rows, *, generator: Rng = None, callback: Callback | None = None
    ) -> Rows:
        """x_0 like `x_T`."""
        dt = (1 - self.t_min) / self.steps
        x = x_T
        for step in range(self.steps):
            t = x.new_tensor(1 - step * dt)
            mean = x - reverse_drift(score, sde, x, t) * dt
            eps = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            noisy = mean + align(sde.diffusion(t), x) * dt**0.5 * eps
            x = mean if self.denoise and step == self.steps - 1 else noisy
            if callback is not None:
                callback(step, x)
        return x
