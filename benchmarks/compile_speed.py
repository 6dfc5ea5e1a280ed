"""`torch.compile` beside the same as it comes: time, what the compiler takes, and what is lost in nats."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.flow_peers import Rival, ratio, seconds
from benchmarks.peers import TASKS, prepare
from discrete import MAF, NSF, Flow, GaussianizationFlow, Glow, RealNVP

D, WIDTH, LAYERS, ROWS, IMAGES, BUDGET, STD = 64, (256, 256), 5, 1024, 64, 8.0, 0.02
KINDS: dict[str, Callable[[], Flow]] = {
    "RealNVP": lambda: RealNVP(D, layers=8, hidden=WIDTH, normalization="none"),
    "MAF": lambda: MAF(D, layers=LAYERS, hidden=WIDTH, normalization="none"),
    "NSF": lambda: NSF(D, layers=LAYERS, hidden=WIDTH),
    "Gaussianization": lambda: GaussianizationFlow(D, layers=LAYERS),
    "Glow": lambda: Glow((1, 28, 28), levels=2, depth=6, hidden=(64, 64), scale="sigmoid"),
}

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a model and task."""
    load = prepare(1)
    rows = [_row(name, task) for name in KINDS for task in ("log_prob", "training step")]
    settings = {"features": D, "hidden": WIDTH, "rows": ROWS, "images": IMAGES, "threads": 1}
    return {**settings, "load_average_at_start": load}, rows


def _row(name: str, task: str) -> Row:
    torch._dynamo.reset()
    flow = KINDS[name]()
    x = torch.randn(IMAGES if name == "Glow" else ROWS, *flow.event_shape)
    flow.log_prob(x)  # what takes its start from the data has seen them
    with torch.no_grad():
        for p in flow.parameters():
            p += STD * torch.randn(p.shape)
    densities = {"eager": flow.log_prob, "compiled": torch.compile(flow.log_prob)}
    runs = {k: TASKS[task](Rival(flow, d, lambda rows: flow.sample((rows,))), x) for k, d in densities.items()}
    begun = time.perf_counter()
    runs["compiled"]()
    compiling = time.perf_counter() - begun
    with torch.no_grad():
        expected = flow.log_prob(x)
        lost = {kind: (density(x) - expected).abs().max().item() for kind, density in densities.items()}
    taken = seconds(runs, budget=BUDGET)
    compiled, compiled_quartiles = ratio(taken["eager"], taken["compiled"])
    return {
        "model": name,
        "task": task,
        "ms": {kind: 1e3 * median(times) for kind, times in taken.items()},
        "compiled_faster": compiled,
        "compiled_faster_quartiles": compiled_quartiles,
        "compiling_s": compiling,
        "lost_nats": lost,
    }
