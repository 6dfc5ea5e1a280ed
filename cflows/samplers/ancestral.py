from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from cflows.samplers.sampler import Noise, OneStepSampler, Orders
from cflows.sde import SDE, Rows, Score
from core.shapes import align

Variance = Literal["posterior", "transition"]


@dataclass(frozen=True, kw_only=True)
class AncestralSampling(OneStepSampler):
    """x ← (x + σ_{t|s}² s(x, t))/α_{t|s} + std ε with the kernel x_t | x_s ~ N(α_{t|s} x_s, σ_{t|s}² I).

    The mean is E[x_s | x_t], exactly and for all data (Tweedie's formula for the kernel). The std of x_s | x_t depends
    on the data: `posterior` takes that of x_s given x_t and x_0, σ_s σ_{t|s}/σ_t, exact for data that are one point and
    too small for others; `transition` takes σ_{t|s}, exact for data N(0, I) under VP. Both hold for every linear SDE.
    One score evaluation a step.

    References:
        Ho et al., "Denoising diffusion probabilistic models", 2020, eq. 6, 7 and 11, section 3.2 (the two variances).
        Song et al., 2021, app. F.

    Checked by tests/cflows/test_solvers_stochastic.py (its exact bias on Gaussian data, its orders).

    Attributes:
        steps: number of steps.
        t_min: last time, above 0 for a score network.
        spacing: how the times are spread, as in `time_grid`.
        denoise: leave out the noise of the last step.
        variance: `posterior` or `transition`.

    Raises:
        ValueError: fewer than one step, t_min outside [0, 1), an unknown spacing or an unknown variance.
    """

    variance: Variance = "posterior"

    def __post_init__(self) -> None:
        if self.variance not in get_args(Variance):
            raise ValueError(
                f"AncestralSampling's variance is {' or '.join(get_args(Variance))}, not {self.variance!r}."
            )
        super().__post_init__()

    @property
    def orders(self) -> Orders:
        """Strong 1, weak 1."""
        return Orders(1.0, 1.0)

    def step(self, score: Score, sde: SDE, x: Rows, t: Tensor, s: Tensor, noise: Noise) -> Rows:
        """One step from t to s."""
        alpha, sigma = sde.transition_kernel(s, t)
        std = sigma
        if self.variance == "posterior":
            std = sigma * sde.marginal(s)[1] / sde.marginal(t)[1]
        mean = (x + align(sigma.square(), x) * score(x, t)) / align(alpha, x)
        return mean + align(std, x) * noise(x)
