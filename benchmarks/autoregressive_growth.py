"""Time of draws from one masked autoregressive layer as the number of features grows, beside zuko and nflows."""

import os
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.autoregressive_speed import versions
from benchmarks.flow_peers import mafs, perturb, ratio, sample, seconds
from benchmarks.peers import prepare
from benchmarks.record import DOCS
from experiment.files import write_atomic
from experiment.plots import COLOURS, png

WIDTHS = {16: 256, 64: 256, 256: 256, 512: 512, 1024: 1024}  # of the two hidden layers, of each D
ROWS, BUDGET, LEAST = 64, 8.0, 2
MANY = (512, 1024)  # features and rows: as many rows as elsewhere beside these peers

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a number of features."""
    load = prepare()
    rows = [_row(D, ROWS) for D in WIDTHS]
    write_atomic(DOCS / "figures" / "autoregressive-growth.png", png(_figure(rows)))
    waiting = {"waiting_threads_spin": os.environ.get("GOMP_SPINCOUNT", "not")}
    settings = {"layers": 1, "dtype": "float32", **versions(), **waiting, "load_average_at_start": load}
    return settings, [*rows, _row(*MANY)]


def _row(D: int, rows: int) -> Row:
    hidden = (WIDTHS[D], WIDTHS[D])
    rivals = mafs(D, hidden, layers=1)
    perturb(rivals)
    x = torch.empty(rows, D)
    taken = seconds({name: sample(rival, x) for name, rival in rivals.items()}, budget=BUDGET, least=LEAST)
    peer = min(("zuko", "nflows"), key=lambda name: median(taken[name]))
    faster, quartiles = ratio(taken[peer], taken["ours"])
    return {
        "features": D,
        "rows": rows,
        "hidden": hidden,
        "rounds": len(taken["ours"]),
        **{f"{name}_ms": 1e3 * median(times) for name, times in taken.items()},
        "faster_than_peer": faster,
        "faster_than_peer_quartiles": quartiles,
    }


def _figure(rows: list[Row]) -> Figure:
    figure = Figure(figsize=(5.2, 3.9), layout="constrained")
    axis = figure.subplots()
    features = [row["features"] for row in rows]
    for name, colour in zip(("ours", "zuko", "nflows"), COLOURS, strict=False):
        axis.loglog(features, [row[f"{name}_ms"] for row in rows], "o-", color=colour, label=name)
    axis.set_xlabel("features D (hidden layers of 256, beyond as wide as D)")
    axis.set_ylabel(f"{ROWS} draws from one layer (ms)")
    axis.set_xticks(features, [str(D) for D in features], minor=False)
    axis.minorticks_off()
    axis.legend(frameon=False, loc="best")
    axis.spines[["top", "right"]].set_visible(False)
    return figure
