"""The Gaussianization flow beside zuko's at equal size."""

import importlib
import importlib.metadata
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.flow_peers import Rival, ratio, seconds
from benchmarks.peers import TASKS, prepare, runs_of
from discrete import GaussianizationFlow

D, LAYERS, ROWS, BUDGET, STD = 64, 5, 1024, 10.0, 0.3
COMPONENTS = (8, 32)
TARGETS = {"log_prob": 2.0, "sample": 5.0}  # at least so many times as fast

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a size and task."""
    load = prepare(1)  # a thread, as the scripts choose for models of this size
    rows = [_row(components, task) for components in COMPONENTS for task in TASKS]
    settings = {"features": D, "layers": LAYERS, "rows": ROWS, "dtype": "float32", "load_average_at_start": load}
    return {**settings, "zuko": importlib.metadata.version("zuko")}, rows


def _row(components: int, task: str) -> Row:
    rivals = {"ours": _ours(components), "zuko": _zuko(components)}
    x = torch.randn(ROWS, D)
    taken = seconds(runs_of(task, rivals, x), budget=BUDGET)
    faster, quartiles = ratio(taken["zuko"], taken["ours"])
    return {
        "components": components,
        "task": task,
        "rounds": len(taken["ours"]),
        **{f"{name}_ms": 1e3 * median(times) for name, times in taken.items()},
        "faster_than_zuko": faster,
        "faster_than_zuko_quartiles": quartiles,
        "target": TARGETS.get(task),
        "met": faster >= TARGETS.get(task, 0.0),
    }


@torch.no_grad()
def _ours(components: int) -> Rival:
    """Away from where it starts, as zuko's, which starts on noise."""
    flow = GaussianizationFlow(D, layers=LAYERS, components=components)
    for p in flow.parameters():
        p += STD * torch.randn(p.shape)
    return Rival(flow, flow.log_prob, lambda rows: flow.sample((rows,)))


def _zuko(components: int) -> Rival:
    flow: nn.Module = importlib.import_module("zuko").flows.GF(D, 0, transforms=LAYERS, components=components)
    return Rival(flow, lambda x: flow().log_prob(x), lambda rows: flow().sample((rows,)))
