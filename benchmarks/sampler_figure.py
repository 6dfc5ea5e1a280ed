"""Distance to the data against score evaluations, from what the measurements of samplers have left."""

import json
import math
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.record import DOCS
from benchmarks.samplers import SOLVERS
from experiment.files import write_atomic
from experiment.plots import COLOURS, INK, MUTED, png

Content = tuple[dict[str, Any], list[dict[str, Any]]]  # settings and rows of a measurement

# Colour and marker; deterministic solvers are dashed, with open markers.
STYLES = {
    "Euler-Maruyama": ("#000000", "o"),
    "ancestral, in log-SNR": (COLOURS[5], "s"),
    "predictor-corrector": (COLOURS[4], "^"),
    "stochastic Runge-Kutta, in log-SNR": (COLOURS[1], "D"),
    "adaptive SDE": (COLOURS[2], "v"),
    "SDE-DPM-Solver++ 2M": (COLOURS[0], "P"),
    "DDIM": ("#000000", "o"),
    "DPM-Solver++ 2M": (COLOURS[0], "P"),
    "DPM-Solver++ 3M": (COLOURS[3], "X"),
    "EDM Heun": (COLOURS[1], "D"),
    "ODE, dopri5": (COLOURS[2], "v"),
}


class Panel(NamedTuple):
    """One problem.

    Attributes:
        title: says which.
        unit: says what the distance is.
        curves: solver to (evaluations, distance) of its points.
        floor: distance of exact draws, and its standard error.
        top: largest distance that is drawn.
    """

    title: str
    unit: str
    curves: dict[str, list[tuple[float, float]]]
    floor: tuple[float, float]
    top: float


def draw_figure(*, quality: Content | None = None, images: Content | None = None) -> None:
    """Writes `docs/figures/sampler-quality.png`; what is not given is read from its JSON, if it was measured."""
    quality, images = quality or _stored("sampler_quality"), images or _stored("sampler_images")
    panels = [*(quality_panels(*quality) if quality else ()), *(image_panels(*images) if images else ())]
    write_atomic(DOCS / "figures" / "sampler-quality.png", png(figure(panels)))


def figure(panels: list[Panel]) -> Figure:
    """The panels, two a line, over one legend."""
    lines = math.ceil(len(panels) / 2)
    result = Figure(figsize=(10.4, 1.3 + 3.7 * lines), layout="constrained")
    axes = result.subplots(lines, 2, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel)
    curves = {line.get_label(): line for axis in axes for line in axis.get_lines()}
    result.legend(curves.values(), curves.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    result.suptitle("Draws' distance to the data: solid stochastic, dashed deterministic", fontsize=12, color=INK)
    return result


def _draw(axis: Axes, panel: Panel) -> None:
    mean, error = panel.floor
    axis.axhspan(max(mean - 2 * error, 1e-9), mean + 2 * error, color="#d9d9d9", zorder=0)
    for name, points in panel.curves.items():
        colour, marker = STYLES[name]
        dashed = SOLVERS[name].kind == "deterministic"
        axis.loglog(
            *zip(*points, strict=True),
            linestyle="--" if dashed else "-",
            color=colour,
            marker=marker,
            markersize=5,
            markerfacecolor="white" if dashed else colour,
            linewidth=1.3,
            label=name,
        )
    low = max(mean - 2 * error, 0.5 * mean)
    axis.set_ylim(0.75 * low, panel.top)
    axis.annotate(
        "exact draws",
        (0.02, low),
        xycoords=("axes fraction", "data"),
        xytext=(0, -3),
        textcoords="offset points",
        va="top",
        fontsize=8,
        color=MUTED,
    )
    axis.set_title(panel.title, fontsize=11, color=INK)
    axis.set_xlabel("score evaluations", color=INK)
    axis.set_ylabel(panel.unit, color=INK)
    axis.set_xlim(3.6, 1300)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(LogLocator(subs=(1, 2, 5)))
        side.set_major_formatter("{x:g}")
        side.set_minor_locator(NullLocator())
    axis.tick_params(colors=MUTED, labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def quality_panels(settings: dict[str, Any], rows: list[dict[str, Any]]) -> list[Panel]:
    return [
        Panel(
            name,
            "sliced Wasserstein within modes (std)",
            _curves({row["solver"]: row[name]["points"] for row in rows}, "within_modes"),
            tuple(floor["within_modes"]),
            top=5.0,
        )
        for name, floor in settings["floors"].items()
    ]


def image_panels(settings: dict[str, Any], rows: list[dict[str, Any]]) -> list[Panel]:
    curves = _curves({row["solver"]: row["points"] for row in rows}, "frechet")
    floor = settings["floor"]["frechet"]
    return [Panel("MNIST, learned", "Fréchet distance of a classifier's features", curves, tuple(floor), top=300.0)]


def _curves(points: dict[str, list[dict[str, Any]]], name: str) -> dict[str, list[tuple[float, float]]]:
    """Those with a style, without points that have no distance."""
    return {
        solver: sorted((p["evaluations"], p[name][0]) for p in of_solver if name in p)
        for solver, of_solver in points.items()
        if solver in STYLES
    }


def _stored(name: str) -> Content | None:
    path = DOCS / "results" / f"{name}.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    return content["settings"], content["rows"]
