"""Where there are no data, there is no score: two learned scores of a mixture against the exact one."""

import time
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.annealing import mixture
from benchmarks.record import DOCS
from cflows import FixedNoiseDenoising, SlicedScoreMatching
from core import GaussianMixture
from core.nets import MLP
from experiment.files import write_atomic
from experiment.plots import COLOURS, INK, MUTED, png

SIDE, STEPS, ROWS, SIGMA = 8.0, 3000, 512, 0.3
OBJECTIVES = {
    "sliced": SlicedScoreMatching,
    f"denoising, σ = {SIGMA}": lambda net: FixedNoiseDenoising(net, sigma=SIGMA),
}
SHADES = LinearSegmentedColormap.from_list("right to wrong", [COLOURS[0], "#c9b8a8", COLOURS[1]])
BANDS = {  # of log p
    "everywhere": (-np.inf, np.inf),
    "above -5": (-5, np.inf),
    "-10 to -5": (-10, -5),
    "below -10": (-np.inf, -10),
}


def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """E ‖s - ∇ log p‖² under the data, and relative to ‖∇ log p‖² on a square, by how dense the data are there."""
    data = mixture().float()
    grid = square(81)
    exact, log_p = data.score(grid), data.log_prob(grid)
    rows, learned = [], {}
    for name, objective in OBJECTIVES.items():
        started = time.monotonic()
        net = trained(objective, data)
        seconds = time.monotonic() - started
        learned[name] = net
        with torch.no_grad():
            x = data.sample((20_000,), generator=torch.Generator().manual_seed(1))
            fisher = (net(x) - data.score(x)).square().sum(1).mean().item()
            off = (net(grid) - exact).square().sum(1)
        row = {"objective": name, "fisher_divergence": fisher, "seconds": seconds}
        for band, (low, high) in BANDS.items():
            inside = (log_p > low) & (log_p <= high)
            row[band] = (off[inside].sum() / exact[inside].square().sum().double()).sqrt().item()
        rows.append(row)
    write_atomic(DOCS / "figures" / "score-field.png", png(figure(data, next(iter(learned.values())))))
    return {"steps": STEPS, "rows": ROWS, "bands": list(BANDS)}, rows


def square(points: int) -> Tensor:
    """A grid of the square, `(points², 2)`, rows of it upwards."""
    axis = torch.linspace(-SIDE, SIDE, points)
    return torch.cartesian_prod(axis, axis).flip(1)


def trained(objective: Any, data: GaussianMixture) -> nn.Module:
    """An MLP on fresh draws."""
    torch.manual_seed(0)
    net, generator = MLP(2, 2, hidden=(128, 128), activation="silu"), torch.Generator().manual_seed(0)
    loss, optimizer = objective(net), torch.optim.Adam(net.parameters(), lr=2e-3)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / STEPS)
        optimizer.zero_grad()
        loss(data.sample((ROWS,), generator=generator), generator=generator).backward()
        optimizer.step()
    return net.eval()


@torch.no_grad()
def figure(data: GaussianMixture, net: nn.Module) -> Figure:
    """Both fields over the contours of log p, and how far they are apart."""
    result = Figure(figsize=(12.6, 4.2), layout="constrained")
    axes = result.subplots(1, 3, sharex=True, sharey=True)
    coarse, fine = square(21), square(201)
    exact, learned = data.score(coarse), net(coarse)
    wrong = ((learned - exact).norm(dim=1) / exact.norm(dim=1)).numpy()
    arrows = _arrows(axes[0], coarse, exact, np.zeros_like(wrong))
    _arrows(axes[1], coarse, learned, wrong)
    bar = result.colorbar(arrows, ax=axes[1], shrink=0.85, extend="max", format=PercentFormatter(1))
    bar.set_label("error relative to the exact score", color=INK)
    error = (net(fine) - data.score(fine)).norm(dim=1).reshape(201, 201).numpy()
    extent = (-SIDE, SIDE, -SIDE, SIDE)
    image = axes[2].imshow(error, origin="lower", extent=extent, cmap="magma_r", vmin=0, vmax=np.quantile(error, 0.97))
    bars = [bar, result.colorbar(image, ax=axes[2], shrink=0.85, extend="max")]
    for axis, title in zip(axes, ("exact score", "learned by sliced score matching", "‖learned − exact‖"), strict=True):
        _frame(axis, title, data)
    for bar in bars:
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=MUTED, labelsize=8)
    result.suptitle("The score is learned where the data are (contours), and nowhere else", fontsize=12, color=INK)
    return result


def _arrows(axis: Axes, x: Tensor, s: Tensor, wrong: NDArray[np.float32]) -> Quiver:
    """The field in the colours of its error, by the root of its length: it grows without bound away from the modes."""
    u = (s / s.norm(dim=1, keepdim=True).sqrt()).T.numpy()
    return axis.quiver(
        *x.T.numpy(), *u, wrong, angles="xy", pivot="mid", width=0.005, scale=40, cmap=SHADES, clim=(0, 1)
    )


def _frame(axis: Axes, title: str, data: GaussianMixture) -> None:
    log_p = data.log_prob(square(201)).reshape(201, 201).numpy()
    side = np.linspace(-SIDE, SIDE, 201)
    axis.contour(side, side, log_p, levels=[-10, -7, -5, -3.5], colors=MUTED, linewidths=0.9, linestyles="solid")
    axis.set_title(title, fontsize=11, color=INK)
    axis.set_aspect("equal")
    axis.set_xlim(-SIDE, SIDE)
    axis.set_ylim(-SIDE, SIDE)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=MUTED, labelsize=8)
