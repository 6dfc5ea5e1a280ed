"""Solvers chosen by their share of the standard error."""

import math

import numpy as np
import pytest
import torch
from cases import COVARIANCES, MEANS, WEIGHTS
from contracts.solvers import exact_base, exact_score
from helpers import normal, rng

from cflows import FFJORD, VPSDE, ODESolver
from core import GaussianMixture, StandardNormal
from discrete import Compose, Dequantization, Flow
from discrete.bijections.preprocessing import Scaling
from experiment.likelihood.budget import expected_standard_error
from experiment.likelihood.score_density import ScoreDensity
from experiment.likelihood.solver_share import described, solver_for_share

PLANE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)


def test_the_standard_error_to_come_from_fewer_rows_and_draws() -> None:
    """Rows of spread 3, draws of spread 2: √((9 + 4/draws)/rows) whatever the pilot's draws."""
    generator = np.random.default_rng(0)
    for d in (2, 4):
        log_prob = 3.0 * generator.normal(size=20_000) + 2.0 * generator.normal(size=(d, 20_000))
        for draws in (1, 2, 20):
            found = expected_standard_error(log_prob, rows=700, draws=draws)
            assert found == pytest.approx(math.sqrt((9 + 4 / draws) / 700), rel=0.03)
    one = 5.0 * generator.normal(size=(1, 20_000))
    assert expected_standard_error(one, rows=400, draws=20) == pytest.approx(5 / 20, rel=0.03)
    noise_alone = generator.normal(size=(2, 1000))
    assert 0 < expected_standard_error(noise_alone, rows=100, draws=1) < 0.2


@pytest.mark.parametrize("method", ["dopri5", "dopri5_per_sample", "rk4"])
@pytest.mark.parametrize("share", [0.3, 0.01])
def test_the_error_of_all_rows_keeps_the_share(method: str, share: float) -> None:
    """Of a mixture in closed form, which says what the error is; what is reported keeps it as well."""
    sde = VPSDE()
    inner = ScoreDensity(2, score=exact_score(PLANE, sde), sde=sde, t_min=1e-3, solver=ODESolver(method=method))
    inner.prior = exact_base(PLANE, sde)
    model, x = Flow(Scaling(2, scale=2.0), inner).double(), 2 * PLANE.sample((500,), generator=rng(0))
    choice = solver_for_share(model, x, share=share, draws=1, seed=0)
    assert choice.met
    assert inner.solver == ODESolver(method=method)  # the choice is the caller's to take
    inner.solver = choice.solver
    with torch.no_grad():
        found = model.estimate_log_prob(x)
    exact = PLANE.perturbed_log_prob(x / 2, *sde.marginal(x.new_tensor(1e-3))) - 2 * math.log(2)
    standard_error = found.log_prob.std().item() / math.sqrt(500)
    assert choice.allowed == pytest.approx(share * standard_error, rel=0.2)
    assert (found.log_prob - exact).abs().mean() <= share * standard_error
    assert found.solver_error.mean() <= 1.2 * share * standard_error


def test_draws_count_once_they_are_drawn_twice() -> None:
    """Noise of one level decides the spread over draws; the choice is tighter where draws take it away."""
    sde = VPSDE()
    inner = ScoreDensity(1, score=lambda x, t: -x / sharp(sde, t), sde=sde, t_min=1e-3)
    model = Flow(Compose(Dequantization(1, bins=2), Scaling(1, loc=0.5, scale=0.5)), inner).double()
    x = torch.randint(2, (400, 1), generator=rng(0)).double()
    few, many = (solver_for_share(model, x, share=0.1, draws=draws, seed=0) for draws in (2, 200))
    assert few.allowed / many.allowed > 3
    assert few.solver.rtol >= many.solver.rtol


def sharp(sde: VPSDE, t: torch.Tensor) -> torch.Tensor:
    scale, std = sde.marginal(t)
    return 0.04 * scale**2 + std**2


def test_a_context_goes_with_its_rows() -> None:
    model, context = FFJORD(2, hidden=(8,), context_features=3), normal(6, (3,), rng(1)).float()
    assert solver_for_share(model, normal(6, (2,), rng(0)).float(), context, share=0.5, draws=2, seed=0).met


def test_a_flow_has_no_solver() -> None:
    assert solver_for_share(StandardNormal(2), torch.zeros(5, 2), share=0.1, draws=1, seed=0) is None


def test_a_solver_is_described_by_what_counts() -> None:
    assert described(ODESolver(rtol=1e-3)) == {"method": "dopri5", "rtol": 1e-3, "atol": 1e-5}
    assert described(ODESolver(method="rk4", steps=7)) == {"method": "rk4", "steps": 7}
