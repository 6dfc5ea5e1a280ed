"""Iterative Gaussianization of two toys without a gradient: what each layer removes, and how close it comes."""

import time
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.record import DOCS
from discrete import rbig
from experiment.data import TOY_ENTROPY_NATS, sample_toy
from experiment.files import write_atomic
from experiment.plots import COLOURS, INK, plain_axis, png

TOYS = ("8gaussians", "moons")
COMPONENTS = {"mixture": 16, "kde": 50, "empirical": 100}
ROWS, LAYERS = 10_000, 20

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """Held-out nats above the entropy after all layers, and what each removes on held-out rows."""
    rows = [_row(toy, marginal) for toy in TOYS for marginal in COMPONENTS]
    write_atomic(DOCS / "figures" / "rbig-progress.png", png(_figure(rows)))
    return {"rows": ROWS, "layers": LAYERS, "rotation": "random"}, rows


def _row(toy: str, marginal: Any) -> Row:
    g = torch.Generator().manual_seed(0)
    x, held_out = sample_toy(toy, ROWS, g), sample_toy(toy, ROWS, g)
    scale = x.std(0)
    x, held_out = x / scale, held_out / scale
    started, options = time.process_time(), {"layers": LAYERS, "rotation": "random", "marginal": marginal}
    flow, removed = rbig(x, components=COMPONENTS[marginal], validation=held_out, generator=g, **options)
    seconds = time.process_time() - started
    with torch.no_grad():
        nll = -(flow.log_prob(held_out) - scale.log().sum()).double()
    return {
        "toy": toy,
        "marginal": marginal,
        "components": COMPONENTS[marginal],
        "entropy_nats": TOY_ENTROPY_NATS[toy],
        "nll_nats": nll.mean().item(),
        "error_nats": (nll.std() / ROWS**0.5).item(),
        "gap_nats": nll.mean().item() - TOY_ENTROPY_NATS[toy],
        "first_removed_nats": removed[0].item(),
        "others_removed_nats": removed[1:].sum().item(),
        "removed_nats": removed.tolist(),
        "cpu_seconds": seconds,
    }


def _figure(rows: list[Row]) -> Figure:
    """What is left to remove until the gap of the last layer, by layer."""
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    for axis, toy in zip(figure.subplots(1, len(TOYS), squeeze=False)[0], TOYS, strict=True):
        for i, row in enumerate(r for r in rows if r["toy"] == toy):
            removed = torch.tensor(row["removed_nats"], dtype=torch.float64)
            left = row["gap_nats"] + removed.sum() - torch.cat([removed.new_zeros(1), removed.cumsum(0)])
            axis.plot(left.numpy(), color=COLOURS[i], marker="o", markersize=3, label=row["marginal"])
        axis.set_yscale("log")
        axis.set_xlabel("layers")
        axis.set_ylabel("held-out nats above the entropy")
        axis.set_title(toy, fontsize=11, color=INK)
        axis.legend(frameon=False, fontsize=9, loc="best")
        plain_axis(axis)
    return figure
