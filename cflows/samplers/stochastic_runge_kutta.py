from dataclasses import dataclass

from torch import Tensor

from cflows.samplers.sampler import Noise, OneStepSampler, Orders
from cflows.sde import SDE, Rows, Score, reverse_drift
from core.shapes import align


@dataclass(frozen=True, kw_only=True)
class StochasticRungeKutta(OneStepSampler):
    """x ← x - ⅓ [d(x, t) + 2 d(x̃, t - ¾Δt)] Δt + g(s) (ΔW - Z) + g(t) Z, x̃ = x - ¾ d(x, t) Δt + ³⁄₂ g(s) Z, Δt = t - s.

    d = f - g² s is the drift of the reverse process. ΔW = √Δt ε₁ is what its Brownian motion W gains on the way from t
    to s, and Z = ½ √Δt (ε₁ + ε₂/√3) the mean over the step of what it has gained, Rößler's I_(1,0)/Δt: the two have
    their exact joint law. Two normal draws and two score evaluations a step, both above s.

    References:
        Rößler, "Runge-Kutta methods for the strong approximation of solutions of stochastic differential equations",
        2010, scheme SRA1, for additive noise, here with time that runs down.
        Kloeden and Platen, 1992, section 10.4 (the joint law).

    Checked by tests/cflows/test_solvers_stochastic.py (its exact bias on Gaussian data, its orders).

    Attributes:
        steps: number of steps.
        t_min: last time, above 0 for a score network.
        spacing: how the times are spread, as in `time_grid`.
        denoise: leave out both draws of the last step.

    Raises:
        ValueError: fewer than one step, t_min outside [0, 1), or an unknown spacing.

    Note:
        Steps must be short in log-SNR where the data are narrower than σ(t): with fewer than some hundred of them take
        spacing="log_snr". On one point under VP 100 steps even in time end with 19 times the variance σ(t_min)², even
        in log-SNR within 1 %.
    """

    @property
    def orders(self) -> Orders:
        """Strong 1.5, weak 2."""
        return Orders(1.5, 2.0)

    def step(self, score: Score, sde: SDE, x: Rows, t: Tensor, s: Tensor, noise: Noise) -> Rows:
        """One step from t to s; `noise` draws ε₁, then ε₂."""
        dt, g_t, g_s = t - s, align(sde.diffusion(t), x), align(sde.diffusion(s), x)
        first = noise(x)
        increment = dt.sqrt() * first
        mean = 0.5 * dt.sqrt() * (first + noise(x) / 3**0.5)
        d = reverse_drift(score, sde, x, t)
        ahead = reverse_drift(score, sde, x - 0.75 * d * dt + 1.5 * g_s * mean, t - 0.75 * dt)
        return x - (d + 2 * ahead) * dt / 3 + g_s * (increment - mean) + g_t * mean
