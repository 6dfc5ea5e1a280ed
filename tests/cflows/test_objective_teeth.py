"""The contracts of weightings bite: each passes what is right and rejects what is wrong in one place."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from cases import learned_weighting
from contracts import objectives
from helpers import Tooth
from torch import Tensor
from wrong import TamperedWeighting

from cflows import SDE, VPSDE, CosineWeighting, EDMWeighting, LearnedWeighting, LikelihoodWeighting
from cflows.objectives.weightings import Weighting

VP, T_MIN = VPSDE(), 1e-4
EDM, LEARNED = EDMWeighting(), learned_weighting()


@dataclass(frozen=True)
class Retimed(Weighting):
    """The times of another weighting at another log-SNR."""

    inner: Weighting
    log_snr: Callable[[Tensor], Tensor]

    def times(self, u: Tensor, sde: SDE, t_min: float) -> tuple[Tensor, Tensor]:
        t, w = self.inner.times(u, sde, t_min)
        return sde.time(self.log_snr(sde.log_snr(t))).clamp(t_min, 1), w


def edm_integral(weighting: Weighting) -> None:
    objectives.weighting_integrates(weighting, VP, objectives.edm_density(EDM, VP, T_MIN), t_min=T_MIN)


def edm_law(weighting: Weighting) -> None:
    objectives.times_have_the_law(weighting, VP, objectives.edm_law(EDM), t_min=T_MIN)


def cosine_law(weighting: Weighting) -> None:
    objectives.times_have_the_law(weighting, VP, objectives.cosine_law, t_min=T_MIN)


def likelihood(weighting: Weighting) -> None:
    density = objectives.half_squared_diffusion(VP)
    objectives.weighting_integrates(weighting, VP, density, t_min=T_MIN)


def relative_variance(w: Tensor) -> Tensor:
    """σ̃² of a weight 1 + σ̃²/σ_d²."""
    return (w - 1) * EDM.data_std**2


UNIFORM = LikelihoodWeighting(sampling="uniform")
HALF_RANGE = LikelihoodWeighting().times(torch.zeros(1, dtype=torch.float64), VP, T_MIN)[1]
TEETH: dict[str, tuple[Callable[[Weighting], None], Weighting, Weighting]] = {
    "EDM weight inverted": (edm_integral, EDM, TamperedWeighting(EDM, lambda w: 1 / w)),
    "EDM weight of the denoiser": (edm_integral, EDM, TamperedWeighting(EDM, lambda w: w / relative_variance(w))),
    "EDM weight without σ_d²": (edm_integral, EDM, TamperedWeighting(EDM, relative_variance)),
    "EDM of log σ̃²": (edm_law, EDM, Retimed(EDM, lambda lam: lam / 2)),
    "EDM with a variance for P_std": (edm_law, EDM, EDMWeighting(P_std=1.44)),
    "EDM mean with the other sign": (edm_law, EDM, EDMWeighting(P_mean=1.2)),
    "cosine law of 2λ": (cosine_law, CosineWeighting(), Retimed(CosineWeighting(), lambda lam: lam / 2)),
    "uniform times without g²/σ²": (likelihood, UNIFORM, TamperedWeighting(UNIFORM, lambda w: w / w * w.mean())),
    "uniform times without ½": (likelihood, UNIFORM, TamperedWeighting(UNIFORM, lambda w: 2 * w)),
    "learned law without 1/q": (likelihood, LEARNED, TamperedWeighting(LEARNED, lambda w: w / w * HALF_RANGE)),
    "learned law without Λ": (likelihood, LEARNED, TamperedWeighting(LEARNED, lambda w: w / (2 * HALF_RANGE))),
}


@pytest.mark.parametrize("name", TEETH)
def test_weighting(name: str) -> None:
    contract, right, wrong = TEETH[name]
    Tooth(contract, lambda: right, lambda: wrong).bites()


class Tampered(LearnedWeighting):
    """Learns from other u, or other losses, than those it is told."""

    def __init__(self, u: Callable[[Tensor], Tensor], losses: Callable[[Tensor], Tensor]) -> None:
        super().__init__(bins=4, memory=0.0, floor=0.01)
        self.changes = u, losses

    def observe(self, u: Tensor, losses: Tensor) -> None:
        super().observe(self.changes[0](u), self.changes[1](losses))


def keep(v: Tensor) -> Tensor:
    return v


@pytest.mark.parametrize(
    "fault",
    [(lambda u: 1 - u, keep), (lambda u: u / 2, keep), (keep, torch.sqrt)],
    ids=["law reversed", "half of the bins", "moment of the root"],
)
def test_learned_law(fault: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]) -> None:
    """Rows of loss 1 to 4 in four bins are drawn in proportion, but for the floor."""

    def contract(weighting: LearnedWeighting) -> None:
        weighting.observe(torch.tensor([0.1, 0.3, 0.6, 0.9]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
        expected = 0.99 * torch.tensor([1.0, 2.0, 3.0, 4.0]) / 10 + 0.01 / 4
        torch.testing.assert_close(weighting.probabilities, expected)

    Tooth(contract, lambda: Tampered(keep, keep), lambda: Tampered(*fault)).bites()
