"""Ours beside peers: first whether the densities are the same, then each task in turn, as ratios of medians."""

import os
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.flow_peers import Rival, Run, log_prob, ratio, sample, seconds, training_step
from experiment.threads import available_cores, keep_freed_memory

TOLERANCE = 1e-9
TASKS: dict[str, Callable[[Rival, Tensor], Run]] = {
    "log_prob": log_prob,
    "training step": training_step,
    "sample": sample,
}

Row = dict[str, Any]


def prepare(threads: int | None = None) -> float:
    """So many threads or one a core, freed memory kept, seeded weights and draws; the load average before all that."""
    load = os.getloadavg()[0]
    keep_freed_memory()
    torch.set_num_threads(threads or available_cores())
    torch.manual_seed(0)
    return load


def runs_of(task: str, rivals: dict[str, Rival], x: Tensor) -> dict[str, Run]:
    """The task of each."""
    return {name: TASKS[task](rival, x) for name, rival in rivals.items()}


@torch.no_grad()
def difference(ours: Rival, twin: Rival, x: Tensor) -> float:
    """Largest difference of the log-densities of rows, nats, of modules in float64.

    Raises:
        RuntimeError: more than rounding, so that the times of the two say nothing of one another.
    """
    found, expected = ours.log_prob(x.double()), twin.log_prob(x.double())
    worst = (found - expected).abs().max().item()
    if not worst <= TOLERANCE * expected.abs().max().item():
        raise RuntimeError(f"log-densities of the same weights differ by {worst:.1e} nats, so that times say nothing.")
    return worst


def differences(rivals: dict[str, Rival], twins: tuple[str, ...], x: Tensor) -> dict[str, float]:
    """Of each twin from ours; all modules are float32 afterwards."""
    found = {name: difference(rivals["ours"], rivals[name], x) for name in twins}
    for rival in rivals.values():
        rival.module.float()
    return found


def compared(runs: dict[str, Run], *, budget: float, faster: float = 1.0, over_bare: float | None = None) -> Row:
    """Medians, how many times as fast as the fastest peer ours is, and its time over that of bare networks.

    Args:
        runs: of `ours`, of peers, and of `bare` where there are networks.
        budget: seconds to spend.
        faster: how many times as fast it ought to be.
        over_bare: how many times the bare networks' time it may take.
    """
    taken = seconds(runs, budget=budget)
    peer = min((name for name in taken if name not in ("ours", "bare")), key=lambda name: median(taken[name]))
    speedup, quartiles = ratio(taken[peer], taken["ours"])
    row = {
        "rounds": len(taken["ours"]),
        "ms": {name: 1e3 * median(times) for name, times in taken.items()},
        "fastest_peer": peer,
        "faster_than_peer": speedup,
        "faster_than_peer_quartiles": quartiles,
        "target": {"peer": faster} if over_bare is None else {"peer": faster, "bare": over_bare},
        "met": speedup >= faster,
    }
    if "bare" in taken:
        row["over_bare"], row["over_bare_quartiles"] = ratio(taken["ours"], taken["bare"])
        row["met"] = row["met"] and (over_bare is None or row["over_bare"] <= over_bare)
    return row
