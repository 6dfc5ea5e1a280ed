import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cflows.samplers.sampler import Callback, Orders, Sampler, normal_like
from cflows.sde import SDE, Rows, Score
from cflows.time_grid import Spacing, check_grid, time_grid
from core.rng import Rng


@dataclass(frozen=True, kw_only=True)
class EDMHeun(Sampler):
    """Heun's rule on the probability-flow ODE in σ̃ = σ/α and x̃ = x/α, where every SDE reads dx̃/dσ̃ = -σ s(x, t).

    A step from σ̃ to σ̃': x̃' = x̃ + (σ̃' - σ̃)(d + d')/2, with d the slope at σ̃ and d' the one where d leads to. With
    `churn` it first adds noise: σ̂ = (1 + γ) σ̃, x̂ = x̃ + √(σ̂² - σ̃²) s_noise ε, γ = min(churn/steps, √2 - 1) for σ̃
    within [s_min, s_max], the exact kernel of the SDE from t up to t̂ > t, never beyond t = 1. Two score evaluations a
    step; to denoise, the last of the steps is Euler's from t_min to σ = 0, which is E[x_0 | x_{t_min}]:
    2 steps - 1 evaluations.

    References:
        Karras et al., "Elucidating the design space of diffusion-based generative models", 2022, algorithms 1 and 2
        and table 1 (18 steps: 35 evaluations).

    Checked by tests/cflows/test_edm_heun.py (orders on Gaussians and mixtures, the published noise levels).

    Attributes:
        steps: number of steps.
        churn: S_churn, 0 for the ODE.
        s_min: least σ̃ to churn at.
        s_max: largest σ̃ to churn at.
        s_noise: factor on the noise that is added; its law is right for 1.
        spacing: how the times are spread, as in `time_grid`.
        t_min: last time, above 0.
        denoise: make the last step one from t_min to σ = 0.

    Raises:
        ValueError: fewer than one step (two to denoise), t_min outside (0, 1), an unknown spacing, or churn, s_noise or
            an interval that is negative.

    Example:
        >>> from cflows import VPSDE
        >>> x = EDMHeun(steps=100)(lambda x, t: -x, VPSDE(), torch.ones(1, 1))  # N(0, 1) data stay as they are
        >>> round(x.item(), 2)
        1.0
    """

    steps: int = 18
    churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0
    spacing: Spacing = "karras"
    t_min: float = 1e-3
    denoise: bool = True

    def __post_init__(self) -> None:
        check_grid("EDMHeun", steps=self.steps, t_min=self.t_min, spacing=self.spacing)
        if self.t_min == 0 or self.steps < 1 + self.denoise:
            raise ValueError(
                "EDMHeun needs t_min above 0 and 1 step or more, 2 to denoise, but has "
                f"t_min={self.t_min}, steps={self.steps} and denoise={self.denoise}."
            )
        if not (self.churn >= 0 and self.s_noise >= 0 and 0 <= self.s_min <= self.s_max):
            raise ValueError(
                "EDMHeun needs churn and s_noise of 0 or more and 0 <= s_min <= s_max, but has "
                f"churn={self.churn}, s_noise={self.s_noise}, s_min={self.s_min} and s_max={self.s_max}."
            )

    @property
    def orders(self) -> Orders:
        """2 of the ODE; with churn weak 2, as noise of the exact kernel costs nothing, and none if s_noise is not 1."""
        if self.churn == 0:
            return Orders(2.0, 2.0)
        return Orders(None, 2.0 if self.s_noise == 1 else None)

    @torch.no_grad()
    def __call__(
        self, score: Score, sde: SDE, x_T: Rows, *, generator: Rng = None, callback: Callback | None = None
    ) -> Rows:
        """x_0 like `x_T`; the generator serves the churn alone."""
        times = time_grid(sde, steps=self.steps - self.denoise, t_min=self.t_min, spacing=self.spacing)
        levels = torch.exp(-0.5 * sde.log_snr(times))
        raised = self._raised(levels)
        # Only a time that churn moves is found from its level, so that the others keep their last digit.
        starts = _nodes(sde, torch.where(raised > levels, sde.time(-2 * raised.log()).clamp(max=1.0), times), x_T)
        ends, draw = _nodes(sde, times, x_T), normal_like(generator)
        sigma, hat = levels.tolist(), raised.tolist()
        x = x_T / ends[0].alpha
        for i in range(self.steps):
            if hat[i] > sigma[i]:
                x = x + self.s_noise * math.sqrt(hat[i] ** 2 - sigma[i] ** 2) * draw(x)
            d = starts[i].slope(score, x)
            if i + 1 == len(sigma):
                x = result = x - hat[i] * d
            else:
                change = sigma[i + 1] - hat[i]
                x = x + change * (d + ends[i + 1].slope(score, x + change * d)) / 2
                result = ends[i + 1].alpha * x
            if callback is not None:
                callback(i, result)
        return result

    def _raised(self, levels: Tensor) -> Tensor:
        """The levels σ̂ that steps from these levels start at."""
        gamma = min(self.churn / self.steps, math.sqrt(2) - 1)
        within = (levels >= self.s_min) & (levels <= self.s_max)
        return torch.where(within, levels * (1 + gamma), levels).clamp(max=levels[0])


class _Node(NamedTuple):
    """A time, with α and σ there."""

    t: Tensor
    alpha: float
    sigma: float

    def slope(self, score: Score, x: Tensor) -> Tensor:
        """dx̃/dσ̃ = (x̃ - x̂_0)/σ̃ = -σ s(α x̃, t)."""
        return -self.sigma * score(self.alpha * x, self.t)


def _nodes(sde: SDE, times: Tensor, x: Tensor) -> list[_Node]:
    alpha, sigma = sde.marginal(times)
    return [_Node(*node) for node in zip(times.to(x), alpha.tolist(), sigma.tolist(), strict=True)]
