"""The error that a solve reports, on rows enough to meet accidents of one in hundreds."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from contracts import solvers
from helpers import Tooth, normal, rng
from torch import Tensor

from cflows import SDE, probability_flow_log_prob
from cflows.ode import batch_adaptive, per_sample
from cflows.ode.solver import PER_SAMPLE
from cflows.sde import Score
from core import ExactDivergence, GaussianMixture, LikelihoodEstimate
from core.density import DensityModel

METHODS = ("dopri5", PER_SAMPLE)
LocalError = Callable[[Tensor, Tensor], Tensor]


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


@pytest.mark.parametrize("tolerance", [1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("features", [2, 8])
def test_no_row_of_a_thousand_is_off_by_three_times_what_is_reported(
    features: int, method: str, tolerance: float
) -> None:
    """Two solves that agree by chance hide nothing: the errors of their steps are counted as well."""
    run = partial(likelihood, method=method, tolerance=tolerance)
    mixture = modes(features)
    solvers.no_error_hides_from_steps(run, mixture, mixture.sample((1000,), generator=rng(1)))


def zero(x: Tensor, integrals: Tensor) -> Tensor:
    return x.new_zeros(len(x))


def of_place(x: Tensor, integrals: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def of_integrals(x: Tensor, integrals: Tensor) -> Tensor:
    return integrals.mean(1).abs()


@pytest.mark.parametrize(
    ("method", "features", "part"),
    [
        (PER_SAMPLE, 8, zero),
        (PER_SAMPLE, 8, of_place),
        (PER_SAMPLE, 8, of_integrals),
        ("dopri5", 2, zero),
        ("dopri5", 2, of_place),
    ],
)
def test_errors_of_the_steps_left_out(method: str, features: int, part: LocalError) -> None:
    """No error of a step, or that of the place or of the integrals alone, and some row's is hidden."""
    mixture, run = modes(features), partial(likelihood, method=method, tolerance=1e-4)

    def broken(*arguments: Any) -> LikelihoodEstimate:
        with patch.object(per_sample if method == PER_SAMPLE else batch_adaptive, "local_error", part):
            return run(*arguments)

    x = mixture.sample((1000,), generator=rng(1))
    contract = partial(solvers.no_error_hides_from_steps, mixture=mixture, x=x)
    Tooth(contract, lambda: run, lambda: broken).bites()
