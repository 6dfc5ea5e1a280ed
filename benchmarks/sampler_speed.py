"""Time of a score evaluation within each fixed-step sampler over that of the bare network."""

import os
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.flow_peers import Run, ratio, seconds
from benchmarks.samplers import SOLVERS, Counted
from cflows import ScoreSDE
from experiment import load_config
from experiment.building.builder import build
from experiment.draws.reverse_process import ReverseProcess
from experiment.threads import keep_freed_memory

CONFIG, BATCH, STEPS = "configs/mnist/vp_sde_unet.toml", 64, 4
BUDGET, LEAST, MOST, TARGET = 25.0, 11, 31, 1.1
MEASURED = [name for name, solver in SOLVERS.items() if solver.cost]

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a sampler; each ratio from rounds of one run."""
    load = os.getloadavg()[0]
    keep_freed_memory()
    torch.set_num_threads(1)
    model = network()
    x_T = torch.randn(BATCH, *model.event_shape, generator=torch.Generator().manual_seed(0))
    rows = [_row(name, model, x_T) for name in ("the score alone", *MEASURED)]
    settings = {"config": CONFIG, "batch": BATCH, "steps": STEPS, "target": TARGET, "load_average_at_start": load}
    return settings, rows


def network() -> ScoreSDE:
    """The U-Net of the config, its parameters away from where they start."""
    torch.manual_seed(0)
    process = ReverseProcess.of(build(load_config(CONFIG), (1, 28, 28), bins=256).model)
    with torch.no_grad():
        for p in process.inner.parameters():
            p += 0.02 * torch.randn(p.shape)
    return process.inner.eval()


@torch.no_grad()
def _row(name: str, model: ScoreSDE, x_T: Tensor) -> Row:
    u, t = torch.zeros(len(x_T)), torch.full((), 0.5)
    runs: dict[str, Run] = {"bare": lambda: model.net(x_T, u, None)}
    evaluations = 1
    if name in SOLVERS:
        sampler, counted = SOLVERS[name].build(STEPS), Counted(model.score)
        sampler(counted, model.sde, x_T, generator=torch.Generator().manual_seed(1))
        evaluations = counted.rows // len(x_T)
        generator = torch.Generator().manual_seed(1)
        runs["ours"] = lambda: sampler(model.score, model.sde, x_T, generator=generator)
    else:
        runs["ours"] = lambda: model.score(x_T, t)
    # As many passes as the sampler has, so that both fill the caches alike.
    runs["bare"] = _repeated(runs["bare"], evaluations)
    taken = seconds(runs, budget=BUDGET, least=LEAST, most=MOST)
    found, quartiles = ratio(taken["ours"], taken["bare"])
    return {
        "solver": name,
        "evaluations": evaluations,
        "rounds": len(taken["ours"]),
        "bare_ms": 1e3 * median(taken["bare"]) / evaluations,
        "ours_ms": 1e3 * median(taken["ours"]) / evaluations,
        "over_bare": found,
        "over_bare_quartiles": quartiles,
        "met": found <= TARGET,
    }


@torch.no_grad()
def _repeated(run: Run, times: int) -> Run:
    def all_of_them() -> Any:
        for _ in range(times):
            result = run()
        return result

    return torch.no_grad()(all_of_them)
