"""Prior mismatch and noise share of test rows as the score sees them."""

import pytest
import torch
from helpers import normal, rng
from torch import Tensor

from cflows import FFJORD, VPSDE, prior_mismatch
from core import ExactDivergence, StandardNormal
from discrete import Flow
from discrete.bijections.preprocessing import Scaling
from experiment import batches
from experiment.data import Dataset
from experiment.likelihood.both_ends import both_ends, constant_columns
from experiment.likelihood.score_density import ScoreDensity

SDE = VPSDE()


def density(variances: Tensor, t_min: float = 1e-5) -> ScoreDensity:
    def score(x: Tensor, t: Tensor) -> Tensor:
        scale, std = SDE.marginal(t)
        return -x / (scale**2 * variances + std**2)

    return ScoreDensity(len(variances), score=score, sde=SDE, t_min=t_min, divergence=ExactDivergence()).double()


def test_both_are_means_over_rows_behind_the_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_ROWS", 7)
    variances = torch.tensor([1.0, 2.0, 1e-6], dtype=torch.float64)
    model, x = Flow(Scaling(3, loc=1.0, scale=4.0).double(), density(variances, 1e-4)), 3 * normal(20, (3,), rng(0))
    found = both_ends(model, x)
    assert found.prior_mismatch_nats == pytest.approx(prior_mismatch(SDE, (x - 1) / 4).mean().item())
    scale, std = SDE.marginal(torch.tensor(1e-4, dtype=torch.float64))
    expected = (std**2 / (scale**2 * variances + std**2)).mean().item()
    assert found.noise_share == pytest.approx(expected)
    assert found.note.startswith("the noise of t_min=0.0001 sets the density in about 0.9 of 3 dimensions (30%)")
    assert "truncation to first order is not to be trusted" in found.note


def test_wide_data_need_no_note_and_other_models_have_no_ends() -> None:
    found = both_ends(density(torch.ones(2, dtype=torch.float64)), normal(5, (2,), rng(0)))
    assert 0 < found.noise_share < 1e-5
    assert found.note == ""
    assert both_ends(StandardNormal(2), torch.zeros(2, 2)) is None
    assert both_ends(FFJORD(2, hidden=(8,)), torch.zeros(2, 2)) is None


def test_constant_columns_are_those_of_continuous_data() -> None:
    x = normal(10, (4,), rng(0)).float()
    x[:, 1] = 5.0
    x[:8, 2] = 7.0  # constant in training only
    x[8:, 2] = 8.0
    parts = {"train": x[:6], "validation": x[6:8], "test": x[8:]}
    assert constant_columns(Dataset("x", **parts)) == 1
    assert constant_columns(Dataset("x", **{k: torch.zeros_like(v) for k, v in parts.items()}, bins=4)) == 0
