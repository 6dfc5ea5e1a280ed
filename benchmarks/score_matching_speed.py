"""Steps of score matching against the plain pass of the same network, and the exact trace against D products."""

import os
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.flow_peers import ratio, seconds
from cflows import (
    FiniteDifferenceScoreMatching,
    FixedNoiseDenoising,
    ImplicitScoreMatching,
    LadderDenoising,
    SlicedScoreMatching,
)
from cflows.objectives.rows import half_square
from core import ExactDivergence
from core.nets import MLP, UNet
from core.shapes import align
from experiment.threads import keep_freed_memory

FEATURES, HIDDEN, ROWS = (2, 8, 16, 32, 64, 784), (256, 256, 256), 256
IMAGE, WIDTHS, BLOCKS, IMAGES = (1, 28, 28), (16, 32), 1, 16
TRACED = 32  # the largest event of which the exact trace is taken
TARGETS = {"sliced": 4.0, "projected": 4.0, "trace": 1.5, "trace_training": 1.5}
SIGMA, LADDER = 0.3, (1.0, 0.5, 0.25)
BUDGET, LEAST, MOST = 6.0, 21, 101

Row = dict[str, Any]
Loss = Callable[[Tensor], Tensor]
Traced = Callable[[Tensor], tuple[Tensor, Tensor]]  # x -> the score and the trace of its Jacobian, (rows,)


def measure() -> tuple[dict[str, Any], list[Row]]:
    """One row a network; each ratio from rounds of one run."""
    load = os.getloadavg()[0]
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [_row(MLP(D, D, hidden=HIDDEN, activation="silu"), torch.randn(ROWS, D)) for D in FEATURES]
    rows.append(_row(_unet(), torch.randn(IMAGES, *IMAGE)))
    widths = {"hidden": HIDDEN, "unet_widths": WIDTHS, "unet_blocks": BLOCKS}
    return {**widths, "dtype": "float32", "noise": SIGMA, "ladder": LADDER, "load_average_at_start": load}, rows


@torch.no_grad()
def _unet() -> nn.Module:
    """Away from where its blocks return zero."""
    net = UNet(IMAGE[0], IMAGE[0], hidden=WIDTHS, blocks=BLOCKS)
    for p in net.parameters():
        p += 0.05 * torch.randn(p.shape)
    return net


def _row(net: nn.Module, x: Tensor) -> Row:
    found = _steps(net, x) | (_traces(net, x) if x[0].numel() <= TRACED else {})
    targets = {name: bound for name, bound in TARGETS.items() if name in found}
    return {
        "network": type(net).__name__,
        "event_shape": list(x.shape[1:]),
        "rows": len(x),
        **found,
        "targets": targets,
        "met": all(found[name] <= bound for name, bound in targets.items()),
    }


def _steps(net: nn.Module, x: Tensor) -> Row:
    """Training steps over the plain forward and backward pass."""
    losses: dict[str, Loss] = {
        "plain": lambda x: half_square(net(x)).mean(),
        "sliced": SlicedScoreMatching(net),
        "projected": SlicedScoreMatching(net, variance_reduced=False),
        "finite_difference": FiniteDifferenceScoreMatching(net),
        "denoising": FixedNoiseDenoising(net, sigma=SIGMA),
        "ladder": LadderDenoising(lambda x, sigma: net(x) / align(sigma, x), LADDER),
    }
    if x[0].numel() <= TRACED:
        losses["implicit"] = ImplicitScoreMatching(net)
    runs = {name: partial(_step, net, loss, x) for name, loss in losses.items()}
    taken = seconds(runs, budget=BUDGET, least=LEAST, most=MOST)
    row: Row = {"rounds": len(taken["plain"]), "plain_ms": 1e3 * median(taken["plain"])}
    for name in [*runs][1:]:
        row[name], row[f"{name}_quartiles"] = ratio(taken[name], taken["plain"])
    return row


def _step(net: nn.Module, loss: Loss, x: Tensor) -> Tensor:
    """Forward and backward to every parameter."""
    net.zero_grad()
    value = loss(x)
    value.backward()
    return value.detach()


def _traces(net: nn.Module, x: Tensor) -> Row:
    """The score with its exact trace over one forward pass and D products, and a training step by either."""
    row: Row = {}
    divergence = ExactDivergence()

    def ours(x: Tensor) -> tuple[Tensor, Tensor]:
        s, trace = divergence(net, x, divergence.draw(x, None))
        return s, trace[:, 0]

    for name, run in (("trace", _value), ("trace_training", _trained)):
        runs = {"ours": partial(run, net, ours, x), "loop": partial(run, net, partial(_loop, net), x)}
        taken = seconds(runs, budget=BUDGET / 2, least=LEAST, most=MOST)
        row[name], row[f"{name}_quartiles"] = ratio(taken["ours"], taken["loop"])
        row[f"{name}_ms"] = 1e3 * median(taken["ours"])
    return row


def _loop(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """One forward pass, then one product with the Jacobian after the other."""
    training = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        s = net(x)
        diagonal = []
        for i, e in enumerate(torch.eye(x.shape[1])):
            (product,) = torch.autograd.grad(s, x, e.expand_as(x), retain_graph=True, create_graph=training)
            diagonal.append(product[:, i])
    return s, torch.stack(diagonal).sum(0)


@torch.no_grad()
def _value(net: nn.Module, traced: Traced, x: Tensor) -> Tensor:
    return traced(x)[1]


def _trained(net: nn.Module, traced: Traced, x: Tensor) -> Tensor:
    def loss(x: Tensor) -> Tensor:
        s, trace = traced(x)
        return (half_square(s) + trace).mean()

    return _step(net, loss, x)
