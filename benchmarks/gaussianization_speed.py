"""The Gaussianization flow beside zuko's at equal size: how long it takes, and what is left of x on the tails."""

import importlib
import importlib.metadata
import os
from statistics import median
from typing import Any

import scipy.special
import torch
from torch import nn

from benchmarks.flow_peers import Rival, log_prob, ratio, sample, seconds, training_step
from discrete import GaussianizationFlow, MixtureGaussianization
from experiment.threads import available_cores, keep_freed_memory

D, LAYERS, ROWS, BUDGET, STD = 64, 5, 1024, 10.0, 0.3
COMPONENTS = (8, 32)
TASKS = {"log_prob": log_prob, "training step": training_step, "sample": sample}
TARGETS = {"log_prob": 2.0, "sample": 5.0}  # at least so many times as fast
DISTANCES = (2.0, 4.0, 5.0, 6.0, 12.0, 40.0)  # in standard deviations of zuko's law, in scales of ours

Row = dict[str, Any]


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a size and task, then one a distance."""
    load = os.getloadavg()[0]
    keep_freed_memory()
    torch.set_num_threads(available_cores())
    torch.manual_seed(0)
    rows = [_row(components, task) for components in COMPONENTS for task in TASKS]
    settings = {"features": D, "layers": LAYERS, "rows": ROWS, "dtype": "float32", "load_average_at_start": load}
    return {**settings, "zuko": importlib.metadata.version("zuko")}, rows + [_tail(x) for x in DISTANCES]


def _row(components: int, task: str) -> Row:
    rivals = {"ours": _ours(components), "zuko": _zuko(components)}
    x = torch.randn(ROWS, D)
    taken = seconds({name: TASKS[task](rival, x) for name, rival in rivals.items()}, budget=BUDGET)
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


@torch.no_grad()
def _tail(distance: float) -> Row:
    """Largest error of z = Φ⁻¹(F(x)) at ±x, and of x found again from it; F a logistic and a normal of scale 1.

    Ours is held against scipy's quantile of the logistic's log-CDF; z = x is what zuko's should give.
    """
    x = torch.tensor([[distance], [-distance]])
    layer = MixtureGaussianization(1, components=1)
    layer.log_scales.zero_()
    other = importlib.import_module("zuko").transforms.GaussianizationTransform(torch.zeros(1, 1), torch.zeros(1, 1))
    z, of_zuko = layer(x)[0], other(x)
    expected = scipy.special.ndtri_exp(scipy.special.log_expit(-distance)) * torch.tensor([[-1.0], [1.0]])
    return {
        "distance": distance,
        "ours_z_error": (z - expected).abs().max().item(),
        "ours_round_trip_error": (layer.inverse(z)[0] - x).abs().max().item(),
        "zuko_z_error": (of_zuko - x).abs().max().item(),
        "zuko_round_trip_error": (other.inv(of_zuko) - x).abs().max().item(),
    }
