"""Planar flows fitted to the four energies of Rezende and Mohamed, their divergence in nats; and random ones."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.record import DOCS
from core import DensityModel, DiagonalNormal, StandardNormal, StandardUniform
from discrete import Compose, Flow, Inverse, Planar, PlanarFlow
from discrete.bijections.preprocessing import Scaling
from discrete.inference import ENERGIES, Energy, negative_elbo
from experiment.files import write_atomic
from experiment.plots import INK, png

LAYERS = (2, 8, 32)
STEPS, DRAWS, LEARNING_RATE, ANNEALED = 1500, 128, 0.03, 0.5  # the share of the steps over which the energy sets in
TEST_DRAWS = 100_000
HALF_SIDE, CELLS = 5.0, 200
PUSHED, SEED, LENGTH, SIZE, SPREAD = (1, 2, 10), 6, 2.5, 0.8, 0.7  # |w|, and the spread of u and of b

Panel = tuple[str, np.ndarray]


def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """KL(q ‖ p) of each fit, p normalized by quadrature; both figures."""
    torch.set_num_threads(1)
    write_atomic(DOCS / "figures" / "planar-bases.png", png(bases_figure()))
    rows, lines = [], []
    for name, energy in ENERGIES.items():
        panels = [(f"{name}, target", grid(energy.log_prob))]
        for layers in LAYERS:
            row, flow = fit(name, energy, layers)
            rows.append(row)
            panels.append((f"K = {layers}, {row['kl_nats']:.2f} nats", grid(flow.log_prob)))
        lines.append(panels)
    figure = grid_figure(lines, title="Planar flows on unnormalized energies, KL(q ‖ p)")
    write_atomic(DOCS / "figures" / "planar-energies.png", png(figure))
    settings = {
        "base": "diagonal normal, learned",
        "steps": STEPS,
        "draws": DRAWS,
        "learning_rate": LEARNING_RATE,
        "annealed_share": ANNEALED,
        "test_draws": TEST_DRAWS,
    }
    return settings, rows


def fit(name: str, energy: Energy, layers: int) -> tuple[dict[str, Any], Flow]:
    """One flow by Adam on the reverse divergence, the energy scaled up from 0.01 as in the paper."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    flow = PlanarFlow(2, layers=layers, base=DiagonalNormal(2))
    optimizer = torch.optim.Adam(flow.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    started = time.process_time()
    for step in range(STEPS):
        beta = min(1.0, 0.01 + step / (ANNEALED * STEPS))
        optimizer.zero_grad()
        negative_elbo(flow, scaled(energy, beta), DRAWS, generator=generator).loss_nats.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    seconds = time.process_time() - started
    with torch.no_grad():
        found = negative_elbo(flow, energy.log_density, TEST_DRAWS, generator=generator)
    row = {
        "energy": name,
        "layers": layers,
        "log_z_nats": energy.log_z,
        "kl_nats": found.loss_nats.item() + energy.log_z,
        "kl_error_nats": found.std_error_nats.item(),
        "train_cpu_seconds": seconds,
    }
    return row, flow


def scaled(energy: Energy, beta: float) -> Callable[[Tensor], Tensor]:
    return lambda x: beta * energy.log_density(x)


def bases_figure() -> Figure:
    """A normal and a uniform density behind 1, 2 and 10 random planar layers, the same for both."""
    square = Flow(Scaling(2, loc=-2.0, scale=4.0), StandardUniform(2))
    lines = [
        [(name, grid(base.log_prob)), *((f"K = {K}", grid(pushed(base, K).log_prob)) for K in PUSHED)]
        for name, base in (("normal", StandardNormal(2)), ("uniform", square))
    ]
    return grid_figure(lines, title="Random planar layers x = f_K ∘ ... ∘ f_1(z)")


@torch.no_grad()
def pushed(base: DensityModel, layers: int) -> Flow:
    """The first of ten fixed layers: two that push apart, then by turns pushing and pulling."""
    generator = torch.Generator().manual_seed(SEED)
    stack = []
    for k in range(max(PUSHED)):
        layer = Planar(2)
        angle = 2 * math.pi * torch.rand((), generator=generator)
        w = LENGTH * torch.stack([angle.cos(), angle.sin()])
        u = SIZE * torch.randn(2, generator=generator)
        apart = k < 2 or k % 2 == 0
        layer.w.copy_(w)
        layer.u.copy_(u if bool(u @ w > 0) == apart else -u)
        layer.b.copy_(SPREAD * torch.randn((), generator=generator))
        stack.append(layer)
    return Flow(Inverse(Compose(*stack[:layers])), base)


@torch.no_grad()
def grid(log_prob: Callable[[Tensor], Tensor]) -> np.ndarray:
    """The density at the centres of the cells of a square, rows upwards."""
    axis = (torch.arange(CELLS) + 0.5) / CELLS * 2 * HALF_SIDE - HALF_SIDE
    points = torch.cartesian_prod(axis, axis).flip(1)  # rows run over y, columns over x
    return log_prob(points).exp().reshape(CELLS, CELLS).double().numpy()


def grid_figure(lines: Sequence[Sequence[Panel]], *, title: str) -> Figure:
    """Densities on a common square, each on a colour scale of its own."""
    figure = Figure(figsize=(2.6 * len(lines[0]), 0.6 + 2.8 * len(lines)), layout="constrained")
    figure.suptitle(title, fontsize=12, color=INK)
    axes = figure.subplots(len(lines), len(lines[0]), squeeze=False)
    extent = (-HALF_SIDE, HALF_SIDE, -HALF_SIDE, HALF_SIDE)
    for axis, (name, values) in zip(axes.flat, (panel for line in lines for panel in line), strict=True):
        top = float(np.quantile(values, 0.99))
        axis.imshow(values, origin="lower", extent=extent, cmap="magma", vmin=0, vmax=top)
        axis.set_title(name, fontsize=11, color=INK)
        axis.set_xticks([])
        axis.set_yticks([])
    return figure
