"""Glow on the digits with stored and with recomputed activations: memory and time of a training step, gradients."""

import time
from statistics import median
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.memory import peak_bytes
from benchmarks.record import DOCS
from core import bits_per_dim
from discrete import Compose, Dequantization, Flow, Glow, Logit
from experiment.data import digits
from experiment.files import write_atomic
from experiment.plots import COLOURS, png

DEPTHS, ACTIVATIONS = (8, 16, 32, 64), ("relu", "silu")
SHAPE, HIDDEN, ROWS = (1, 8, 8), (64, 64), 128
STEPS, WARMUP, LEARNING_RATE, CLIP, REPEATS = 100, 50, 1e-3, 50.0, 7
MIB = 2**20

Row = dict[str, Any]


class Twins(NamedTuple):
    """The same flow with stored and with recomputed activations."""

    stored: Flow
    recomputed: Flow


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a depth and activation, after a short training with recomputed activations."""
    torch.set_num_threads(1)
    rows = []
    for activation in ACTIVATIONS:
        series = [{"activation": activation, "depth": depth, **_row(depth, activation)} for depth in DEPTHS]
        for row in series:
            for name in Twins._fields:
                row[f"{name}_growth"] = row[f"{name}_mib"] / series[0][f"{name}_mib"]
        rows += series
    write_atomic(DOCS / "figures" / "glow-memory.png", png(_figure(rows[: len(DEPTHS)])))
    training = {"training_steps": STEPS, "learning_rate": LEARNING_RATE}
    return {"event_shape": SHAPE, "levels": 1, "hidden": HIDDEN, "batch_rows": ROWS, **training}, rows


def _row(depth: int, activation: str) -> Row:
    twins = _trained(depth, activation)
    x = _logits(digits(layout="image").test[:ROWS], seed=1)
    sizes = {f"{name}_mib": _activation_bytes(flow, x) / MIB for name, flow in twins._asdict().items()}
    return {"bits_per_dim": _bits_per_dim(twins.stored), **sizes, **_seconds(twins, x), **_agreement(twins, x)}


def _trained(depth: int, activation: str) -> Twins:
    flows = []
    for reversible in (False, True):
        torch.manual_seed(0)
        glow = Glow(SHAPE, levels=1, depth=depth, hidden=HIDDEN, activation=activation, reversible=reversible)
        flows.append(glow.train())
    twins = Twins(*flows)
    _train(twins.recomputed)
    names, values = twins.stored.state_dict(), twins.recomputed.state_dict().values()
    twins.stored.load_state_dict(dict(zip(names, values, strict=True)))
    return twins


def _train(flow: Flow) -> None:
    pixels, generator = digits(layout="image").train, torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(flow.parameters(), lr=LEARNING_RATE)
    for step in range(STEPS):
        chosen = torch.randint(len(pixels), (ROWS,), generator=generator)
        _step(flow, _logits(pixels[chosen], seed=step))
        torch.nn.utils.clip_grad_norm_(flow.parameters(), CLIP)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP)
        optimizer.step()


def _step(flow: Flow, x: Tensor) -> None:
    flow.zero_grad(set_to_none=True)
    (-flow.log_prob(x).mean()).backward()


def _preprocessing() -> Compose:
    return Compose(Dequantization(SHAPE, bins=17), Logit(SHAPE))


def _logits(pixels: Tensor, *, seed: int) -> Tensor:
    return _preprocessing()(pixels, generator=torch.Generator().manual_seed(seed))[0]


@torch.no_grad()
def _bits_per_dim(flow: Flow) -> float:
    generator = torch.Generator().manual_seed(2)
    log_prob = Flow(_preprocessing(), flow).log_prob(digits(layout="image").test, generator=generator)
    return bits_per_dim(log_prob, SHAPE).mean().item()


def _activation_bytes(flow: Flow, x: Tensor) -> int:
    """The peak of a training step, less the gradients that it leaves: parameters are there before."""
    _step(flow, x)
    flow.zero_grad(set_to_none=True)
    gradients = sum(p.numel() * p.element_size() for p in flow.parameters())
    return peak_bytes(lambda: _step(flow, x)) - gradients


def _seconds(twins: Twins, x: Tensor) -> Row:
    """Median time of a training step, the two in turn."""
    taken: dict[str, list[float]] = {name: [] for name in Twins._fields}
    for _ in range(REPEATS):
        for name, flow in twins._asdict().items():
            start = time.perf_counter()
            _step(flow, x)
            taken[name].append(time.perf_counter() - start)
    seconds = {f"{name}_seconds": median(times) for name, times in taken.items()}
    return {**seconds, "time_ratio": seconds["recomputed_seconds"] / seconds["stored_seconds"]}


def _agreement(twins: Twins, x: Tensor) -> Row:
    """Relative differences of gradients: recomputed from stored, and what float32 costs either against float64."""
    stored, recomputed = (_gradients(flow, x) for flow in twins)
    for flow in twins:
        flow.double()
    stored_double, recomputed_double = (_gradients(flow, x.double()) for flow in twins)
    return {
        "float32_difference": _difference(recomputed, stored),
        "float32_worst_tensor": max(_difference([a], [b]) for a, b in zip(recomputed, stored, strict=True)),
        "stored_rounding": _difference(stored, stored_double),
        "recomputed_rounding": _difference(recomputed, stored_double),
        "float64_difference": _difference(recomputed_double, stored_double),
        "float64_worst_tensor": max(
            _difference([a], [b]) for a, b in zip(recomputed_double, stored_double, strict=True)
        ),
    }


def _gradients(flow: Flow, x: Tensor) -> list[Tensor]:
    _step(flow, x)
    return [p.grad.double() for p in flow.parameters() if p.grad is not None]


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """‖found - expected‖/‖expected‖ over all entries."""
    a, b = (torch.cat([part.flatten() for part in parts]) for parts in (found, expected))
    return ((a - b).norm() / b.norm()).item()


def _figure(rows: list[Row]) -> Figure:
    figure = Figure(figsize=(5.2, 3.9), layout="constrained")
    axis = figure.subplots()
    depths = [row["depth"] for row in rows]
    for name, colour in zip(Twins._fields, COLOURS, strict=False):
        axis.plot(depths, [row[f"{name}_mib"] for row in rows], "o-", color=colour, label=f"{name} activations")
    axis.set_xlabel("depth (steps of Glow)")
    axis.set_ylabel("peak activations of a training step (MiB)")
    axis.set_xticks(depths)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, loc="best")
    axis.spines[["top", "right"]].set_visible(False)
    return figure
