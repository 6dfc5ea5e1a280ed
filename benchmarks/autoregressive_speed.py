"""Autoregressive flows beside bare networks of the same size and the flows of zuko, nflows and Pyro."""

import importlib.metadata
import os
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks import flow_peers
from benchmarks.flow_peers import Rival, bare, perturb, ratio, seconds
from benchmarks.peers import TASKS, prepare, runs_of

D, HIDDEN, ROWS, BUDGET = 64, (256, 256), 1024, 10.0
PEERS = ("zuko", "nflows", "Pyro")
# At most so many times the bare networks, and at least so many times as fast as the fastest peer.
TARGETS: dict[tuple[str, str], dict[str, float]] = {
    ("MAF", "log_prob"): {"bare": 1.15, "peer": 1.0},
    ("MAF", "training step"): {"bare": 1.15, "peer": 1.0},
    ("MAF", "sample"): {"peer": 15.0},
    ("IAF", "log_prob"): {"peer": 15.0},
    ("IAF", "sample"): {"bare": 1.25, "peer": 1.0},
    ("NSF", "log_prob"): {"peer": 2.0},
    ("NSF", "training step"): {"peer": 1.0},
    ("NSF", "sample"): {"peer": 20.0},
}

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a flow and task."""
    load = prepare()
    families = {"MAF": (flow_peers.mafs, 2), "IAF": (flow_peers.iafs, 2), "NSF": (flow_peers.nsfs, 23)}
    x = torch.randn(ROWS, D)
    rows = []
    for family, (build, parameters) in families.items():
        rivals = {"bare": bare(D, HIDDEN, parameters), **build(D, HIDDEN)}
        perturb(rivals)
        rows += [_row(family, task, rivals, x) for task in TASKS if (family, task) in TARGETS]
    settings = {"features": D, "layers": flow_peers.LAYERS, "hidden": HIDDEN, "rows": ROWS, "dtype": "float32"}
    waiting = {"waiting_threads_spin": os.environ.get("GOMP_SPINCOUNT", "not"), "threads_of_our_steps": 1}
    return {**settings, **versions(), **waiting, "load_average_at_start": load}, rows


def versions() -> dict[str, str]:
    return {peer: importlib.metadata.version(peer) for peer in ("zuko", "nflows", "pyro-ppl")}


def _row(family: str, task: str, rivals: dict[str, Rival], x: Tensor) -> Row:
    taken = seconds(runs_of(task, rivals, x), budget=BUDGET)
    peer = min((name for name in PEERS if name in taken), key=lambda name: median(taken[name]))
    target = TARGETS[family, task]
    over_bare, bare_quartiles = ratio(taken["ours"], taken["bare"])
    faster, faster_quartiles = ratio(taken[peer], taken["ours"])
    return {
        "flow": family,
        "task": task,
        "rounds": len(taken["ours"]),
        **{f"{name}_ms": 1e3 * median(times) for name, times in taken.items()},
        "over_bare": over_bare,
        "over_bare_quartiles": bare_quartiles,
        "fastest_peer": peer,
        "faster_than_peer": faster,
        "faster_than_peer_quartiles": faster_quartiles,
        "target": target,
        "met": over_bare <= target.get("bare", over_bare) and faster >= target["peer"],
    }
