"""How many score evaluations each solver takes to be as close to the data as 1000 steps of Euler-Maruyama."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.record import RUNS
from benchmarks.sampler_figure import draw_figure
from benchmarks.samplers import BASELINE, BASELINE_NFE, SOLVERS, Solver, points, run
from cflows import SDE, VPSDE
from cflows.sde import Score
from core import GaussianMixture
from experiment import load_config, load_run, train
from experiment.comparison.distances import sliced_wasserstein, squared_mmd
from experiment.comparison.two_sample import bandwidth, distances
from experiment.draws.reverse_process import ReverseProcess
from experiment.threads import available_cores

GROUPS, ROWS, REFERENCE, KERNEL_ROWS, DIRECTIONS = 8, 2000, 20_000, 1000, 16
EVALUATIONS = (5, 10, 15, 20, 30, 50, 70, 100, 200, 500, BASELINE_NFE)
CONVERGED = 200  # most evaluations of a deterministic solver; more change nothing
TOLERANCES = {"adaptive SDE": (0.5, 0.2, 0.1, 0.05), "ODE, dopri5": (1e-1, 1e-2, 1e-3, 1e-4)}
CRITERIA = ("within_modes", "sliced_wasserstein", "weight_error")
TOY = "8gaussians"

Row = dict[str, Any]
Statistics = dict[str, Tensor]  # name to one value a group, (GROUPS,)


class Problem(NamedTuple):
    """Data of known modes, and their score, exact or learned.

    Attributes:
        modes: the law of the data.
        score: s(x, t).
        sde: the noising process.
        most: evaluations of any other solver than the baseline.
        decode: from the score's rows to those of the data.
    """

    modes: GaussianMixture
    score: Score
    sde: SDE
    most: int = 200
    decode: Callable[[Tensor], Tensor] = lambda x: x


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a solver, with its curve for each problem; and the figure."""
    torch.set_num_threads(available_cores())
    rows: list[Row] = [{"solver": name, "kind": solver.kind} for name, solver in SOLVERS.items()]
    floors = {}
    for name, problem in problems().items():
        print(f"   {name}", flush=True)
        floors[name], curves = measured(problem)
        for row in rows:
            row[name] = curves[row["solver"]]
    settings = {"groups": GROUPS, "rows": ROWS, "reference": REFERENCE, "sde": "vp", "floors": floors}
    draw_figure(quality=(settings, rows))
    return settings, rows


def problems() -> dict[str, Problem]:
    """Two mixtures with their exact score, and a toy with a learned one."""
    sde, ring, space = VPSDE(), ring_of_modes(), modes_in_space()
    return {
        "8 modes, D = 2": Problem(ring, exact_score(ring, sde), sde, most=BASELINE_NFE),
        "4 modes, D = 16": Problem(space, exact_score(space, sde), sde),
        f"{TOY}, learned": learned(),
    }


def ring_of_modes(*, radius: float = math.sqrt(2), std: float = 0.1, uneven: bool = True) -> GaussianMixture:
    """Eight modes on a circle, every other one of twice the weight if uneven; by default each coordinate has std 1."""
    angles = torch.arange(8) * (math.pi / 4)
    means = radius * torch.stack([angles.cos(), angles.sin()], 1)
    weights = torch.tensor([1.0, 2.0 if uneven else 1.0]).repeat(4)
    return GaussianMixture(means, std**2 * torch.eye(2).expand(8, 2, 2), weights)


def modes_in_space(*, D: int = 16, count: int = 4) -> GaussianMixture:
    """Modes of different weights and covariances, with stds from 0.1 to 0.5 along axes that are their own."""
    generator = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(count, D, D, generator=generator))
    covariances = Q @ torch.diag(torch.logspace(-2, math.log10(0.25), D)) @ Q.mT
    means = torch.randn(count, D, generator=generator)
    return GaussianMixture(means, (covariances + covariances.mT) / 2, torch.arange(1.0, count + 1))


def exact_score(data: GaussianMixture, sde: SDE) -> Score:
    """Of the noised mixture, in closed form."""
    return lambda x, t: data.perturbed_score(x, *sde.marginal(t))


def learned() -> Problem:
    """The score model of the toy, whose law is a mixture too."""
    trained = train(load_config(f"configs/{TOY}/vp_sde.toml"), RUNS / f"{TOY}-vp_sde", resume=True, progress_bar=True)
    process = ReverseProcess.of(load_run(trained.path))
    modes = ring_of_modes(radius=4 / 1.414, std=0.5 / 1.414, uneven=False)
    return Problem(modes, process.score(None), process.inner.sde, decode=process.decode)


@torch.no_grad()
def measured(problem: Problem) -> tuple[Row, dict[str, Row]]:
    """What exact draws are at, and the curve of each solver with the evaluations that it needs."""
    judge = Judge(problem.modes)
    x_T = problem.sde.prior(problem.modes.event_shape).sample((GROUPS * ROWS,), generator=_rng(0))
    exact = judge(problem.modes.sample((GROUPS * ROWS,), generator=_rng(1)))
    curves: dict[str, Row] = {}
    for name, solver in SOLVERS.items():
        curves[name] = {"points": curve(problem, judge, name, solver, x_T)}
    baseline = next(p for p in curves[BASELINE]["points"] if p["steps"] == BASELINE_NFE)
    for found in curves.values():
        found["needed"] = needed(found["points"], baseline)
        found["needed_by"] = {name: needed(found["points"], baseline, (name,)) for name in CRITERIA}
    return summary(exact), curves


def curve(problem: Problem, judge: "Judge", name: str, solver: Solver, x_T: Tensor) -> list[Row]:
    """One row a setting; without distances where draws are not finite."""
    most = min(problem.most, CONVERGED) if solver.kind == "deterministic" else problem.most
    most = BASELINE_NFE if name == BASELINE else most
    grid = [n for n in EVALUATIONS if n <= most]
    rows = []
    for setting, sampler in points(solver, evaluations=grid, tolerances=TOLERANCES.get(name, ())):
        x, evaluations = run(sampler, problem.score, problem.sde, x_T, seed=2)
        row = {**setting, "evaluations": evaluations}
        rows.append({**row, **summary(judge(problem.decode(x)))} if x.isfinite().all() else row)
    return rows


class Judge:
    """Distances of draws to rows of the data, group by group.

    Within modes: each row counted from the likeliest of the modes, in standard deviations of that mode, against the
    data's rows likewise. The weights of modes, noise of which outweighs all else in a distance of the rows themselves,
    hardly matter there.
    """

    def __init__(self, modes: GaussianMixture) -> None:
        self.modes = modes
        self.reference = modes.sample((REFERENCE,), generator=_rng(3))
        self.whitened, _ = whitened(modes, self.reference)
        own = self.reference[:KERNEL_ROWS].double()
        self.h = bandwidth(distances(own, own))

    def __call__(self, x: Tensor) -> Statistics:
        """Each statistic for each group of rows."""
        groups = [self._group(rows) for rows in x.split(ROWS)]
        return {name: torch.tensor([group[name] for group in groups]) for name in groups[0]}

    def _group(self, x: Tensor) -> dict[str, float]:
        z, k = whitened(self.modes, x)
        weights = self.modes.log_weights.exp()
        found = torch.bincount(k, minlength=len(weights)) / len(x)
        return {
            "sliced_wasserstein": _sliced(x, self.reference),
            "within_modes": _sliced(z, self.whitened),
            "squared_mmd": squared_mmd(x[:KERNEL_ROWS], self.reference[:KERNEL_ROWS], h=self.h),
            "weight_error": 0.5 * (found - weights).abs().sum().item(),
        }


def whitened(modes: GaussianMixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """(x - μ_k) in the axes and standard deviations of mode k, and k, the likeliest."""
    std = modes.eigenvalues.sqrt()
    z = torch.einsum("kdj,rkd->rkj", modes.eigenvectors, x.unsqueeze(1) - modes.means) / std
    k = (modes.log_weights - std.log().sum(1) - 0.5 * z.square().sum(2)).argmax(1)
    return z[torch.arange(len(x)), k], k


def summary(statistics: Statistics) -> dict[str, list[float]]:
    """Mean and standard error of each statistic over the groups."""
    return {name: [v.mean().item(), v.std().item() / math.sqrt(len(v))] for name, v in statistics.items()}


def needed(rows: list[Row], baseline: Row, criteria: Sequence[str] = CRITERIA) -> float | None:
    """Fewest evaluations of which every criterion is at most two standard errors above the baseline's."""
    for row in sorted(rows, key=lambda row: row["evaluations"]):
        if "within_modes" in row and all(_as_close(row[name], baseline[name]) for name in criteria):
            return row["evaluations"]
    return None


def _as_close(found: list[float], baseline: list[float]) -> bool:
    return found[0] - baseline[0] <= 2 * math.hypot(found[1], baseline[1])


def _sliced(x: Tensor, y: Tensor) -> float:
    return sliced_wasserstein(x, y, directions=DIRECTIONS, generator=_rng(4))


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
