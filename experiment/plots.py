"""Figures from saved results: each returns a `Figure` and never trains, shows or writes."""

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

if TYPE_CHECKING:
    from experiment.likelihood.summary import Summary

Array = NDArray[np.float64]

# Okabe and Ito's colours, distinct for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, MUTED = "#1a1a1a", "#6b6b6b"
ABREAST = 7  # panels on a line
LONGEST = 4.0  # an axis over the other, for equal units on both


def sample_figure(
    samples: dict[str, Array],
    *,
    image_shape: tuple[int, ...] | None,
    bins: int | None = None,
    columns: int | None = None,
    title: str,
) -> Figure:
    """Draws of each model beside the data: image grids, scatter plots of the first two columns, or a histogram of one.

    Args:
        samples: name to rows `(count, *event)`; the first is drawn first and sets the limits of all.
        image_shape: (height, width), or (3, height, width) in colour, of a row flattened or not; None for points.
        bins: levels of integer images, 0 to bins - 1 being the limits then.
        columns: images a line; a square where omitted.
        title: title of the figure.
    """
    first = next(iter(samples.values()))
    limits = extent_of(first) if image_shape is None and first.shape[1] > 1 else None
    sheets = {name: tile(rows, image_shape, columns=columns) for name, rows in samples.items()} if image_shape else {}
    flatness = max((sheet.shape[0] / sheet.shape[1] for sheet in sheets.values()), default=1.0)
    figure, axes = _panels(len(samples), title, flatness=min(flatness, 1.6) if limits is None else _flatness(limits))
    shades = (float(first.min()), float(first.max())) if bins is None else (0.0, bins - 1.0)
    for i, (axis, (name, rows)) in enumerate(zip(axes, samples.items(), strict=True)):
        axis.set_title(name, fontsize=11, color=INK)
        if image_shape is None:
            _points(axis, rows, COLOURS[i % len(COLOURS)], limits)
        else:
            axis.imshow(_shade(sheets[name], *shades), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            axis.set_axis_off()
    return figure


def moving_figure(
    last: Array, *, image_shape: tuple[int, ...] | None, bins: int | None, columns: int | None, title: str
) -> tuple[Figure, Callable[[Array], None]]:
    """A figure of images or points and what puts other rows into it; where the rows end sets its limits.

    Args:
        last: the rows that end the movement, `(count, *event)`.
        image_shape: as of `sample_figure`.
        bins: as of `sample_figure`.
        columns: as of `sample_figure`.
        title: title of the figure.
    """
    figure = sample_figure({"": last}, image_shape=image_shape, bins=bins, columns=columns, title=title)
    axis = figure.axes[0]
    shades = (float(last.min()), float(last.max())) if bins is None else (0.0, bins - 1.0)

    def show(rows: Array) -> None:
        if image_shape is None:
            axis.collections[0].set_offsets(rows[:, :2])
        else:
            axis.images[0].set_data(_shade(tile(rows, image_shape, columns=columns), *shades))

    return figure, show


def likelihood_figure(summaries: "Sequence[Summary]", log_prob: Sequence[Array]) -> Figure:
    """Mean likelihood of each model with its error bar, and beside it how its rows are spread.

    Args:
        summaries: one a run, on the same rows.
        log_prob: log-densities of each run, `(draws, rows)`, nats.
    """
    figure = Figure(figsize=(10.5, 1.9 + 0.55 * len(summaries)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25), sharey=True)
    factor, unit = _unit(summaries[0])
    rows = [values.mean(0) * factor for values in log_prob]
    low, high = np.quantile(np.concatenate(rows), [0.002, 0.998])
    bins = np.linspace(low, high, 61)
    counts = [np.histogram(np.clip(values, low, high), bins)[0] for values in rows]
    height = 0.85 / max(int(count.max()) for count in counts)
    for i, (summary, count) in enumerate(zip(summaries, counts, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        mean, error = summary.log_prob_nats * factor, summary.error_nats * abs(factor)
        left.errorbar(mean, i, xerr=error, fmt="o", color=colour, capsize=4, markersize=6, linewidth=1.6)
        left.annotate(
            f"{mean:.3f} ± {error:.3f}", (mean, i), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=9
        )
        floor = i + 0.4
        right.stairs(floor - height * count, bins, baseline=floor, fill=True, alpha=0.25, color=colour)
        right.stairs(floor - height * count, bins, baseline=floor, color=colour, linewidth=1.2)
    if summaries[0].entropy_nats is not None and factor == -1:
        left.axvline(summaries[0].entropy_nats, color=MUTED, linestyle="--", linewidth=1, label="entropy of the source")
        left.legend(frameon=False, fontsize=8, loc="lower right")
    left.set_yticks(range(len(summaries)), [s.run for s in summaries])
    left.set_ylim(len(summaries) - 0.5, -0.7)
    left.margins(x=0.35)
    left.set_xlabel(f"mean over {summaries[0].rows} test rows, {unit} (lower is better)")
    right.set_xlabel(f"each test row, {unit} (at the ends all beyond)")
    for axis in (left, right):
        plain_axis(axis)
    right.tick_params(left=False)
    figure.suptitle(f"Test likelihood on {summaries[0].data}", fontsize=12, color=INK)
    return figure


def density_figure(grids: dict[str, Array], *, extent: tuple[float, float, float, float], title: str) -> Figure:
    """Two-dimensional densities side by side on one colour scale.

    Args:
        grids: name to densities on a square grid, row 0 the lowest y; the finest are drawn smooth.
        extent: x from, x to, y from, y to.
        title: title of the figure.
    """
    figure, axes = _panels(len(grids), title, flatness=_flatness(extent))
    top = max(float(np.quantile(grid, 0.998)) for grid in grids.values())
    finest = max(map(len, grids.values()))
    for axis, (name, grid) in zip(axes, grids.items(), strict=True):
        axis.imshow(
            grid,
            origin="lower",
            extent=extent,
            cmap="magma",
            vmin=0,
            vmax=top,
            aspect=aspect_of(extent),
            interpolation="bilinear" if len(grid) == finest else "nearest",
        )
        axis.set_title(name, fontsize=11, color=INK)
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _panels(count: int, title: str, *, flatness: float = 1.0) -> tuple[Figure, list[Axes]]:
    """Panels side by side, on as few lines of at most `ABREAST` as hold them, each `flatness` times as high as wide."""
    lines = -(-count // ABREAST)
    across = -(-count // lines)
    figure = Figure(figsize=(3.4 * across, 0.6 + lines * (0.3 + 3.0 * flatness)), layout="constrained")
    figure.suptitle(title, fontsize=12, color=INK)
    axes = figure.subplots(lines, across, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _unit(summary: "Summary") -> tuple[float, str]:
    """Factor from nats to what is plotted, and its name: bits/dim for integers, nats for continuous data."""
    if summary.bits_per_dim is None:
        return -1.0, "-log p in nats"
    return -1.0 / (summary.dimensions * float(np.log(2))), "bits/dim"


def tile(rows: Array, image_shape: tuple[int, ...], *, columns: int | None = None, most: int = 8) -> Array:
    """Images as one, at most `most` lines of them, a square unless told otherwise, framed thinly; colours last."""
    *colours, height, width = image_shape
    side = min(most, math.isqrt(max(len(rows) - 1, 0)) + 1)
    lines, columns = (side, side) if columns is None else (min(most, math.ceil(len(rows) / columns)), columns)
    images = rows[: lines * columns].reshape(-1, *image_shape)
    images = np.moveaxis(images, 1, -1) if colours else images
    frame = float(images.max()) * 0.35
    sheet = np.full((lines * (height + 1) + 1, columns * (width + 1) + 1, *colours), frame)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        sheet[y : y + height, x : x + width] = image
    return sheet


def _shade(sheet: Array, low: float, high: float) -> Array:
    """From [low, high] to [0, 1]; what lies outside is drawn as the nearer end."""
    return np.clip((sheet - low) / (high - low if high > low else 1.0), 0, 1)


def extent_of(rows: Array) -> tuple[float, float, float, float]:
    """x from, x to, y from, y to of the first two columns, with a margin."""
    low, high = rows[:, :2].min(0), rows[:, :2].max(0)
    margin = np.where(high > low, 0.08 * (high - low), 0.5)
    (left, bottom), (right, top) = low - margin, high + margin
    return float(left), float(right), float(bottom), float(top)


def _flatness(limits: tuple[float, float, float, float]) -> float:
    """Height over width, where a panel can still be read."""
    left, right, bottom, top = limits
    return min(max((top - bottom) / (right - left), 0.4), 1.6) if aspect_of(limits) == "equal" else 1.0


def aspect_of(limits: tuple[float, float, float, float]) -> Literal["equal", "auto"]:
    """Equal units on both axes, unless one of them is so much longer that little could be seen.

    Example:
        >>> aspect_of((0, 1, 0, 2)), aspect_of((0, 1, 0, 900))
        ('equal', 'auto')
    """
    left, right, bottom, top = limits
    return "equal" if 1 / LONGEST <= (top - bottom) / (right - left) <= LONGEST else "auto"


def _points(axis: Axes, rows: Array, colour: str, limits: tuple[float, float, float, float] | None) -> None:
    if rows.shape[1] == 1:
        axis.hist(rows[:, 0], bins=60, color=colour)
        plain_axis(axis)
        return
    axis.scatter(rows[:, 0], rows[:, 1], s=2, alpha=0.35, color=colour, linewidths=0)
    if limits is not None:
        axis.set_xlim(limits[:2])
        axis.set_ylim(limits[2:])
        axis.set_aspect(aspect_of(limits))
    plain_axis(axis)


def plain_axis(axis: Axes) -> None:
    """Takes away what carries nothing."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.tick_params(colors=MUTED, labelsize=8)


def anomaly_figure(scores: dict[str, Array], held_out: Array, *, run: str) -> Figure:
    """How often each score occurs in two sets of rows, and the ROC curves of both statistics.

    Args:
        scores: -log p in nats of test rows, and of the others, by name.
        held_out: of validation rows, whose mean is the middle of the typical.
        run: name of the run.
    """
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    (usual, others), mean = scores.values(), held_out.mean()
    reach = 4 * (np.quantile(usual, 0.99) - np.quantile(usual, 0.01))
    within = [np.clip(values, mean - reach, mean + reach) for values in (usual, others)]
    edges = np.histogram_bin_edges(np.concatenate(within), 60)
    for colour, name, values in zip(COLOURS, scores, within, strict=False):
        weights = np.full(len(values), 1 / len(values))
        left.hist(values, bins=edges, weights=weights, histtype="stepfilled", alpha=0.25, color=colour)
        left.hist(values, bins=edges, weights=weights, histtype="step", color=colour, linewidth=1.5, label=name)
    left.axvline(mean, color=MUTED, linestyle="--", linewidth=1, label="mean of validation rows")
    beyond = any((np.abs(values - mean) > reach).any() for values in (usual, others))
    left.set_xlabel("-log p in nats" + (" (the outermost bars hold all beyond)" if beyond else ""))
    left.set_ylabel("share of rows")
    left.legend(frameon=False, fontsize=9, loc="best")
    far = [np.abs(values - mean) for values in (usual, others)]
    pairs = {"unlikely": (usual, others), "untypical": far}
    for colour, (name, (negative, positive)) in zip(COLOURS[2:], pairs.items(), strict=False):
        right.step(*_roc(negative, positive), where="post", color=colour, linewidth=1.6, label=name)
    right.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1)
    first, second = scores
    right.set_xlabel(f"share of {first} flagged")
    right.set_ylabel(f"share of {second} flagged")
    right.set_aspect("equal")
    right.legend(frameon=False, fontsize=9, loc="lower right")
    for axis in (left, right):
        plain_axis(axis)
    figure.suptitle(f"{second} under {run}, trained on {first}", fontsize=12, color=INK)
    return figure


def _roc(negative: Array, positive: Array) -> tuple[Array, Array]:
    """Shares of either that are at least as large as each threshold, from none to all."""
    thresholds = np.unique(np.concatenate([negative, positive]))[::-1]
    shares = [1 - np.searchsorted(np.sort(v), thresholds, side="left") / len(v) for v in (negative, positive)]
    return np.concatenate([[0.0], shares[0]]), np.concatenate([[0.0], shares[1]])
