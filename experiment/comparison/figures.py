"""Figures of a comparison, from what was measured and, in two dimensions, from the models themselves."""

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from cflows.models.continuous_flow import ContinuousFlow
from cflows.sde import probability_flow
from core import DensityModel
from discrete import Bijection
from experiment.data import Dataset
from experiment.likelihood.budget import Array
from experiment.likelihood.unwrapped import ScoreUnderSDE, innermost, steps
from experiment.plots import COLOURS, INK, MUTED, extent_of, plain_axis, tile
from experiment.run import Run

if TYPE_CHECKING:
    from experiment.comparison.compare import Comparison, Entry

Index = NDArray[np.intp]

SIDE = 90  # cells of a density
STAGES, POINTS = 6, 2000  # panels of a flow's layers, and what moves through them
TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)
CORNER, DOTS, SMOOTHED = 6, 2000, 40  # columns and dots of a corner plot, cells under its lines
LINED = 400  # draws from which on lines are drawn around them
INSIDE = (0.5, 0.9)  # shares of the draws within a line
MOST = 6  # rows that disagree most, each way
PARTS = {
    "rows": "sampling_error_nats",
    "draws": "dequantization_error_nats",
    "trace": "trace_error_nats",
    "solver": "solver_error_nats",
}


def budget_figure(comparison: "Comparison") -> Figure:
    """Every part of each model's error bar, nats; what is zero or unknown has no bar."""
    summaries = comparison.summaries
    figure = Figure(figsize=(7.5, 1.3 + 0.62 * len(summaries)), layout="constrained")
    axis = figure.subplots()
    for k, (part, name) in enumerate(PARTS.items()):
        values = [getattr(s, name) or math.nan for s in summaries]
        places = np.arange(len(summaries)) + 0.2 * (k - 1.5)
        axis.barh(places, values, height=0.19, color=COLOURS[k], label=f"± {part}")
    axis.set_xscale("log")
    axis.set_yticks(range(len(summaries)), [s.run for s in summaries])
    axis.invert_yaxis()
    axis.set_xlabel("nats")
    axis.legend(frameon=False, fontsize=8, ncols=len(PARTS), loc="lower left", bbox_to_anchor=(0, 1))
    plain_axis(axis)
    return figure


def difference_figure(comparison: "Comparison") -> Figure:
    """The best model against each other: paired difference with its 95 % interval, nats a row."""
    best = comparison.summaries[0].run
    shown = [d for d in comparison.differences if d.first == best]
    figure = Figure(figsize=(7.5, 1.2 + 0.4 * len(shown)), layout="constrained")
    axis = figure.subplots()
    for i, d in enumerate(shown):
        colour = COLOURS[0] if d.significant else MUTED
        axis.plot([d.low_nats, d.high_nats], [i, i], color=colour, linewidth=2)
        axis.plot(d.difference_nats, i, "o", color=colour, markersize=6)
    axis.axvline(0, color=MUTED, linestyle="--", linewidth=1)
    axis.set_yticks(range(len(shown)), [d.second for d in shown])
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.set_xlabel(f"nats a row by which {best} is better; grey where the two are tied")
    plain_axis(axis)
    return figure


def scatter_figure(a: "Entry", b: "Entry") -> Figure:
    """log p of each test row under both models; what disagrees most is ringed."""
    x, y = b.log_prob.mean(0), a.log_prob.mean(0)
    figure = Figure(figsize=(5.2, 5.0), layout="constrained")
    axis = figure.subplots()
    axis.scatter(x, y, s=5, alpha=0.35, color=COLOURS[0], linewidths=0)
    for rows, colour in zip(disagreeing(a, b), (COLOURS[2], COLOURS[1]), strict=True):
        axis.scatter(x[rows], y[rows], s=42, facecolors="none", edgecolors=colour, linewidths=1.3)
    low, high = (f(np.concatenate([np.quantile(v, [0.002, 0.998]) for v in (x, y)])) for f in (min, max))
    axis.plot([low, high], [low, high], color=MUTED, linestyle="--", linewidth=1)
    axis.set_xlabel(f"log p under {b.summary.run} (nats)")
    axis.set_ylabel(f"log p under {a.summary.run} (nats)")
    plain_axis(axis)
    return figure


def disagreeing(a: "Entry", b: "Entry", most: int = MOST) -> tuple[Index, Index]:
    """Indices of the test rows that a, and those that b, prefers most."""
    order = np.argsort(a.log_prob.mean(0) - b.log_prob.mean(0))
    return order[::-1][:most], order[:most]


def disagreement_figure(a: "Entry", b: "Entry", dataset: Dataset) -> Figure:
    """The images on which the models disagree most, with what each row gains."""
    if dataset.image_shape is None:
        raise ValueError(f"disagreement_figure shows images, but {dataset.name} has none.")
    figure = Figure(figsize=(1.25 * MOST + 1, 3.6), layout="constrained")
    axes = figure.subplots(2, MOST, squeeze=False)
    difference = a.log_prob.mean(0) - b.log_prob.mean(0)
    top = 1.0 if dataset.bins is None else dataset.bins - 1.0
    for line, (rows, entry) in enumerate(zip(disagreeing(a, b), (a, b), strict=True)):
        for axis, row in zip(axes[line], rows, strict=False):
            image = tile(dataset.test[row : row + 1].double().numpy(), dataset.image_shape, columns=1)
            axis.imshow(np.clip(image / top, 0, 1), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(f"row {row}: {difference[row]:+.1f}", fontsize=8, color=INK)
        axes[line, 0].set_ylabel(f"{entry.summary.run}\npreferred", fontsize=9, color=INK)
        for axis in axes[line]:
            axis.set_xticks([])
            axis.set_yticks([])
    return figure


def corner_figure(entry: "Entry", dataset: Dataset) -> Figure:
    """Test rows against draws of a model: each column on the diagonal, each pair of columns below it.

    Dots are test rows; the lines hold shares `INSIDE` of the draws, which are dots too where they are few. What lies
    far out in the data is left out of sight.
    """
    if entry.draws is None:
        raise ValueError(f"corner_figure compares draws with rows, but {entry.summary.run} has none.")
    x, draws = dataset.test[:DOTS].double().numpy(), entry.draws
    D = min(x.shape[1], CORNER)
    names = dataset.columns or tuple(f"column {place}" for place in range(D))
    spans = [_span(column.double().numpy()) for column in dataset.test.T[:D]]
    figure = Figure(figsize=(1.2 + 1.6 * D, 1.2 + 1.6 * D), layout="constrained")
    axes = figure.subplots(D, D, squeeze=False)
    for i, j in np.ndindex(D, D):
        axis = cast(Axes, axes[i, j])
        if i < j:
            axis.set_axis_off()
            continue
        axis.set_xlim(spans[j])
        if i == j:
            edges = np.linspace(*spans[i], max(11, min(41, len(x) // 20))).tolist()
            axis.hist(x[:, i], bins=edges, weights=_equal(x), color=COLOURS[0], alpha=0.3)
            axis.hist(draws[:, i], bins=edges, weights=_equal(draws), color=COLOURS[1], histtype="step", linewidth=1.3)
            axis.set_yticks([])
        else:
            axis.set_ylim(spans[i])
            axis.scatter(x[:, j], x[:, i], s=3, alpha=0.35, color=COLOURS[0], linewidths=0)
            if len(draws) < LINED:
                axis.scatter(draws[:, j], draws[:, i], s=3, alpha=0.6, color=COLOURS[1], linewidths=0)
            else:
                _lines_of_mass(axis, draws[:, [j, i]], spans[j], spans[i])
        plain_axis(axis)
        axis.tick_params(labelleft=0 == j < i, labelbottom=i == D - 1, labelsize=7)
        axis.locator_params(nbins=4)
        axis.set_xlabel(names[j] if i == D - 1 else "", fontsize=9)
        axis.set_ylabel(names[i] if 0 == j < i else "", fontsize=9)
    handles = [Patch(color=COLOURS[0], alpha=0.4, label="test rows"), Line2D([], [], color=COLOURS[1])]
    shares = "" if len(draws) < LINED else f"{' and '.join(f'{share:.0%}' for share in INSIDE)} of "
    handles[1].set_label(f"{shares}draws of {entry.summary.run}")
    figure.legend(handles=handles, loc="upper right", frameon=False, fontsize=9)
    return figure


def _equal(x: Array) -> Array:
    """Weights of rows, which sum to one whether they are in sight or not."""
    return np.full(len(x), 1 / len(x))


def _span(column: Array) -> tuple[float, float]:
    """Where all but the outermost of the values lie, with a margin."""
    low, high = np.quantile(column, [0.002, 0.998])
    margin = 0.08 * (high - low) if high > low else 0.5
    return float(low - margin), float(high + margin)


def _lines_of_mass(axis: Axes, x: Array, across: tuple[float, float], up: tuple[float, float]) -> None:
    """Lines of equal density of points, the innermost around the smallest share of them."""
    from scipy.ndimage import gaussian_filter  # half as long to import as torch

    counts, xs, ys = np.histogram2d(x[:, 0], x[:, 1], bins=SMOOTHED, range=[list(across), list(up)])
    p = gaussian_filter(counts, 1.2)
    levels = np.unique(levels_of_mass(p, INSIDE))
    if levels[0] > 0 and levels[-1] < p.max():
        middle = [(edges[1:] + edges[:-1]) / 2 for edges in (xs, ys)]
        axis.contour(*middle, p.T, levels=levels, colors=COLOURS[1], linewidths=1)


def levels_of_mass(p: Array, shares: Sequence[float]) -> Array:
    """The largest level of each share q for which Σ p over cells at or above it is q Σ p or more.

    Checked by tests/experiment/comparison/test_corner.py.

    Example:
        >>> levels_of_mass(np.array([[6.0, 1.0], [3.0, 0.0]]), [0.5, 0.9]).tolist()
        [6.0, 3.0]
    """
    ordered = np.sort(p, axis=None)[::-1]
    inside = ordered.cumsum() / p.sum() if p.sum() > 0 else np.ones(p.size)
    levels: Array = ordered[np.minimum(np.searchsorted(inside, shares), p.size - 1)]
    return levels


def learning_figure(comparison: "Comparison") -> Figure | None:
    """The validation metric of each training against its seconds, a panel a metric; None where none was measured."""
    curves: dict[str, dict[str, Array]] = {}
    for entry in comparison.entries:
        for metric, curve in validation_curves(entry.run).items():
            if len(curve) > 1:
                curves.setdefault(metric, {})[entry.summary.run] = curve
    if not curves:
        return None
    figure = Figure(figsize=(4.6 * len(curves), 3.4), layout="constrained")
    for axis, (metric, runs) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for i, (name, curve) in enumerate(runs.items()):
            axis.plot(curve[:, 0], curve[:, 1], marker="o", markersize=3, color=COLOURS[i % len(COLOURS)], label=name)
        axis.set_xlabel("training (s)")
        axis.set_title(metric.removeprefix("validation_").replace("_", " "), fontsize=10, color=INK)
        axis.legend(frameon=False, fontsize=8, loc="best")
        plain_axis(axis)
    return figure


def validation_curves(run: Run) -> dict[str, Array]:
    """Seconds and value of every validation, `(count, 2)`, by metric."""
    found: dict[str, list[tuple[float, float]]] = {}
    lines = run.metrics.read_text().splitlines() if run.metrics.exists() else []
    for line in map(json.loads, lines):
        for name, value in line.items():
            if name.startswith("validation_") and isinstance(value, float) and "seconds" in line:
                found.setdefault(name, []).append((line["seconds"], value))
    return {name: np.array(values) for name, values in found.items()}


@torch.no_grad()
def density_grid(model: DensityModel, extent: tuple[float, float, float, float]) -> Array:
    """p at the centres of cells, rows upwards."""
    xs, ys = (torch.linspace(low, high, SIDE + 1) for low, high in (extent[:2], extent[2:]))
    centres = torch.cartesian_prod((ys[1:] + ys[:-1]) / 2, (xs[1:] + xs[:-1]) / 2).flip(1)
    centres = centres.to(model.anchor.device)
    log_prob = torch.cat([model.log_prob(part) for part in centres.split(4000)])
    return log_prob.exp().reshape(SIDE, SIDE).double().cpu().numpy()


def histogram(x: Array, extent: tuple[float, float, float, float]) -> Array:
    """The density of rows in fewer cells than `density_grid` has."""
    bins = max(10, min(SIDE - 1, round(math.sqrt(len(x) / 4))))
    span = [list(extent[2:]), list(extent[:2])]
    return np.histogram2d(x[:, 1], x[:, 0], bins=bins, range=span, density=True)[0]


@torch.no_grad()
def motion_figure(model: DensityModel, name: str) -> Figure | None:
    """How noise becomes data in two dimensions: points behind each layer, or the velocity field at some times.

    None for a density that moves nothing.
    """
    inner = innermost(model)
    if isinstance(inner, ContinuousFlow | ScoreUnderSDE):
        return _field(inner, name)
    layers = list(steps(model))
    return _warp(inner, layers, name) if len(layers) > 1 else None


def _warp(base: DensityModel, layers: list[Bijection], name: str) -> Figure:
    z = base.sample((POINTS,), generator=torch.Generator(base.anchor.device).manual_seed(0))
    angle = torch.atan2(z[:, 1], z[:, 0]).cpu().numpy()
    stages = [z]
    for layer in reversed(layers):
        stages.append(layer.inverse(stages[-1])[0])
    chosen = sorted({round(i * (len(stages) - 1) / (STAGES - 1)) for i in range(STAGES)})
    figure = Figure(figsize=(2.3 * len(chosen), 2.7), layout="constrained")
    for axis, i in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        rows = stages[i].double().cpu().numpy()
        axis.scatter(rows[:, 0], rows[:, 1], s=1.5, c=angle, cmap="twilight", linewidths=0)
        left, right, bottom, top = extent_of(rows)
        axis.set_xlim(left, right)
        axis.set_ylim(bottom, top)
        axis.set_title("noise" if i == 0 else f"{i} of {len(stages) - 1} layers", fontsize=9, color=INK)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(f"{name}: from noise to data, layer by layer", fontsize=10, color=INK)
    return figure


def _field(inner: ContinuousFlow | ScoreUnderSDE, name: str) -> Figure:
    device = cast(DensityModel, inner).anchor.device
    axis_values = torch.linspace(-3, 3, 17, device=device)
    grid = torch.cartesian_prod(axis_values, axis_values)
    velocity: Any
    if isinstance(inner, ScoreUnderSDE):
        velocity, first = probability_flow(inner.score, inner.sde), inner.t_min
    else:
        velocity, first = inner.velocity, 0.0
    figure = Figure(figsize=(2.4 * len(TIMES), 2.8), layout="constrained")
    for axis, t in zip(figure.subplots(1, len(TIMES), squeeze=False)[0], reversed(TIMES), strict=True):
        v = -velocity(grid, torch.full((len(grid),), max(t, first), device=device))  # towards the data
        at, arrow = grid.cpu().numpy(), v.double().cpu().numpy()
        size = np.hypot(*arrow.T)
        axis.quiver(*at.T, *arrow.T, size, cmap="viridis", angles="xy", pivot="mid", width=0.006)
        axis.set_title(f"t = {t:g}, ‖v‖ up to {size.max():.1f}", fontsize=9, color=INK)
        axis.set_aspect("equal")
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(f"{name}: velocity from noise to data", fontsize=10, color=INK)
    return figure
