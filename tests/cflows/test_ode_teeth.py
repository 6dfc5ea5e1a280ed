"""The contracts of the ODE solvers bite: each break is made in the solver itself."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from cases import COVARIANCES, MEANS, WEIGHTS
from contracts import solvers
from helpers import Tooth, rng
from torch import Tensor

from cflows import SDE, SubVPSDE, ode_log_prob, probability_flow_log_prob
from cflows.angle_flow import AngleFlow
from cflows.ode import fixed_grid, log_prob, per_sample, solver
from cflows.ode.field import Solution
from cflows.ode.solver import PER_SAMPLE, ODESolver
from cflows.ode.tableaus import DORMAND_PRINCE
from cflows.sde import Score
from core import ExactDivergence, GaussianMixture, LikelihoodEstimate
from core.density import DensityModel

WEIGH, QUADRATURE = fixed_grid._weights, fixed_grid._quadrature
PLANE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)


def with_part(place: Any, name: str, part: Any, run: Callable[..., Any]) -> Callable[..., Any]:
    def broken(*arguments: Any, **keywords: Any) -> Any:
        with patch.object(place, name, part):
            return run(*arguments, **keywords)

    return broken


def adams(velocity: solvers.Velocity, base: DensityModel, x: Tensor, steps: float) -> Tensor:
    return ode_log_prob(velocity, base, x, method="adams", steps=int(steps), error_factor=None).log_prob


def reversed_weights(nodes: Sequence[float], start: float, end: float) -> list[float]:
    return WEIGH(nodes, start, end)[::-1]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("_weights", reversed_weights),
        ("_weights", lambda nodes, start, end: WEIGH(nodes[-1:], start, end) if len(nodes) == 1 else [
            *[0.0] * (len(nodes) - 1), end - start]),
        ("_quadrature", lambda times, order: QUADRATURE(times, order).roll(-1, 1)),
        ("ADAMS_ORDER", 2),
    ],
    ids=["weights reversed", "the newest slope alone", "rates off by one", "a line for a parabola"],
)  # fmt: skip
def test_adams(name: str, part: Any) -> None:
    contract = partial(solvers.order_is, order=3)
    Tooth(contract, lambda: adams, lambda: with_part(fixed_grid, name, part, adams)).bites()


def test_rates_of_every_second_node_weighed_as_if_of_every_one() -> None:
    def run(velocity: solvers.Velocity, base: DensityModel, x: Tensor, steps: float) -> Tensor:
        options = {"method": "adams_sparse", "steps": int(steps), "error_factor": None}
        return ode_log_prob(velocity, base, x, **options).log_prob

    def even(times: Tensor, order: int) -> Tensor:
        return QUADRATURE(torch.linspace(times[0], times[-1], len(times), dtype=times.dtype), order) / 2

    contract = partial(solvers.order_is, order=3, steps=(64, 128, 256))
    Tooth(contract, lambda: run, lambda: with_part(fixed_grid, "_quadrature", even, run)).bites()


def each_row(velocity: solvers.Velocity, base: DensityModel, x: Tensor, tolerance: float) -> Tensor:
    options = {"method": PER_SAMPLE, "rtol": tolerance, "atol": tolerance, "error_factor": None}
    return ode_log_prob(velocity, base, x, **options).log_prob


@pytest.mark.parametrize(
    "wrong",
    [
        DORMAND_PRINCE._replace(error=(0.0,) * 7),
        DORMAND_PRINCE._replace(rows=(*DORMAND_PRINCE.rows[:-1], DORMAND_PRINCE.rows[-1][::-1])),
        DORMAND_PRINCE._replace(nodes=(0.0, 1 / 5, 3 / 10, 4 / 5, 1.0, 1.0)),
    ],
    ids=["no error", "last weights reversed", "a node moved"],
)
def test_tableau_of_each_row(wrong: Any) -> None:
    contract = partial(solvers.error_follows_the_tolerance, tolerances=(1e-5, 1e-7))
    Tooth(contract, lambda: each_row, lambda: with_part(solver, "DORMAND_PRINCE", wrong, each_row)).bites()


def test_steps_that_are_always_taken() -> None:
    """With a step that may grow without bound and errors that count a thousandth, tolerances are not kept."""
    add = per_sample._add

    def careless(x: Tensor, h: Tensor, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
        total = add(x, h, weights, slopes)
        return 1e-3 * total if len(weights) == len(DORMAND_PRINCE.error) else total

    contract = partial(solvers.error_follows_the_tolerance, tolerances=(1e-5, 1e-7))
    Tooth(contract, lambda: each_row, lambda: with_part(per_sample, "_add", careless, each_row)).bites()


def flow(score: Score, sde: SDE, base: DensityModel, x: Tensor, t_min: float) -> LikelihoodEstimate:
    options = {"base": base, "divergence": ExactDivergence(), "t_min": t_min, "error_factor": None}
    return probability_flow_log_prob(score, sde, x, rtol=1e-6, atol=1e-6, **options)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("radii", lambda self, t_min: (1.0, 1.0)),
        ("radii", lambda self, t_min: RADII(self, t_min)[::-1]),
        ("ends", lambda self, t_min: tuple(0.98 * u for u in ENDS(self, t_min))),
    ],
    ids=["no radius", "radii swapped", "another end"],
)
def test_likelihood_in_the_angle(name: str, part: Any) -> None:
    """Under sub-VP from a late t_min, where r is 0.95: the volume D log r and both ends count."""
    x = PLANE.sample((3,), generator=rng(0))
    contract = partial(_is_the_mixture, x=x)
    Tooth(contract, lambda: flow, lambda: with_part(AngleFlow, name, part, flow)).bites()


RADII, ENDS = AngleFlow.radii, AngleFlow.ends


def _is_the_mixture(likelihood: solvers.Likelihood, *, x: Tensor) -> None:
    solvers.mixture_likelihood(likelihood, SubVPSDE(), PLANE, x, t_min=0.1)


@pytest.mark.parametrize("method", ["heun2", "heun3", "rk4", "adams", "adams_sparse"])
def test_solver_error_of_a_fixed_grid(method: str) -> None:
    """The difference of two solves alone, in which errors of both signs cancel."""

    def at_the_end(end: Tensor, integral: Tensor, fine: Solution, coarse: Solution) -> Tensor:
        return (end + integral).abs()

    run = partial(ode_log_prob, method=method, steps=max(12, ODESolver(method=method).fewest_steps))
    contract = partial(solvers.no_error_hides, generator=rng(22))
    Tooth(contract, lambda: run, lambda: with_part(log_prob, "_solver_error", at_the_end, run)).bites()
