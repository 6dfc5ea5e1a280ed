"""`torch.compile` beside the same as it comes: time, what the compiler takes, and what is lost in nats."""

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch._inductor.config

from benchmarks.flow_peers import Rival, Run, ratio, seconds
from benchmarks.flows import KINDS, WIDTH, D, perturb
from benchmarks.peers import TASKS, prepare
from experiment import load_config
from experiment.building.builder import load_data
from experiment.training.trainer import Trainer

CONFIGS = Path(__file__).parents[1] / "configs" / "moons"
TRAINED = ("real_nvp", "maf", "nsf", "gaussianization")  # by `train.compile`

ROWS, IMAGES, BUDGET = 1024, 64, 8.0

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a model and task."""
    load = prepare(1)
    torch._inductor.config.force_disable_caches = True  # what was compiled yesterday says nothing of the first time
    rows = [_of_flow(name, task) for name in KINDS for task in ("log_prob", "training step")]
    rows += [_of_training(name) for name in TRAINED]
    settings = {"features": D, "hidden": WIDTH, "rows": ROWS, "images": IMAGES, "threads": 1}
    return {**settings, "load_average_at_start": load}, rows


def _of_flow(name: str, task: str) -> Row:
    torch._dynamo.reset()
    flow = KINDS[name]()
    x = torch.randn(IMAGES if name == "Glow" else ROWS, *flow.event_shape)
    perturb(flow, x)
    densities = {"eager": flow.log_prob, "compiled": torch.compile(flow.log_prob)}
    runs = {k: TASKS[task](Rival(flow, d, lambda rows: flow.sample((rows,))), x) for k, d in densities.items()}
    compiling = _first(runs["compiled"])
    with torch.no_grad():
        lost = (densities["compiled"](x) - densities["eager"](x)).abs().max().item()
    return _row(name, task, runs, lost, compiling)


def _of_training(name: str) -> Row:
    """Steps of `train.py`, of which the first is never compiled."""
    torch._dynamo.reset()
    config = load_config(CONFIGS / f"{name}.toml")
    dataset, runs = load_data(config.data, Path("data")), dict[str, Run]()
    for kind in ("eager", "compiled"):
        train = config.train.model_copy(update={"compile": kind == "compiled"})
        trainer = Trainer(config.model_copy(update={"train": train}), dataset, device=torch.device("cpu"))
        runs[kind] = lambda trainer=trainer: trainer.step()[0]  # type: ignore[misc]
        runs[kind]()
    runs["eager"]()
    compiling = _first(runs["compiled"])
    lost = (runs["compiled"]() - runs["eager"]()).abs().item()
    return _row(f"`configs/moons/{name}.toml`", "`train.py`", runs, lost, compiling)


def _first(run: Run) -> float:
    """Seconds of the call that compiles."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def _row(model: str, task: str, runs: dict[str, Run], lost: float, compiling: float) -> Row:
    taken = seconds(runs, budget=BUDGET)
    faster, quartiles = ratio(taken["eager"], taken["compiled"])
    return {
        "model": model,
        "task": task,
        "ms": {kind: 1e3 * median(times) for kind, times in taken.items()},
        "compiled_faster": faster,
        "compiled_faster_quartiles": quartiles,
        "compiling_s": compiling,
        "lost_nats": lost,
    }
