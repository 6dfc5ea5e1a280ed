"""Steps and likelihoods on a GPU: as they come, in TF32, compiled, as CUDA graphs; times, and what is lost in nats."""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.flow_peers import Rival, Run, seconds
from benchmarks.flows import KINDS, perturb
from benchmarks.peers import TASKS, prepare
from discrete import Flow
from experiment.device import products_in_tf32

ROWS, IMAGES, BUDGET = 4096, 256, 8.0

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a model and task."""
    load = prepare(1)
    rows = [_row(name, build(), task) for name, build in KINDS.items() for task in ("log_prob", "training step")]
    return {"rows": ROWS, "images": IMAGES, "load_average_at_start": load}, rows


def _row(name: str, flow: Flow, task: str) -> Row:
    torch.compiler.reset()
    x = torch.randn(IMAGES if len(flow.event_shape) == 3 else ROWS, *flow.event_shape)
    perturb(flow, x)
    calls = calls_of(flow)
    runs = {k: TASKS[task](Rival(flow, call, lambda rows: flow.sample((rows,))), x) for k, call in calls.items()}
    runs["TF32"] = _in_tf32(runs["as it comes"])
    taken = seconds(runs, budget=BUDGET)
    with torch.no_grad():
        found = {k: call(x) for k, call in calls.items()} | {"TF32": _in_tf32(lambda: flow.log_prob(x))()}
    lost = {k: (log_prob - found["as it comes"]).abs().max().item() for k, log_prob in found.items()}
    return {
        "model": name,
        "task": task,
        "ms": {k: 1e3 * median(times) for k, times in taken.items()},
        "faster": {k: median(taken["as it comes"]) / median(times) for k, times in taken.items()},
        "lost_nats": lost,
    }


def calls_of(flow: Flow) -> dict[str, Callable[[Tensor], Tensor]]:
    """The log-likelihood as it comes and compiled."""
    return {
        "as it comes": flow.log_prob,
        "compiled": torch.compile(flow.log_prob),
        "CUDA graphs": torch.compile(flow.log_prob, mode="reduce-overhead"),
    }


def _in_tf32(run: Run) -> Run:
    """Backward passes as well."""

    def rounded() -> Tensor:
        with products_in_tf32(allowed=True):
            return run()

    return rounded
