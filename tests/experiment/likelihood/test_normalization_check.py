"""Quadrature of densities: 1 for what is normalized, and what else there is for what is not."""

import math

import pytest
import torch
from cases import COVARIANCES, MEANS, WEIGHTS
from helpers import normal, rng
from wrong import TamperedDensity

from cflows import FFJORD
from core import DiagonalNormal, GaussianMixture, StandardNormal, StandardUniform
from discrete import NSF
from experiment.likelihood import normalization_check
from experiment.likelihood.normalization_check import integral


@pytest.mark.parametrize("size", [1, 2])
def test_a_normalized_density_integrates_to_one(size: int) -> None:
    model = DiagonalNormal(size, loc=-3.0, scale=0.2, learnable=False).double()
    found = integral(model, model.sample((200,), generator=rng(0)))
    assert found.value == pytest.approx(1.0, abs=1e-6)
    assert found.error < 1e-5


def test_modes_apart_and_columns_of_other_widths() -> None:
    mixture = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)
    assert integral(mixture, mixture.sample((500,), generator=rng(0))).value == pytest.approx(1.0, abs=1e-3)
    wide = DiagonalNormal((2, 1), scale=torch.tensor([[1e-3], [100.0]]), learnable=False).double()
    assert integral(wide, wide.sample((100,), generator=rng(1))).value == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("factor", [0.9, 2.0])
def test_a_density_that_is_not_normalized_is_seen(factor: float) -> None:
    wrong = TamperedDensity(StandardNormal(2).double(), log_prob=lambda v: v + math.log(factor))
    assert integral(wrong, normal(200, (2,), rng(0))).value == pytest.approx(factor, abs=1e-4)


def test_mass_away_from_the_data_is_missing() -> None:
    """Half of the mass lies 100 standard deviations away from all rows."""
    two = GaussianMixture(torch.tensor([[0.0], [100.0]]), torch.ones(2, 1, 1), torch.ones(2)).double()
    assert integral(two, normal(200, (1,), rng(0))).value == pytest.approx(0.5, abs=1e-6)


def test_the_error_covers_what_a_coarse_grid_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A uniform density has edges, where the rule converges slowly."""
    x = torch.rand(500, 2, generator=rng(0), dtype=torch.float64)
    for points in (17, 33, 65):
        monkeypatch.setitem(normalization_check.POINTS, 2, points)
        found = integral(StandardUniform(2).double(), x)
        assert 0 < abs(found.value - 1) < 3 * found.error


def test_trained_models_of_either_side() -> None:
    for model in (NSF(2, layers=2, hidden=(8,)), FFJORD(2, hidden=(8,))):
        assert integral(model.eval(), normal(100, (2,), rng(0)).float()).value == pytest.approx(1.0, abs=2e-3)


def test_a_context_is_integrated_over_at_its_first_value() -> None:
    model = FFJORD(1, hidden=(8,), context_features=2)
    x, context = normal(50, (1,), rng(0)).float(), torch.eye(2).repeat(25, 1)
    assert integral(model, x, context).value == pytest.approx(1.0, abs=1e-3)


def test_what_has_no_integral() -> None:
    assert integral(StandardNormal(3), normal(5, (3,), rng(0)).float()) is None
    assert integral(StandardNormal(2), torch.tensor([[1.0, 2.0], [3.0, 2.0]])) is None  # one column is constant
    broken = TamperedDensity(StandardNormal(1).double(), log_prob=lambda v: v + math.nan)
    with pytest.raises(RuntimeError, match="not finite everywhere"):
        integral(broken, normal(5, (1,), rng(0)))
