"""Planar layers beside those of normflows and Pyro: draws with their log-densities, and densities of other points."""

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.flow_peers import Rival
from benchmarks.peers import TASKS, compared, differences, prepare, runs_of
from core.bases import StandardNormal
from discrete.bijection import Compose
from discrete.bijections.planar import Planar

D, LAYERS, ROWS, BUDGET, STD = 64, 16, 1024, 5.0, 0.1

Row = dict[str, Any]
Mapping = Callable[[Tensor], tuple[Tensor, Tensor]]  # an event, and the log-determinant `(rows,)`


class Direction(NamedTuple):
    """What is timed.

    Attributes:
        activation: h.
        peers: that have it.
        inverse: whether the layers are inverted.
    """

    activation: str
    peers: tuple[str, ...]
    inverse: bool


DIRECTIONS = {
    "draws": Direction("tanh", ("normflows", "Pyro"), inverse=False),
    "densities": Direction("leaky_relu", ("normflows",), inverse=True),  # of tanh no peer has an inverse
}


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a direction and task."""
    load = prepare(1)
    rows = [row for name, direction in DIRECTIONS.items() for row in _rows(name, direction)]
    versions = {peer: importlib.metadata.version(peer) for peer in ("normflows", "pyro-ppl")}
    settings = {"features": D, "layers": LAYERS, "rows": ROWS, "dtype": "float32", "threads": 1}
    return {**settings, **versions, "load_average_at_start": load}, rows


def _rows(name: str, direction: Direction) -> list[Row]:
    layers = [Planar(D, activation=direction.activation).double() for _ in range(LAYERS)]  # type: ignore[arg-type]
    with torch.no_grad():
        for p in nn.ModuleList(layers).parameters():
            p += STD * torch.randn(p.shape)
    ours = Compose(*layers)
    rivals = {"ours": _rival(ours, ours.inverse if direction.inverse else ours)}
    rivals |= {peer: {"normflows": _normflows, "Pyro": _pyro}[peer](layers, direction) for peer in direction.peers}
    x = torch.randn(ROWS, D)
    about: Row = {"direction": name, "activation": direction.activation}
    torch.set_default_dtype(torch.float64)  # in which normflows has the slopes of a leaky ReLU
    try:
        about["differences_nats"] = differences(rivals, direction.peers, x)
    finally:
        torch.set_default_dtype(torch.float32)
    return [{**about, "task": task, **compared(runs_of(task, rivals, x), budget=BUDGET)} for task in list(TASKS)[:2]]


def _rival(module: nn.Module, mapping: Mapping) -> Rival:
    """log N(z) + log|det| of the image z: of a draw from noise, how it lies to a normal target."""
    base = StandardNormal(D)

    def log_prob(x: Tensor) -> Tensor:
        z, log_det = mapping(x)
        return base.log_prob(z) + log_det

    return Rival(module, log_prob, lambda rows: mapping(torch.randn(rows, D))[0])


def _chain(mappings: list[Mapping]) -> Mapping:
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for mapping in mappings:
            x, log_det = mapping(x)
            total = total + log_det
        return x, total

    return run


def _normflows(layers: list[Planar], direction: Direction) -> Rival:
    kind = importlib.import_module("normflows").flows.Planar
    theirs = nn.ModuleList(
        kind((D,), act=direction.activation, u=p.u.detach()[None], w=p.w.detach()[None], b=p.b.detach()[None])
        for p in layers
    )
    mappings = [flow.inverse for flow in reversed(theirs)] if direction.inverse else list(theirs)  # type: ignore[attr-defined]
    return _rival(theirs, _chain(mappings))


def _pyro(layers: list[Planar], direction: Direction) -> Rival:
    kind = importlib.import_module("pyro.distributions.transforms").Planar
    theirs = nn.ModuleList(kind(D).double() for _ in layers)
    with torch.no_grad():
        for target, source in zip(theirs, layers, strict=True):
            for name, value in {"u": source.u, "w": source.w, "bias": source.b[None]}.items():
                getattr(target, name).copy_(value)

    def mapping(transform: Any) -> Mapping:
        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            transform.clear_cache()  # of the rows before, which may be these
            z = transform(x)
            return z, transform.log_abs_det_jacobian(x, z)

        return run

    return _rival(theirs, _chain([mapping(transform) for transform in theirs]))
