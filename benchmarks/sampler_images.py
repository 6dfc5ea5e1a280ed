"""Draws of one score model of MNIST by each solver, judged by a classifier's features, against score evaluations."""

import math
import time
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from benchmarks.judge import SETTINGS, Judge, accuracy, confident_share, features_of, trained_judge
from benchmarks.labels import Labelled, labelled_mnist
from benchmarks.record import DATA, DOCS, RUNS
from benchmarks.sampler_figure import draw_figure
from benchmarks.samplers import BASELINE, BASELINE_NFE, SOLVERS, Solver, points, run
from experiment import load_config, load_run, train
from experiment.comparison.distances import frechet_distance, sliced_wasserstein, squared_mmd
from experiment.comparison.two_sample import bandwidth, distances
from experiment.draws.reverse_process import ReverseProcess
from experiment.files import write_atomic
from experiment.plots import png, sample_figure
from experiment.threads import set_threads

CONFIG, RUN = "configs/mnist/vp_sde_unet.toml", RUNS / "mnist-vp_sde_unet"
SAMPLES, CHUNK, REFERENCE, KERNEL_ROWS, DIRECTIONS, RESAMPLES = 400, 100, 10_000, 1000, 128, 30
EVALUATIONS = {
    BASELINE: (10, 20, 50, 100, 200, BASELINE_NFE),
    "stochastic": (10, 20, 50, 100),
    "deterministic": (10, 20, 50),
}
TOLERANCES = {"adaptive SDE": (0.5, 0.2), "ODE, dopri5": (1e-1, 1e-2)}
CHOSEN = (
    BASELINE,
    "ancestral, in log-SNR",
    "predictor-corrector",
    "stochastic Runge-Kutta, in log-SNR",
    "adaptive SDE",
    "SDE-DPM-Solver++ 2M",
    "DDIM",
    "DPM-Solver++ 2M",
    "EDM Heun",
    "ODE, dopri5",
)

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a solver, with its curve; the figure of all problems and a sheet of draws."""
    trained = train(load_config(CONFIG), RUN, data_root=DATA, resume=True, progress_bar=True)
    model = load_run(trained.path)
    set_threads(0, model)
    known, unseen = labelled_mnist(DATA)
    judge = trained_judge(known)
    measures = Measures(judge, known)
    floor = measures.floor(unseen)
    rows, sheets = measured(ReverseProcess.of(model), measures)
    settings = {
        "config": CONFIG,
        "samples": SAMPLES,
        "reference": REFERENCE,
        "judge": SETTINGS,
        "judge_accuracy": accuracy(judge, unseen),
        "floor": floor,
    }
    draw_figure(images=(settings, rows))
    panels = {"test images": torch.from_numpy(unseen[0][:64]), **best(rows, sheets)}
    figure = sample_figure(
        {name: x.double().numpy() for name, x in panels.items()},
        image_shape=(28, 28),
        title="MNIST: one score model, solvers and score evaluations",
    )
    write_atomic(DOCS / "figures" / "sampler-images.png", png(figure))
    return settings, rows


class Measures:
    """Distances of draws to training images; Fréchet and MMD of the judge's features, Wasserstein of pixels."""

    def __init__(self, judge: Judge, known: Labelled) -> None:
        self.judge = judge
        order = np.random.default_rng(0).permutation(len(known[0]))[:REFERENCE]
        self.pixels = torch.from_numpy(known[0][order]).float()
        self.features = features_of(judge, self.pixels)
        own = self.features[:KERNEL_ROWS].double()
        self.h = bandwidth(distances(own, own))

    def __call__(self, x: Tensor, *, resamples: int = RESAMPLES) -> dict[str, list[float]]:
        """Each with the standard error over the draws where that is known."""
        features = features_of(self.judge, x)
        share = confident_share(self.judge, features)
        found = {
            "frechet": [frechet_distance(features, self.features)],
            "squared_mmd": [squared_mmd(features, self.features[:KERNEL_ROWS], h=self.h)],
            "sliced_wasserstein": [
                sliced_wasserstein(x, self.pixels[:KERNEL_ROWS], directions=DIRECTIONS, generator=_rng(4))
            ],
            "confident": [share, math.sqrt(share * (1 - share) / len(x))],
        }
        if resamples:
            found["frechet"].append(self._bootstrap(features, resamples))
        return found

    def floor(self, unseen: Labelled) -> dict[str, list[float]]:
        """The same of as many test images: mean and standard deviation over disjoint parts of them."""
        x = torch.from_numpy(unseen[0][np.random.default_rng(1).permutation(len(unseen[0]))]).float()
        parts = [self(part, resamples=0) for part in x.split(SAMPLES) if len(part) == SAMPLES]
        values = {name: torch.tensor([part[name][0] for part in parts]) for name in parts[0]}
        return {name: [v.mean().item(), v.std().item()] for name, v in values.items()}

    def _bootstrap(self, features: Tensor, resamples: int) -> float:
        """Standard deviation of the Fréchet distance over draws of the draws."""
        generator = _rng(5)
        index = [torch.randint(len(features), (len(features),), generator=generator) for _ in range(resamples)]
        return torch.tensor([frechet_distance(features[i], self.features) for i in index]).std().item()


@torch.no_grad()
def measured(process: ReverseProcess, measures: Measures) -> tuple[list[Row], dict[tuple[str, float], Tensor]]:
    """The curves, from one x_T for all, and 64 draws of each point."""
    x_T = process.inner.prior.sample((SAMPLES,), generator=_rng(0))
    rows, sheets = [], {}
    for name in CHOSEN:
        solver, curve = SOLVERS[name], []
        for setting, sampler in _points(name, solver):
            started = time.monotonic()
            x, evaluations = run(sampler, process.score(None), process.inner.sde, x_T, seed=1, chunk=CHUNK)
            seconds = time.monotonic() - started
            row = {**setting, "evaluations": evaluations, "seconds": seconds}
            print(f"   {name}, {evaluations:.0f} evaluations, {seconds:.0f} s", flush=True)
            if x.isfinite().all():
                pixels = rearrange(process.decode(x), "rows 1 h w -> rows (h w)").clamp(0, 255) / 255
                row |= measures(pixels)
                sheets[name, evaluations] = pixels[:64]
            curve.append(row)
        rows.append({"solver": name, "kind": solver.kind, "points": curve})
    baseline = next(p for p in rows[0]["points"] if p["steps"] == BASELINE_NFE)
    for row in rows:
        row["needed"] = needed(row["points"], baseline)
    return rows, sheets


def _points(name: str, solver: Solver) -> Any:
    evaluations = EVALUATIONS.get(name, EVALUATIONS[solver.kind])
    return points(solver, evaluations=evaluations, tolerances=TOLERANCES.get(name, ()))


def needed(curve: list[Row], baseline: Row) -> float | None:
    """Fewest evaluations whose Fréchet distance is at most two standard errors above the baseline's."""
    for row in sorted(curve, key=lambda row: row["evaluations"]):
        if "frechet" in row:
            excess = row["frechet"][0] - baseline["frechet"][0]
            if excess <= 2 * math.hypot(row["frechet"][1], baseline["frechet"][1]):
                return row["evaluations"]
    return None


def best(rows: list[Row], sheets: dict[tuple[str, float], Tensor]) -> dict[str, Tensor]:
    """The baseline with many evaluations and with few, and the solver of each kind that needs the fewest."""
    few = min((row for row in rows if row["needed"]), key=lambda row: row["needed"])["needed"]
    nearest = min((n for name, n in sheets if name == BASELINE), key=lambda n: abs(math.log(n / few)))
    chosen = [(BASELINE, float(BASELINE_NFE)), (BASELINE, nearest)]
    for kind in ("stochastic", "deterministic"):
        able = [row for row in rows if row["kind"] == kind and row["needed"] and row["solver"] != BASELINE]
        if able:
            row = min(able, key=lambda row: row["needed"])
            chosen.append((row["solver"], row["needed"]))
    return {f"{name}, {n:.0f}": sheets[name, n] for name, n in chosen}


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
