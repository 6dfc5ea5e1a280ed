"""The contracts of solvers of the probability-flow ODE bite: each break is made in the solver itself."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from cases import COVARIANCES, MEANS, WEIGHTS
from contracts import deterministic, samplers
from helpers import Tooth
from torch import Tensor
from torchdiffeq import odeint
from wrong import TamperedSDE, velocity_without_half

from cflows import SDE, VESDE, VPSDE
from cflows.ode import solver as ode_solver
from cflows.ode.tableaus import FIXED_TABLEAUS
from cflows.samplers import dpm_solver, edm_heun, probability_flow_ode
from cflows.samplers.dpm_solver import DPMSolver
from cflows.samplers.edm_heun import EDMHeun
from cflows.samplers.probability_flow_ode import ProbabilityFlow
from cflows.sde import Score, probability_flow
from cflows.time_grid import time_grid
from core import GaussianMixture

VP, PLANE, T_MIN = VPSDE(), GaussianMixture(MEANS, COVARIANCES, WEIGHTS), 0.02
WEIGH = dpm_solver._weights
Build = Callable[[int], deterministic.Solver]


def with_part(module: ModuleType, name: str, part: Any, solve: deterministic.Solver) -> deterministic.Solver:
    """A solver that runs with a part of its module replaced."""

    def run(score: Score, sde: SDE, x: Tensor, **keywords: Any) -> Tensor:
        with patch.object(module, name, part):
            return solve(score, sde, x, **keywords)

    return run


def order(build: Build, claimed: int, steps: Sequence[int] = (80, 160)) -> None:
    deterministic.order_is(build, VP, claimed, t_min=T_MIN, mixture=PLANE, steps=steps)


def rough(module: ModuleType, solve: deterministic.Solver) -> deterministic.Solver:
    return with_part(module, "time_grid", deterministic.rough_grid, solve)


def dpm(claimed: int, part: Callable[..., Any] = WEIGH) -> Build:
    build = partial(DPMSolver, order=claimed, spacing="time", t_min=T_MIN)
    return lambda n: rough(dpm_solver, with_part(dpm_solver, "_weights", part, build(steps=n)))


def sign_reversed(h: float, past: Sequence[float], rate: int) -> tuple[float, ...]:
    found = WEIGH(h, past, rate)
    return (found[0] + 2 * found[1], -found[1]) if len(past) == 1 else found


def ratio_ignored(h: float, past: Sequence[float], rate: int) -> tuple[float, ...]:
    return WEIGH(h, [h for _ in past], rate)


def ratio_inverted(h: float, past: Sequence[float], rate: int) -> tuple[float, ...]:
    return WEIGH(h, [h * h / before for before in past], rate)


def half_of_the_correction(h: float, past: Sequence[float], rate: int) -> tuple[float, ...]:
    found = WEIGH(h, past, rate)
    return (found[0] + found[1] / 2, found[1] / 2) if len(past) == 1 else found


def second_order(h: float, past: Sequence[float], rate: int) -> tuple[float, ...]:
    return (*WEIGH(h, past[:1], rate), 0.0) if len(past) == 2 else WEIGH(h, past, rate)


def half_of_the_square(h: float, past: Sequence[float], rate: int) -> tuple[float, ...]:
    """As in public code: ½ J_2 for J_2."""
    if len(past) < 2:
        return WEIGH(h, past, rate)
    r, q, j_2 = past[0] / h, past[1] / h, 1 - 2 * dpm_solver._second_take(h) / h
    divided = (1 / (r * (r + q)), -1 / (r * q), 1 / (q * (r + q)))
    return tuple(w - j_2 / 2 * share for w, share in zip(WEIGH(h, past, rate), divided, strict=True))


@pytest.mark.parametrize(
    ("claimed", "part"),
    [
        (2, sign_reversed),
        (2, ratio_ignored),
        (2, half_of_the_correction),
        (3, ratio_inverted),
        (3, ratio_ignored),
        (3, second_order),
        (3, half_of_the_square),
    ],
)
def test_multistep_weights(claimed: int, part: Callable[..., Any]) -> None:
    Tooth(partial(order, claimed=claimed), lambda: dpm(claimed), lambda: dpm(claimed, part)).bites()


@pytest.mark.parametrize(
    ("claimed", "part"),
    [(2, sign_reversed), *((order, part) for order in (2, 3) for part in (ratio_inverted, ratio_ignored))],
)
def test_weights_of_predictions(claimed: int, part: Callable[..., Any]) -> None:
    """A ratio inverted leaves 2M at order 2: h times ½ h_{-1}²/h sums to what ½ h² does, one step late."""
    options = {"steps": 5, "spacing": "time", "t_min": 0.1}

    def contract(solve: deterministic.Solver) -> None:
        deterministic.predictions_weigh(solve, VP, claimed, **options)

    right = DPMSolver(order=claimed, **options)
    Tooth(contract, lambda: right, lambda: with_part(dpm_solver, "_weights", part, right)).bites()


def test_first_step_of_order_one() -> None:
    """Where data still show through the noise at t = 1, the first step of 3M must be taken again."""

    def contract(build: Build) -> None:
        sde = VESDE(sigma_min=0.05, sigma_max=5.0)
        deterministic.order_is(build, sde, 3, t_min=T_MIN, mixture=PLANE, steps=(160, 320))

    def build(part: Callable[[float], float] = dpm_solver._second_take) -> Build:
        right = partial(DPMSolver, order=3, t_min=T_MIN)
        return lambda n: with_part(dpm_solver, "_second_take", part, right(steps=n))

    Tooth(contract, build, lambda: build(lambda h: 0.0)).bites()


@pytest.mark.parametrize("claimed", [1, 2, 3])
def test_log_snr_for_half_of_it(claimed: int) -> None:
    """On times evenly spaced, which know nothing of the log-SNR."""

    def right(n: int) -> DPMSolver:
        return DPMSolver(steps=n, order=claimed, spacing="time", t_min=T_MIN)

    def doubled(n: int) -> deterministic.Solver:
        sde = TamperedSDE(VP, log_snr=lambda t: 2 * VP.log_snr(t))
        return lambda score, _, x: right(n)(score, sde, x)

    Tooth(partial(order, claimed=claimed), lambda: right, lambda: doubled).bites()


NOISES = {
    "noise left out": ("normal_like", lambda generator: torch.zeros_like),
    "noise doubled": ("normal_like", lambda generator: lambda x: 2 * torch.randn(x.shape, dtype=x.dtype)),
}
WEIGHTS_OF_THE_ODE = ("_weights", lambda h, past, rate: WEIGH(h, past, 1))


@pytest.mark.parametrize(
    ("claimed", "fault"), [(1, WEIGHTS_OF_THE_ODE), (2, WEIGHTS_OF_THE_ODE), *((2, fault) for fault in NOISES.values())]
)
def test_dpm_sde(claimed: int, fault: tuple[str, Callable[..., Any]]) -> None:
    right = partial(DPMSolver, order=claimed, t_min=T_MIN, variant="sde")

    def contract(build: Build) -> None:
        samplers.weak_order_is(build, VP, claimed, t_min=T_MIN, steps=(100, 200))

    Tooth(
        contract,
        lambda: lambda n: right(steps=n),
        lambda: lambda n: with_part(dpm_solver, *fault, right(steps=n)),
    ).bites()


def test_strong_order() -> None:
    """Every other step takes the noise of its neighbour: right in law, and off the path."""

    def misled(generator: object) -> Callable[[Tensor], Tensor]:
        steps = count()
        return lambda x: torch.randn(x.shape, dtype=x.dtype).roll(next(steps) % 2, 0)

    def build(part: Any = dpm_solver.normal_like) -> Build:
        return lambda n: with_part(
            dpm_solver, "normal_like", part, DPMSolver(steps=n, order=1, t_min=T_MIN, variant="sde")
        )

    def contract(build: Build) -> None:
        deterministic.strong_order_is(build, VP, 1, t_min=T_MIN, mixture=PLANE)

    Tooth(contract, build, lambda: build(misled)).bites()


def heun(fault: str = "") -> Build:
    """Heun in σ̃ and x̃ on a Karras grid, with places to go wrong."""

    def build(n: int) -> deterministic.Solver:
        def solve(score: Score, sde: SDE, x: Tensor) -> Tensor:
            times = time_grid(sde, steps=n, t_min=T_MIN, spacing="karras")
            (scale, std), x = sde.marginal(times), x / sde.marginal(times[0])[0]
            level = std / scale

            def slope(i: int, x: Tensor, late: int = 0) -> Tensor:
                return -std[i] * score(scale[i] * x, times[i + late])

            for i in range(n):
                change, d = level[i + 1] - level[i], slope(i, x, late=int(fault == "late time"))
                end = slope(i + 1, x if fault == "no predictor" else x + change * d)
                share = {"first slope alone": 0.0, "last slope alone": 1.0}.get(fault, 0.5)
                x = x + change * ((1 - share) * d + share * end)
            return scale[-1] * x

        return solve

    return build


@pytest.mark.parametrize("fault", ["first slope alone", "last slope alone", "no predictor", "late time"])
def test_heun(fault: str) -> None:
    Tooth(partial(order, claimed=2, steps=(40, 80)), heun, lambda: heun(fault)).bites()


def test_heun_is_that_of_the_sampler() -> None:
    """What the faults are made in is the sampler."""
    x, score, _ = deterministic.problem(VP, PLANE, T_MIN)
    sampler = EDMHeun(steps=9, t_min=T_MIN, denoise=False)
    torch.testing.assert_close(sampler(score, VP, x), heun()(9)(score, VP, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fault", NOISES)
def test_churn(fault: str) -> None:
    right = partial(EDMHeun, churn=5.0, t_min=T_MIN, denoise=False)

    def contract(build: Build) -> None:
        samplers.weak_order_is(build, VP, 2, t_min=T_MIN, steps=(100, 200))

    Tooth(
        contract,
        lambda: lambda n: right(steps=n),
        lambda: lambda n: with_part(edm_heun, *NOISES[fault], right(steps=n)),
    ).bites()


FLOW = ProbabilityFlow(method="rk4", steps=40, spacing="quadratic", t_min=T_MIN)


def way(up: bool, velocity: Callable[[Score, SDE], Score] = probability_flow) -> deterministic.Solver:
    return with_part(probability_flow_ode, "probability_flow", velocity, FLOW.encode if up else FLOW)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize(
    "velocity",
    [
        velocity_without_half,
        lambda score, sde: lambda x, t: -probability_flow(score, sde)(x, t),
        lambda score, sde: lambda x, t: probability_flow(score, sde)(x, 1 + T_MIN - t),
        lambda score, sde: sde.drift,
    ],
    ids=["without ½", "velocity reversed", "time flipped", "without score"],
)
def test_velocity(velocity: Callable[[Score, SDE], Score], up: bool) -> None:
    ends = (T_MIN, 1.0) if up else (1.0, T_MIN)

    def contract(solve: deterministic.Solver) -> None:
        x = deterministic.gaussian_flow(VP, deterministic.latents(VP), 1.0, ends[0])
        deterministic.is_the_gaussian_flow(solve, VP, x, *ends, tolerance=1e-5)

    Tooth(contract, partial(way, up), partial(way, up, velocity)).bites()


def test_encoding_downwards() -> None:
    def contract(solve: deterministic.Solver) -> None:
        x = deterministic.gaussian_flow(VP, deterministic.latents(VP), 1.0, T_MIN)
        deterministic.is_the_gaussian_flow(solve, VP, x, T_MIN, 1.0, tolerance=1e-5)

    Tooth(contract, lambda: FLOW.encode, lambda: FLOW).bites()


@pytest.mark.parametrize(
    ("method", "rows"),
    [
        ("midpoint", ((1.0,), (0.0, 1.0))),
        ("heun2", ((1.0,), (1.0, 0.0))),
        ("heun3", ((1 / 3,), (1 / 3, 1 / 3), (1 / 4, 0.0, 3 / 4))),
        ("rk4", ((1 / 3,), (1 / 3, 1 / 3), (1.0, -1.0, 1.0), (1 / 8, 3 / 8, 3 / 8, 1 / 8))),
        ("rk4", ((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6))),
    ],
)
def test_tableau(method: str, rows: tuple[tuple[float, ...], ...]) -> None:
    right = FIXED_TABLEAUS[method]

    def build(tableau: Any = right) -> Build:
        solver = partial(ProbabilityFlow, method=method, spacing="quadratic", t_min=T_MIN)
        part = {**FIXED_TABLEAUS, method: tableau}
        return lambda n: with_part(ode_solver, "FIXED_TABLEAUS", part, solver(steps=n))

    Tooth(
        partial(order, claimed=int(right.order), steps=(40, 80)), build, lambda: build(right._replace(rows=rows))
    ).bites()


def test_trial_step_beyond_the_end() -> None:
    """Without its bounds an adaptive method asks for a score at times that there are not."""

    def unbounded(score: Score, sde: SDE, x: Tensor) -> Tensor:
        velocity, ends = probability_flow(score, sde), x.new_tensor([1.0, T_MIN])
        return odeint(lambda t, x: velocity(x, t), x, ends, rtol=1e-5, atol=1e-5, method="dopri5")[-1]

    def contract(solve: deterministic.Solver) -> None:
        score = samplers.gaussian_score(VP, 0.0, 1.001)
        deterministic.stays_inside(solve, score, VP, deterministic.latents(VP), t_min=T_MIN)

    Tooth(contract, lambda: ProbabilityFlow(t_min=T_MIN), lambda: unbounded).bites()


def test_an_evaluation_too_many() -> None:
    def contract(solve: deterministic.Solver) -> None:
        deterministic.evaluations_are(solve, VP, 7, t_min=T_MIN)

    solver = partial(DPMSolver, steps=7, t_min=T_MIN)
    Tooth(contract, solver, partial(solver, denoise=True)).bites()
    Tooth(contract, solver, partial(solver, steps=6)).bites()
