from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from cflows.samplers.reverse_diffusion import ReverseDiffusion
from cflows.samplers.sampler import Callback, Noise, OneStepSampler, Orders, Sampler, intervals, normal_like
from cflows.sde import SDE, Rows, Score
from core.rng import Rng, for_all_rows
from core.shapes import align

Norms = Literal["expected", "batch"]


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Sampler):
    """At each time Langevin steps x ← x + ε s(x, t) + √(2ε) z, ε = 2 (r ‖z‖/‖s‖)², then the predictor's move to s < t.

    The signal-to-noise ratio r sets what a step adds against what it draws. `expected` puts both norms to what they are
    on average, ‖z‖ to √D and ‖s‖ to that of the score of x_t given x_0, √D/σ(t): ε = 2 (r σ(t))². No row then hears of
    another, and no step depends on the state. `batch` takes their means over the rows, as score_sde's LangevinCorrector
    does; its factor α = 1 - β_i for VP, which changes with the number of steps, is left out of both.

    The corrector acts before the predictor, at the same t, as in score_sde's code: a last step of the predictor without
    noise ends denoised. In the paper's algorithm 1 it acts after, at the next t.

    References:
        Song et al., 2021, section 4.2, app. G, algorithms 1, 4 and 5. `expected` is the rule of score_sde's
        AnnealedLangevinDynamics.

    Checked by tests/cflows/test_predictor_corrector.py (its exact law on Gaussian data, every predictor with every
    SDE).

    Attributes:
        predictor: any one-step sampler; says how many steps there are, where they stop and whether the last is noisy.
        snr: r, between 0 and 1; from 1 on the corrector diverges.
        corrector_steps: Langevin steps at each time, one score evaluation each; 0 leaves the predictor alone.
        norms: `expected` or `batch`.

    Raises:
        ValueError: an snr outside (0, 1), less than 0 corrector steps, or unknown norms.

    Note:
        The stationary variance of the corrector on Gaussian data of variance V at t is V/(1 - ε/(2V)) and not V, up to
        1/(1 - r²) times too large where noise prevails (3 % at 0.16). On N(0, 1) data 100 steps of reverse diffusion
        under VE leave a variance 9.0 % too large, with one correction each 4.6 %: so do 200 steps, at the same cost.

    Example:
        >>> from cflows import VESDE
        >>> score = lambda x, t: -x / (9 + VESDE().marginal(t)[1] ** 2)  # of N(0, 9) data
        >>> x = 50 * torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
        >>> sampler = PredictorCorrector(predictor=ReverseDiffusion(steps=200))
        >>> round(sampler(score, VESDE(), x, generator=torch.Generator().manual_seed(1)).std().item())
        3
    """

    predictor: OneStepSampler = field(default_factory=ReverseDiffusion)
    snr: float = 0.16
    corrector_steps: int = 1
    norms: Norms = "expected"

    def __post_init__(self) -> None:
        if self.norms not in get_args(Norms):
            raise ValueError(f"PredictorCorrector's norms are {' or '.join(get_args(Norms))}, not {self.norms!r}.")
        if not 0 < self.snr < 1 or self.corrector_steps < 0:
            raise ValueError(
                f"PredictorCorrector needs an snr within (0, 1) and 0 corrector steps or more, but has {self.snr} and "
                f"{self.corrector_steps}."
            )

    @property
    def t_min(self) -> float:
        """That of the predictor."""
        return self.predictor.t_min

    @property
    def orders(self) -> Orders:
        """None claimed: with more steps the bias tends to that of the corrector's ε at t_min, and not to 0."""
        return Orders(None, None)

    @torch.no_grad()
    def __call__(
        self, score: Score, sde: SDE, x_T: Rows, *, generator: Rng = None, callback: Callback | None = None
    ) -> Rows:
        """x_0 like `x_T`; the callback is called after each step of the predictor.

        Raises:
            TypeError: norms of the batch with a generator for each row.
        """
        if self.norms == "batch":
            generator = for_all_rows(generator, owner="PredictorCorrector(norms='batch')")
        x, draw = x_T, normal_like(generator)
        for step, (t, s) in enumerate(intervals(self.predictor, sde, x_T)):
            for _ in range(self.corrector_steps):
                x = self._correct(score, sde, x, t, draw)
            x = self.predictor.step(score, sde, x, t, s, self.predictor.noise_at(step, draw))
            if callback is not None:
                callback(step, x)
        return x

    def _correct(self, score: Score, sde: SDE, x: Rows, t: Tensor, draw: Noise) -> Rows:
        s, z = score(x, t), draw(x)
        ratio = sde.marginal(t)[1] if self.norms == "expected" else _mean_norm(z) / _mean_norm(s)
        eps = 2 * align((self.snr * ratio).square(), x)
        return x + eps * s + (2 * eps).sqrt() * z


def _mean_norm(x: Rows) -> Tensor:
    """Mean over the rows of ‖x‖, 0-dimensional."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).mean()
