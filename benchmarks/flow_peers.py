"""Autoregressive flows of zuko, nflows and Pyro beside ours, and the bare networks that all of them run."""

import importlib
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from discrete import IAF, MAF, Flow
from discrete.bijection import Direction
from experiment.threads import one_thread

LAYERS, STD, RATE, WARM, SHORT = 5, 0.02, 1e-4, 2.0, 0.5

Run = Callable[[], Any]


class Rival(NamedTuple):
    """A flow, or the networks of one.

    Attributes:
        module: holds the parameters.
        log_prob: of `(rows, D)`; of bare networks their outputs' sums.
        sample: of a number of rows.
    """

    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]


def bare(D: int, hidden: Sequence[int], parameters: int) -> Rival:
    """Plain networks of the same size, one after the other on the same input."""
    networks = nn.ModuleList()
    for _ in range(LAYERS):
        widths = [D, *hidden, parameters * D]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU(inplace=True)]
        networks.append(nn.Sequential(*layers[:-1]))

    def run(x: Tensor) -> Tensor:
        return torch.stack([network(x).sum() for network in networks])

    return Rival(networks, run, lambda rows: run(torch.randn(rows, D)))


def ours(flow: Flow) -> Rival:
    """What goes in many small steps goes on one thread, as in `sample.py`."""

    def log_prob(x: Tensor) -> Tensor:
        with one_thread() if _in_steps(flow.log_prob_direction) else nullcontext():
            return flow.log_prob(x)

    def sample(rows: int) -> Tensor:
        with one_thread() if _in_steps(flow.sample_direction) else nullcontext():
            return flow.sample((rows,))

    return Rival(flow, log_prob, sample)


def _in_steps(direction: Direction) -> bool:
    return (direction.steps or 0) > direction.passes


def mafs(D: int, hidden: Sequence[int], *, layers: int = LAYERS) -> dict[str, Rival]:
    """One pass for a density; draws in D passes a layer of the peers."""
    return {
        "ours": ours(MAF(D, layers=layers, hidden=hidden, normalization="none")),
        "zuko": _zuko(_library("zuko").flows.MAF(D, 0, transforms=layers, hidden_features=hidden)),
        "nflows": _nflows(D, hidden, layers=layers, inverse=False),
    }


def iafs(D: int, hidden: Sequence[int]) -> dict[str, Rival]:
    """One pass for draws; the density of other points in D passes a layer of the peers."""
    zuko = _library("zuko")
    maf = zuko.flows.MAF(D, 0, transforms=LAYERS, hidden_features=hidden)
    return {
        "ours": ours(IAF(D, layers=LAYERS, hidden=hidden)),
        "zuko": _zuko(zuko.lazy.Flow([layer.inv for layer in reversed(maf.transform.transforms)], maf.base)),
        "nflows": _nflows(D, hidden, layers=LAYERS, inverse=True),
        "Pyro": _pyro(D, hidden),
    }


def nsfs(D: int, hidden: Sequence[int], *, bins: int = 8) -> dict[str, Rival]:
    """Splines on [-5, 5], in autoregressive layers."""
    flow = MAF(D, layers=LAYERS, hidden=hidden, transformer="spline", bins=bins, bound=5.0, normalization="none")
    zuko = _library("zuko").flows.NSF(D, 0, transforms=LAYERS, hidden_features=hidden, bins=bins)
    return {"ours": ours(flow), "zuko": _zuko(zuko)}


def _library(name: str) -> Any:
    """Imported where it is asked for: a peer may be missing, and some change torch when they are imported."""
    return importlib.import_module(name)


def _zuko(flow: nn.Module) -> Rival:
    return Rival(flow, lambda x: flow().log_prob(x), lambda rows: flow().sample((rows,)))


def _nflows(D: int, hidden: Sequence[int], *, layers: int, inverse: bool) -> Rival:
    """Features turned around between layers, as in ours and zuko's."""
    T = _library("nflows.transforms")
    chain: list[nn.Module] = []
    for i in range(layers):
        layer = T.MaskedAffineAutoregressiveTransform(
            D, hidden[0], num_blocks=len(hidden) - 1, use_residual_blocks=False
        )
        chain += [T.ReversePermutation(D)] if i else []
        chain.append(T.InverseTransform(layer) if inverse else layer)
    base = _library("nflows.distributions").StandardNormal([D])
    flow = _library("nflows.flows").Flow(T.CompositeTransform(chain), base)
    return Rival(flow, flow.log_prob, flow.sample)


def _pyro(D: int, hidden: Sequence[int]) -> Rival:
    """Its transforms go from noise to data and remember the last draw; a point of its own is inverted anew."""
    pyro = _library("pyro.distributions")
    transforms = nn.ModuleList(pyro.transforms.affine_autoregressive(D, list(hidden)) for _ in range(LAYERS))
    law = pyro.TransformedDistribution(pyro.Normal(torch.zeros(D), torch.ones(D)).to_event(1), list(transforms))

    def log_prob(x: Tensor) -> Tensor:
        law.clear_cache()
        return law.log_prob(x)

    return Rival(transforms, log_prob, lambda rows: law.sample((rows,)))


@torch.no_grad()
def perturb(rivals: dict[str, Rival]) -> None:
    """Every parameter away from where it starts, by noise of the same law."""
    for rival in rivals.values():
        for p in rival.module.parameters():
            p += STD * torch.randn(p.shape)


def log_prob(rival: Rival, x: Tensor) -> Run:
    return torch.no_grad()(lambda: rival.log_prob(x))


def sample(rival: Rival, x: Tensor) -> Run:
    return torch.no_grad()(lambda: rival.sample(len(x)))


def training_step(rival: Rival, x: Tensor) -> Run:
    """Adam in one kernel for all."""
    optimizer = torch.optim.Adam(rival.module.parameters(), RATE, fused=True)

    def run() -> Tensor:
        optimizer.zero_grad()
        loss = -rival.log_prob(x).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


def seconds(
    runs: dict[str, Run], *, budget: float, least: int = 3, most: int = 21, warm: float = WARM
) -> dict[str, list[float]]:
    """Times of each in turn, so that whatever else the machine does meets all.

    A run of less than half a second follows one of its own kind that is not timed: what the others left in the caches
    says nothing of it.

    Args:
        runs: what to time; all are run in turn beforehand.
        budget: seconds to spend, from which follows the number of rounds.
        least: rounds.
        most: rounds.
        warm: seconds to run beforehand, once at least.

    Raises:
        RuntimeError: a run whose result is not finite.
    """
    begun = time.perf_counter()
    first = {name: _timed(run, name) for name, run in runs.items()}
    while time.perf_counter() - begun < warm:
        first = {name: _timed(run, name) for name, run in runs.items()}
    rounds = max(least, min(most, int(budget / sum(first.values()))))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if first[name] < SHORT:
                _timed(run, name)
            taken[name].append(_timed(run, name))
    return taken


def ratio(above: list[float], below: list[float]) -> tuple[float, list[float]]:
    """Of the medians, and the quartiles of that of each round."""
    lower, _, upper = quantiles([a / b for a, b in zip(above, below, strict=True)], n=4, method="inclusive")
    return median(above) / median(below), [lower, upper]


def _timed(run: Run, name: str) -> float:
    _wait()
    start = time.perf_counter()
    result = run()
    _wait()
    taken = time.perf_counter() - start
    if not bool(result.isfinite().all()):
        raise RuntimeError(f"{name} gives a result that is not finite, so that its time says nothing.")
    return taken


def _wait() -> None:
    """For a GPU to have done what it was told."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()
