from dataclasses import dataclass

from torch import Tensor

from cflows.samplers.sampler import Noise, OneStepSampler, Orders
from cflows.sde import SDE, Rows, Score, reverse_drift
from core.shapes import align


@dataclass(frozen=True, kw_only=True)
class StochasticHeun(OneStepSampler):
    """x ← x - ½ [d(x, t) + d(x̃, s)] Δt + G ε, x̃ = x - d(x, t) Δt + G ε, G² = ½ [g(t)² + g(s)²] Δt, Δt = t - s.

    d = f - g² s is the drift of the reverse process; both stages have the one ε. Two score evaluations a step, the
    second at s, so that a network is asked at t_min itself. Noise of std g(t) √Δt, as in `EulerMaruyama`, would leave
    an error of ∫g² over each step that makes the weak order 1; by the trapezoidal rule it is 2.

    References:
        Kloeden and Platen, 1992, section 15.1: for a constant g Platen's explicit scheme of weak order 2 is this one.

    Checked by tests/cflows/test_solvers_stochastic.py (its exact bias on Gaussian data, its orders).

    Attributes:
        steps: number of steps.
        t_min: last time, above 0 for a score network.
        spacing: how the times are spread, as in `time_grid`.
        denoise: leave out the noise of the last step, in both stages.

    Raises:
        ValueError: fewer than one step, t_min outside [0, 1), or an unknown spacing.

    Note:
        Steps must be short in log-SNR where the data are narrower than σ(t): with fewer than some hundred of them take
        spacing="log_snr". On one point under VP 100 steps even in time end with 480 times the variance σ(t_min)², even
        in log-SNR within 3 %.
    """

    @property
    def orders(self) -> Orders:
        """Strong 1, weak 2."""
        return Orders(1.0, 2.0)

    def step(self, score: Score, sde: SDE, x: Rows, t: Tensor, s: Tensor, noise: Noise) -> Rows:
        """One step from t to s."""
        dt, mean_square = t - s, 0.5 * (sde.diffusion(t).square() + sde.diffusion(s).square())
        spread = align((mean_square * dt).sqrt(), x) * noise(x)
        d = reverse_drift(score, sde, x, t)
        ahead = reverse_drift(score, sde, x - d * dt + spread, s)
        return x - 0.5 * (d + ahead) * dt + spread
