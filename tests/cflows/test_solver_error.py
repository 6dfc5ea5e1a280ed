"""The error that a solve reports, on rows enough to meet accidents of one in thousands."""

from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from contracts import solvers
from helpers import Tooth, normal, rng
from torch import Tensor

from cflows import SDE, ode_log_prob, probability_flow_log_prob
from cflows.ode import batch_adaptive, per_sample
from cflows.ode.field import local_error
from cflows.ode.solver import PER_SAMPLE
from cflows.sde import Score
from core import ExactDivergence, GaussianMixture, LikelihoodEstimate, StandardNormal
from core.density import DensityModel

ROWS = 4000


def modes(features: int) -> GaussianMixture:
    """Four of a standard deviation of 0.3."""
    covariances = (0.09 * torch.eye(features, dtype=torch.float64)).expand(4, features, features)
    return GaussianMixture(normal(4, (features,), rng(0)), covariances, torch.ones(4, dtype=torch.float64))


def likelihood(
    score: Score, sde: SDE, base: DensityModel, x: Tensor, t_min: float, *, method: str, tolerance: float
) -> LikelihoodEstimate:
    return probability_flow_log_prob(
        score,
        sde,
        x,
        base=base,
        divergence=ExactDivergence(),
        method=method,
        rtol=tolerance,
        atol=tolerance,
        t_min=t_min,
    )


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("method", ["dopri5", PER_SAMPLE])
@pytest.mark.parametrize("features", [2, 8])
def test_no_row_of_thousands_is_off_by_three_times_what_is_reported(
    features: int, method: str, tolerance: float
) -> None:
    """Two solves that agree by chance hide nothing: the errors of their steps are counted as well."""
    run = partial(likelihood, method=method, tolerance=tolerance)
    mixture = modes(features)
    solvers.no_error_hides_from_steps(run, mixture, mixture.sample((ROWS,), generator=rng(1)))


def test_errors_of_a_step_by_hand() -> None:
    """Twice (3 + 5 √2): the mean of 2 and 4, and a place that is off by (3, -4)."""
    x, integrals = torch.tensor([[3.0, -4.0]]), torch.tensor([[-2.0, -4.0]])
    torch.testing.assert_close(local_error(x, integrals), torch.tensor([2 * (3 + 5 * 2**0.5)]))
    torch.testing.assert_close(local_error(x, integrals[:, :0]), torch.tensor([2 * 5 * 2**0.5]))


@pytest.mark.parametrize("method", ["dopri5", PER_SAMPLE])
def test_the_error_has_the_dtype_of_the_rows(method: str) -> None:
    estimate = ode_log_prob(lambda x, t: -x, StandardNormal(2), torch.ones(3, 2), method=method)
    assert estimate.log_prob.dtype == estimate.solver_error.dtype == torch.float32


def zero(x: Tensor, integrals: Tensor) -> Tensor:
    return x.new_zeros(len(x))


@pytest.mark.parametrize(("method", "place", "features"), [(PER_SAMPLE, per_sample, 8), ("dopri5", batch_adaptive, 2)])
def test_errors_of_the_steps_left_out(method: str, place: Any, features: int) -> None:
    """Some row's is hidden."""
    mixture, run = modes(features), partial(likelihood, method=method, tolerance=1e-4)

    def broken(*arguments: Any) -> LikelihoodEstimate:
        with patch.object(place, "local_error", zero):
            return run(*arguments)

    x = mixture.sample((ROWS,), generator=rng(1))
    contract = partial(solvers.no_error_hides_from_steps, mixture=mixture, x=x)
    Tooth(contract, lambda: run, lambda: broken).bites()
