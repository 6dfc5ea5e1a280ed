"""What an ODE likelihood costs at the error of the field's standard routine, beside scores that are known exactly."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.ode_problems import SDE, T_MIN, Counted, Problem, problems
from benchmarks.ode_yardstick import yardstick
from cflows import probability_flow_log_prob
from core import Hutchinson

TOLERANCES = (1e-3, 1e-4, 3e-5, 1e-5, 3e-6)
ADAMS_STEPS = (24, 32, 48, 64, 100, 160)
STEPS = {"adams": ADAMS_STEPS, "adams_sparse": ADAMS_STEPS, "rk4": (8, 12, 16, 24, 32, 48)}
METHODS = ("dopri5", "dopri5_per_sample", "adams", "adams_sparse", "rk4")
HALVINGS = 3  # of the way between the coarsest level that is as close as the yardstick and the next coarser one
DEFAULT = 1e-5  # the yardstick's tolerance, and ours
ROUNDS = 9

Row = dict[str, Any]
Solve = Callable[[Tensor, int], tuple[Tensor, float]]  # rows, seed -> log-densities, evaluations a row


@dataclass(frozen=True)
class Level:
    """A method at one tolerance or number of steps."""

    method: str
    tolerance: float = DEFAULT
    steps: int = 100

    @property
    def name(self) -> str:
        """For the table."""
        fixed = self.method in STEPS
        return f"{self.method}, {self.steps} steps" if fixed else f"{self.method}, {self.tolerance:.2g}"

    def towards(self, other: "Level") -> "Level":
        """Half of the way."""
        middle = math.sqrt(self.tolerance * other.tolerance)
        return Level(self.method, tolerance=middle, steps=(self.steps + other.steps) // 2)


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a problem and method: the points of its curve, and what it costs at the yardstick's error."""
    torch.set_num_threads(1)
    rows = [row for problem in problems() for row in _rows(problem)]
    settings = {"t_min": T_MIN, "yardstick_tolerance": DEFAULT, "rounds": ROUNDS, "dtype": "float32", "probes": 1}
    return settings, rows


def _rows(problem: Problem) -> list[Row]:
    """Errors are those of one solve, times those of `ROUNDS`, of the levels found and the yardstick alone."""
    score, batches = problem.score, problem.batches
    exact = [reference(problem, x, seed) for seed, x in enumerate(batches)]
    bar = point(field_routine(score), score, batches, exact)["rms_error_nats"]
    solves, curves = {"yardstick": field_routine(score)}, dict[str, list[Row]]()
    for method in METHODS:
        tried: dict[Level, Row] = {}
        found = cheapest(levels(method), tried, lambda level: point(ours(score, level), score, batches, exact), bar)
        curves[method] = [{"level": level.name, **row} for level, row in tried.items()]
        if found is not None:
            solves[found.name] = ours(score, found)
    timed = measured(solves, score, batches, exact)
    return [_row(problem.name, "yardstick", [], timed, {"yardstick"})] + [
        _row(problem.name, method, curve, timed, {row["level"] for row in curve}) for method, curve in curves.items()
    ]


def _row(problem: str, method: str, curve: list[Row], timed: dict[str, Row], names: set[str]) -> Row:
    at = next(({"level": name, **row} for name, row in timed.items() if name in names), None)
    speed_up = timed["yardstick"]["seconds"] / at["seconds"] if at else None
    return {"problem": problem, "method": method, "points": curve, "at": at, "speed_up": speed_up}


def levels(method: str) -> list[Level]:
    """From coarse to fine."""
    if method in STEPS:
        return [Level(method, steps=n) for n in STEPS[method]]
    return [Level(method, tolerance=v) for v in TOLERANCES]


def cheapest(
    coarse_to_fine: list[Level], tried: dict[Level, Row], measure_at: Callable[[Level], Row], bar: float
) -> Level | None:
    """The coarsest level within the error, None where none is: first of the list, then between it and the one before.

    Args:
        coarse_to_fine: levels of one method.
        tried: where the point of every level that was looked at goes.
        measure_at: gives it.
        bar: the error.
    """

    def good(level: Level) -> bool:
        tried[level] = measure_at(level)
        return tried[level]["rms_error_nats"] <= bar

    before = None
    for found in coarse_to_fine:
        if good(found):
            break
        before = found
    else:
        return None
    for _ in range(HALVINGS if before else 0):
        middle = cast(Level, before).towards(found)
        if middle in tried:
            break
        found, before = (middle, before) if good(middle) else (found, middle)
    return found


def measured(solves: dict[str, Solve], score: Counted, batches: list[Tensor], exact: list[Tensor]) -> dict[str, Row]:
    """The point of each, every round in the other order, so that a machine that slows down slows all alike."""
    taken: dict[str, list[float]] = {name: [] for name in solves}
    points: dict[str, Row] = {}
    for round_ in range(ROUNDS):
        for name, solve in list(solves.items())[:: -1 if round_ % 2 else 1]:
            points[name] = point(solve, score, batches, exact)
            taken[name].append(points[name]["seconds"])
    return {name: row | {"seconds": median(taken[name]), "rounds": taken[name]} for name, row in points.items()}


def point(solve: Solve, score: Counted, batches: list[Tensor], exact: list[Tensor]) -> Row:
    """Seconds of CPU time and error over all batches."""
    score.calls = score.rows_seen = 0
    started, found = time.process_time(), [solve(x, seed) for seed, x in enumerate(batches)]
    seconds = time.process_time() - started
    off = torch.cat([(value - truth).abs() for (value, _), truth in zip(found, exact, strict=True)])
    return {
        "seconds": seconds,
        "rms_error_nats": off.square().mean().sqrt().item(),
        "max_error_nats": off.max().item(),
        "nfe": sum(count for _, count in found) / len(found),
        "model_calls": score.calls / len(batches),
        "model_rows": score.rows_seen / sum(len(x) for x in batches),
    }


def _probe(x: Tensor, seed: int) -> Tensor:
    """The probe of a batch, the same for every method."""
    return Hutchinson().draw(x, torch.Generator().manual_seed(seed))


def field_routine(score: Counted) -> Solve:
    """The yardstick at its default tolerance."""

    def solve(x: Tensor, seed: int) -> tuple[Tensor, float]:
        y = x.float()
        return yardstick(score, SDE, y, _probe(y, seed)[0], t_min=T_MIN, tolerance=DEFAULT)

    return solve


def ours(score: Counted, level: Level) -> Solve:
    """`probability_flow_log_prob` without its second solve."""

    @torch.no_grad()
    def solve(x: Tensor, seed: int) -> tuple[Tensor, float]:
        estimate = probability_flow_log_prob(
            score,
            SDE,
            x.float(),
            divergence=Hutchinson(),
            method=level.method,
            rtol=level.tolerance,
            atol=level.tolerance,
            steps=level.steps,
            t_min=T_MIN,
            error_factor=None,
            generator=torch.Generator().manual_seed(seed),
        )
        return estimate.log_prob.double(), estimate.nfe.double().mean().item()

    return solve


@torch.no_grad()
def reference(problem: Problem, x: Tensor, seed: int) -> Tensor:
    """What a solver without error gives with these probes: 1e-9 in float64."""
    estimate = probability_flow_log_prob(
        problem.exact,
        SDE,
        x,
        divergence=Hutchinson(),
        method="dopri8",
        rtol=1e-9,
        atol=1e-9,
        t_min=T_MIN,
        error_factor=None,
        generator=torch.Generator().manual_seed(seed),
    )
    return estimate.log_prob
