"""Time and memory as features, rows, layers or threads grow, one of them at a time, and the power they grow with."""

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.flow_peers import Rival, log_prob, seconds, training_step
from benchmarks.memory import peak_bytes
from benchmarks.peers import prepare
from benchmarks.record import DOCS
from cflows import ConditionalFlowMatching, FlowMatching
from cflows.ode.solver import ODESolver
from core import Hutchinson
from core.bases import StandardNormal
from discrete import MAF, NSF, Flow, GaussianizationFlow, RealNVP
from discrete.bijection import Compose
from discrete.bijections.linear import LULinear
from experiment.files import write_atomic
from experiment.plots import COLOURS, png

WIDTH, BUDGET, WARM = (128, 128), 1.0, 0.3
AXES = {
    "features": (2, 8, 32, 128, 512, 2048, 4096),
    "rows": (1, 16, 256, 4096, 65536),
    "layers": (1, 4, 16, 64),
    "threads": (1, 2),
}
Row = dict[str, Any]


class Setting(NamedTuple):
    """What one axis changes of."""

    features: int = 64
    rows: int = 256
    layers: int = 4
    threads: int = 1


class Kind(NamedTuple):
    """A family to grow.

    Attributes:
        build: from features and layers.
        power: of the time in features, in the long run; in rows and in layers all grow with the first. A network of a
            MAF is as wide as there are features: it needs a unit for each degree.
    """

    build: Callable[[int, int], Flow | FlowMatching]
    power: int


def _matching(D: int, layers: int) -> Flow | FlowMatching:
    """Eight steps of the fourth order with one probe: 32 passes of one network and its vector-Jacobian product."""
    solver = ODESolver(method="rk4", steps=8)
    probe = Hutchinson(probes=1)
    return FlowMatching(D, hidden=(WIDTH[0],) * layers, solver=solver, divergence=probe, error_factor=None)


def _linear(D: int, layers: int) -> Flow:
    return Flow(Compose(*(LULinear(D) for _ in range(layers))), StandardNormal(D))


def _maf(D: int, layers: int) -> Flow:
    return MAF(D, layers=layers, hidden=(max(D, WIDTH[0]),) * 2, normalization="none")


KINDS = {
    "RealNVP": Kind(lambda D, layers: RealNVP(D, layers=layers, hidden=WIDTH, normalization="none"), 1),
    "MAF": Kind(_maf, 2),
    "NSF": Kind(lambda D, layers: NSF(D, layers=layers, hidden=WIDTH), 2),
    "LU": Kind(_linear, 2),
    "Gaussianization": Kind(lambda D, layers: GaussianizationFlow(D, layers=layers), 2),
    "flow matching": Kind(_matching, 1),
}


def measure() -> tuple[Row, list[Row]]:
    """One row a family and axis."""
    load = prepare(1)
    rows = [_along(name, axis) for axis in AXES for name in KINDS]
    torch.set_num_threads(1)
    write_atomic(DOCS / "figures" / "scaling.png", png(_figure(rows)))
    return {**Setting()._asdict(), "width": WIDTH, "dtype": "float32", "load_average_at_start": load}, rows


def _along(name: str, axis: str) -> Row:
    kind = KINDS[name]
    values = AXES[axis]
    found = [_measured(kind, Setting()._replace(**{axis: value})) for value in values]
    row: Row = {"model": name, "axis": axis, "values": values, **{key: [f[key] for f in found] for key in found[0]}}
    theory = {"features": kind.power, "rows": 1, "layers": 1, "threads": -1}[axis]
    return {**row, "power": {key: power(values, row[key]) for key in found[0]}, "theory": theory}


def power(values: Sequence[float], found: Sequence[float]) -> float:
    """Slope of log found in log value over the last two values: what lies below is the cost of the calls."""
    (a, b), (u, v) = values[-2:], found[-2:]
    return math.log(v / u) / math.log(b / a)


def _measured(kind: Kind, at: Setting) -> dict[str, float]:
    """Of log-likelihoods and training steps milliseconds and MiB."""
    torch.set_num_threads(at.threads)
    model, x = kind.build(at.features, at.layers), torch.randn(at.rows, at.features)
    matching = ConditionalFlowMatching(model) if isinstance(model, FlowMatching) else None

    def objective(x: Tensor) -> Tensor:
        return model.log_prob(x) if matching is None else -matching(x)

    density, training = (Rival(model, of, lambda rows: model.sample((rows,))) for of in (model.log_prob, objective))
    found = {}
    for task, run in {"log_prob": log_prob(density, x), "training": training_step(training, x)}.items():
        found[f"{task}_ms"] = 1e3 * median(seconds({task: run}, budget=BUDGET, warm=WARM)[task])
        found[f"{task}_mib"] = peak_bytes(run) / 2**20
    return found


def _figure(rows: list[Row]) -> Figure:
    figure = Figure(figsize=(9.6, 5.6), layout="constrained")
    axes = figure.subplots(2, 3, sharex="col", sharey="row")
    for column, axis in enumerate(("features", "rows", "layers")):
        for of, label in enumerate(("log_prob_ms", "training_mib")):
            panel = axes[of, column]
            for row, colour in zip((r for r in rows if r["axis"] == axis), COLOURS, strict=False):
                panel.loglog(row["values"], row[label], "o-", color=colour, label=row["model"], markersize=3)
            panel.spines[["top", "right"]].set_visible(False)
        axes[1, column].set_xlabel(axis)
    axes[0, 0].set_ylabel("log-likelihood (ms)")
    axes[1, 0].set_ylabel("training step, peak (MiB)")
    axes[0, 0].legend(frameon=False, fontsize="small", loc="best")
    return figure
