"""Steps and likelihoods on a GPU: as they come, in TF32, compiled, as CUDA graphs; times, and what is lost in nats."""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.flow_peers import Rival, seconds
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
    modes = modes_of(flow)
    rivals = {k: Rival(flow, call, lambda rows: flow.sample((rows,))) for k, call in modes.items()}
    runs = {k: TASKS[task](rival, x) for k, rival in rivals.items()}
    taken = seconds(runs, budget=BUDGET)
    with torch.no_grad():
        exact = modes["as it comes"](x)
        lost = {k: (call(x) - exact).abs().max().item() for k, call in modes.items()}
    return {
        "model": name,
        "task": task,
        "ms": {k: 1e3 * median(times) for k, times in taken.items()},
        "faster": {k: median(taken["as it comes"]) / median(times) for k, times in taken.items()},
        "lost_nats": lost,
    }


def modes_of(flow: Flow) -> dict[str, Callable[[Tensor], Tensor]]:
    """The log-likelihood in each mode."""

    def in_tf32(x: Tensor) -> Tensor:
        with products_in_tf32(allowed=True):
            return flow.log_prob(x)

    return {
        "as it comes": flow.log_prob,
        "TF32": in_tf32,
        "compiled": torch.compile(flow.log_prob),
        "CUDA graphs": torch.compile(flow.log_prob, mode="reduce-overhead"),
    }
