"""The error that a solve reports, on rows enough to meet accidents of one in thousands."""

from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from contracts import solvers
from helpers import Tooth, normal, rng
from torch import Tensor
from torchdiffeq._impl import rk_common

from cflows import ode_log_prob
from cflows.ode import batch_adaptive, per_sample
from cflows.ode.field import Field, Plain, local_error
from cflows.ode.solver import ADAPTIVE, PER_SAMPLE
from cflows.ode.tableaus import DORMAND_PRINCE
from core import GaussianMixture, LikelihoodEstimate, StandardNormal
from core.shapes import align

ROWS, RATIO = 4000, rk_common._compute_error_ratio


def modes(features: int) -> GaussianMixture:
    """Four of a standard deviation of 0.3."""
    covariances = (0.09 * torch.eye(features, dtype=torch.float64)).expand(4, features, features)
    return GaussianMixture(normal(4, (features,), rng(0)), covariances, torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("method", ["dopri5", PER_SAMPLE])
@pytest.mark.parametrize("features", [2, 8])
def test_no_row_of_thousands_is_off_by_three_times_what_is_reported(
    features: int, method: str, tolerance: float
) -> None:
    """Two solves that agree by chance hide nothing: the errors of their steps are counted as well."""
    run = partial(solvers.by_exact_trace, method=method, tolerance=tolerance)
    mixture = modes(features)
    solvers.no_error_hides_from_steps(run, mixture, mixture.sample((ROWS,), generator=rng(1)))


def test_no_row_of_64_dimensions_is_off_by_three_times_what_is_reported() -> None:
    """Where an error of the place along the gradient would count √D times."""
    run, mixture = partial(solvers.by_exact_trace, method=PER_SAMPLE, tolerance=1e-3), modes(64)
    solvers.no_error_hides_from_steps(run, mixture, mixture.sample((250,), generator=rng(1)))


@pytest.mark.parametrize(("method", "large"), [("dopri8", 250), ("bosh3", 600), ("adaptive_heun", 2000)])
@pytest.mark.parametrize("features", [2, 8])
def test_other_methods_err_on_the_large_side(features: int, method: str, large: float) -> None:
    """By far: what they keep is much better than what their estimates are of."""
    run, mixture = partial(solvers.by_exact_trace, method=method, tolerance=1e-3), modes(features)
    x = mixture.sample((ROWS,), generator=rng(1))
    solvers.no_error_hides_from_steps(run, mixture, x, far_too_large=large)


def test_errors_of_a_step_by_hand() -> None:
    """Three times 3 + 5: the mean of 2 and 4, and a place that is off by (3, -4)."""
    x, integrals = torch.tensor([[3.0, -4.0]]), torch.tensor([[-2.0, -4.0]])
    torch.testing.assert_close(local_error(x, integrals), torch.tensor([24.0]))
    torch.testing.assert_close(local_error(x, integrals[:, :0]), torch.tensor([15.0]))


@pytest.mark.parametrize("method", ["dopri5", PER_SAMPLE])
def test_the_error_has_the_dtype_of_the_rows(method: str) -> None:
    estimate = ode_log_prob(lambda x, t: -x, StandardNormal(2), torch.ones(3, 2), method=method)
    assert estimate.log_prob.dtype == estimate.solver_error.dtype == torch.float32


class Waves(Field):
    """dx/dt = 3 sin(6t) x, and the rates of two integrals that are large beside what they may be off by."""

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.slope(x, t), 100 + 10 * align(torch.sin(9 * t), x) * x[:, :2]

    def slope(self, x: Tensor, t: Tensor) -> Tensor:
        return 3 * align(torch.sin(6 * t), x) * x

    def rows(self, index: Tensor) -> "Waves":
        return self


def test_errors_of_the_steps_of_each_row() -> None:
    """Two steps at no tolerance to speak of, taken here once more."""
    field, x = Waves(), normal(3, (4,), rng(2))
    found = per_sample.per_sample(field, x, 0.0, 1.0, DORMAND_PRINCE, rtol=1e3, atol=1e3, columns=2)
    first = per_sample.FIRST * 1e3**0.2
    expected, integrals = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    for start, h in ((0.0, first), (first, 1 - first)):
        slopes, rates = [], []
        for row, node in zip(((), *DORMAND_PRINCE.rows), (*DORMAND_PRINCE.nodes, 1.0), strict=True):
            y = x + h * sum((w * k for w, k in zip(row, slopes, strict=True)), torch.zeros_like(x))
            slope, rate = field(y, torch.full((3,), start + node * h, dtype=torch.float64))
            slopes, rates = [*slopes, slope], [*rates, rate]
        off, nats = (h * sum(w * k for w, k in zip(DORMAND_PRINCE.error, ks, strict=True)) for ks in (slopes, rates))
        expected, x = expected + local_error(off, nats), y
        integrals = integrals + h * sum(w * k for w, k in zip(DORMAND_PRINCE.rows[-1], rates[:-1], strict=True))
    torch.testing.assert_close((found.x, found.integrals), (x, integrals))
    torch.testing.assert_close(found.local_error, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_errors_of_the_steps_of_all_rows(method: str, ends: tuple[float, float], dtype: torch.dtype) -> None:
    """What torchdiffeq found for every step it took."""
    x = normal(3, (4,), rng(2)).to(dtype)
    taken: list[Tensor] = []

    def spy(error: Tensor, *arguments: Any) -> Tensor:
        ratio = RATIO(error, *arguments)
        if ratio <= 1:
            taken.append(local_error(error[: x.numel()].reshape(x.shape), error[x.numel() :].reshape(3, 2)))
        return ratio

    with patch.object(rk_common, "_compute_error_ratio", spy):
        found = batch_adaptive.batch_adaptive(Waves(), x, *ends, method, rtol=1e-3, atol=1e-5, columns=2)
    assert found.integrals.abs().min() > 50
    torch.testing.assert_close(found.local_error, sum(taken).to(dtype), rtol=0.01, atol=0)


@pytest.mark.parametrize(("again", "grown"), [(False, per_sample.GROW), (True, 1.0)])
def test_the_step_after_a_second_try_does_not_grow(again: bool, grown: float) -> None:
    """On a velocity that is constant, of which no step has an error."""
    x, none = torch.ones(1, 2), torch.zeros(1, 0)
    t = torch.zeros(1)
    state = per_sample._State(t.long(), t, t + 0.01, t.bool() | again, x, none, x, none, t)
    after = per_sample._round(Plain(lambda x, t: torch.ones_like(x)), state, 1.0, DORMAND_PRINCE, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(after.h, torch.tensor([0.01 * grown]))
    assert not after.again
    rough = per_sample._round(
        Plain(lambda x, t: 1e6 * x * t[:, None]), state, 1.0, DORMAND_PRINCE, rtol=1e-3, atol=1e-3
    )
    assert rough.again
    assert rough.t == 0


def zero(x: Tensor, integrals: Tensor) -> Tensor:
    return x.new_zeros(len(x))


@pytest.mark.parametrize(("method", "place", "features"), [(PER_SAMPLE, per_sample, 8), ("dopri5", batch_adaptive, 2)])
def test_errors_of_the_steps_left_out(method: str, place: Any, features: int) -> None:
    """Some row's is hidden."""
    mixture, run = modes(features), partial(solvers.by_exact_trace, method=method, tolerance=1e-4)

    def broken(*arguments: Any) -> LikelihoodEstimate:
        with patch.object(place, "local_error", zero):
            return run(*arguments)

    x = mixture.sample((ROWS,), generator=rng(1))
    contract = partial(solvers.no_error_hides_from_steps, mixture=mixture, x=x)
    Tooth(contract, lambda: run, lambda: broken).bites()
