"""One page of a comparison: a single HTML file that needs no network, and its figures as PNG."""

import base64
import html
import string
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure

from core import DensityModel
from experiment.comparison import figures, tables
from experiment.files import write_atomic
from experiment.plots import density_figure, extent_of, likelihood_figure, png, sample_figure
from experiment.run import load_run

if TYPE_CHECKING:
    from experiment.comparison.compare import Comparison

SHOWN = 64  # images of each model


@dataclass(frozen=True)
class Panel:
    """A figure of the page.

    Attributes:
        name: of its PNG file.
        heading: over it.
        caption: how it is to be read.
        figure: what is drawn.
    """

    name: str
    heading: str
    caption: str
    figure: Figure


def write_page(comparison: "Comparison", *, device: torch.device) -> None:
    """Writes `comparison.html` and a PNG of each figure into the comparison's folder."""
    images = []
    for panel in panels(comparison, device=device):
        content = png(panel.figure)
        write_atomic(comparison.folder / f"{panel.name}.png", content)
        images.append(_section(panel, content))
    published = ""
    if comparison.published:
        table = _table(tables.published_cells(comparison.published), sortable=False)
        sources = html.escape(comparison.published[0].source)
        published = f'<h2>In print</h2><div class="scroll">{table}</div><p class="lead">{sources}.</p>'
    best = comparison.summaries[0]
    page = string.Template(files("experiment.comparison").joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(f"Likelihoods on {best.data}"),
        lead=html.escape(f"{len(comparison.entries)} models, {best.rows} test rows, {best.dimensions} dimensions."),
        table=_table(tables.cells(comparison), sortable=True),
        notes="".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes()),
        published=published,
        figures="\n".join(images),
    )
    write_atomic(comparison.folder / "comparison.html", page.encode())


def panels(comparison: "Comparison", *, device: torch.device) -> list[Panel]:
    """The figures, in the order of the page."""
    entries, summaries = comparison.entries, comparison.summaries
    found = [
        Panel(
            "likelihoods",
            "Likelihood",
            "Left, the mean with its error bar; right, how the test rows are spread.",
            likelihood_figure(summaries, [e.log_prob for e in entries]),
        )
    ]
    if len(entries) > 1:
        caption = "Rows are shared, so what they have in common cancels; bars are 95 % intervals."
        found.append(Panel("differences", "Paired differences", caption, figures.difference_figure(comparison)))
    caption = "Standard error over rows, of it what more draws or probes would take away, and the solver's error."
    found.append(Panel("budget", "Error budget", caption, figures.budget_figure(comparison)))
    if len(entries) > 1:
        found += _pair(comparison)
    if entries[0].draws is not None:
        which = "; the first two columns" if _has_corner(comparison) else ""
        caption = f"Test data, and draws of each model from one seed{which}."
        found.append(Panel("samples", "Samples", caption, _samples(comparison)))
    if _has_corner(comparison):
        found.append(_corner(comparison))
    if comparison.dataset.event_shape == (2,):
        found += _plane(comparison, device)
    curves = figures.learning_figure(comparison)
    if curves is not None:
        found.append(Panel("learning", "Training", "The validation metric against training time.", curves))
    return found


def _pair(comparison: "Comparison") -> list[Panel]:
    """The best two models row by row."""
    a, b = comparison.entries[:2]
    caption = (
        f"Each point is a test row. Above the line {a.summary.run} finds it likelier; ringed are the rows on which the "
        "two disagree most."
    )
    found = [Panel("scatter", "Row by row", caption, figures.scatter_figure(a, b))]
    if comparison.dataset.image_shape is not None:
        caption = f"log p of {a.summary.run} less that of {b.summary.run}, nats."
        figure = figures.disagreement_figure(a, b, comparison.dataset)
        found.append(Panel("disagreement", "Where they disagree most", caption, figure))
    return found


def _has_corner(comparison: "Comparison") -> bool:
    """Whether there are draws of rows with more than two columns, and no images."""
    data, shape = comparison.dataset, comparison.dataset.event_shape
    return data.image_shape is None and len(shape) == 1 and shape[0] > 2 and comparison.entries[0].draws is not None


def _corner(comparison: "Comparison") -> Panel:
    best, D = comparison.entries[0], comparison.dataset.event_shape[0]
    which = "" if D <= figures.CORNER else f" The first {figures.CORNER} of {D} columns."
    caption = (
        f"Blue, test rows; orange, draws of {best.summary.run}: columns on the diagonal, pairs below it. The model is "
        f"wrong where the two part by more than chance, as by many rows where there are no draws.{which}"
    )
    return Panel("columns", "Column by column", caption, figures.corner_figure(best, comparison.dataset))


def _samples(comparison: "Comparison") -> Figure:
    dataset = comparison.dataset
    drawn = {e.summary.run: e.draws for e in comparison.entries if e.draws is not None}
    count = SHOWN if dataset.image_shape is not None else max(len(x) for x in drawn.values())
    samples = {"test data": dataset.test[:count].double().numpy()} | {name: x[:count] for name, x in drawn.items()}
    title = f"Samples: {dataset.name}"
    figure = sample_figure(samples, image_shape=dataset.image_shape, bins=dataset.bins, title=title)
    if dataset.image_shape is None and dataset.columns is not None:
        _name_axes(figure, dataset.columns)
    return figure


def _name_axes(figure: Figure, columns: tuple[str, ...]) -> None:
    """The first two columns on the axes of every panel."""
    for place, axis in enumerate(figure.axes):
        axis.set_xlabel(columns[0], fontsize=9)
        if place == 0 and len(columns) > 1:
            axis.set_ylabel(columns[1], fontsize=9)


def _plane(comparison: "Comparison", device: torch.device) -> list[Panel]:
    """Densities over the plane, and how each model moves it."""
    test = comparison.dataset.test.double().numpy()
    extent = extent_of(test)
    grids, moving = {"test data": figures.histogram(test, extent)}, []
    for entry in comparison.entries:
        model, name = load_run(entry.run.path, device=device), entry.summary.run
        if not isinstance(model, DensityModel):
            continue
        grids[name] = figures.density_grid(model, extent)
        figure = figures.motion_figure(model, name)
        if figure is not None:
            caption = "How the model turns noise into data."
            moving.append(Panel(f"motion-{name}", f"Inside {name}", caption, figure))
    figure = density_figure(grids, extent=extent, title=f"Densities: {comparison.dataset.name}")
    if comparison.dataset.columns is not None:
        _name_axes(figure, comparison.dataset.columns)
    return [Panel("densities", "Densities", "One colour scale for all.", figure), *moving]


def _section(panel: Panel, content: bytes) -> str:
    data, caption = base64.b64encode(content).decode(), html.escape(panel.caption)
    image = f'<img alt="{html.escape(panel.heading)}: {caption}" src="data:image/png;base64,{data}">'
    return f"<h2>{html.escape(panel.heading)}</h2><figure>{image}<figcaption>{caption}</figcaption></figure>"


def _table(table: tables.Cells, *, sortable: bool) -> str:
    header, rows = table
    titles = [f"<button>{html.escape(t)}</button>" if sortable else html.escape(t) for t in header]
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    kind = ' class="sortable"' if sortable else ""
    return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
