"""Coupling flows beside their bare networks and the same flows of nflows, normflows, FrEIA and zuko."""

import importlib.metadata
import warnings
from typing import Any

import torch

from benchmarks.coupling_peers import KINDS, Size, rivals
from benchmarks.peers import TASKS, compared, differences, prepare, runs_of

SIZE, ROWS, BUDGET = Size(64, 8, (256, 256)), 1024, 10.0
OVER_BARE = {"log_prob": 1.15, "training step": 1.15}  # not of splines

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a kind of coupling and task."""
    load = prepare(1)
    warnings.filterwarnings("ignore", message="Inputs to the softmax")  # of nflows
    rows = [row for kind in KINDS for row in _rows(kind)]
    versions = {peer: importlib.metadata.version(peer) for peer in ("nflows", "normflows", "FrEIA", "zuko")}
    settings = {**SIZE._asdict(), "rows": ROWS, "dtype": "float32", "threads": 1}
    return {**settings, **versions, "load_average_at_start": load}, rows


def _rows(kind: str) -> list[Row]:
    found, x = rivals(kind, SIZE), torch.randn(ROWS, SIZE.D)
    about = {"coupling": kind, "differences_nats": differences(found.all, found.twins, x)}
    bare = {task: None if kind == "spline" else OVER_BARE.get(task) for task in TASKS}
    return [
        {**about, "task": task, **compared(runs_of(task, found.all, x), budget=BUDGET, over_bare=bare[task])}
        for task in TASKS
    ]
