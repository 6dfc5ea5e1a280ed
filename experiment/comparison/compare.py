"""Models side by side on the same rows with the same noise: trained, evaluated, ranked, drawn, put on a page."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from experiment.comparison import tables
from experiment.comparison.contenders import Options, baselines, open_or_train
from experiment.comparison.page import write_page
from experiment.comparison.paired import PairedDifference, paired_differences, ranks, tied_groups
from experiment.comparison.published import Published, published
from experiment.comparison.quality import Quality, draws_of, floor, quality
from experiment.data import Dataset
from experiment.device import resolve_device
from experiment.errors import UserError
from experiment.files import write_atomic, write_json
from experiment.likelihood.budget import Array
from experiment.likelihood.evaluation import evaluate, saved_log_prob, saved_summary
from experiment.likelihood.summary import Summary
from experiment.run import Run

DRAWN_ROWS, DRAWN_IMAGES = 2000, 100


@dataclass(frozen=True)
class Entry:
    """A model of a comparison.

    Attributes:
        run: its run.
        summary: its likelihood with the error budget.
        log_prob: log-densities, `(draws, rows)`, nats.
        rank: 1 and the number of models that are significantly better.
        tied: letters; two models that share one are not told apart by the rows.
        draws: samples, `(count, *event)`; None where none were asked for.
        quality: how near they are to test rows.
    """

    run: Run
    summary: Summary
    log_prob: Array
    rank: int
    tied: str
    draws: Array | None = None
    quality: Quality | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found and wrote.

    Attributes:
        entries: one a model, best first.
        differences: every pair, the better first.
        floor: what training rows in the place of draws have; None where nothing was drawn.
        published: numbers of papers on the same data.
        dataset: the data.
        folder: where tables, figures and the page lie.
    """

    entries: tuple[Entry, ...]
    differences: tuple[PairedDifference, ...]
    floor: Quality | None
    published: tuple[Published, ...]
    dataset: Dataset
    folder: Path

    @property
    def summaries(self) -> tuple[Summary, ...]:
        """Of each model, best first."""
        return tuple(entry.summary for entry in self.entries)

    def text(self) -> str:
        """The table for a terminal."""
        return "\n".join([tables.text(tables.cells(self)), "", *self.notes()])

    def markdown(self) -> str:
        """The table as GitHub-flavoured Markdown, with the published numbers under it."""
        parts = [tables.markdown(tables.cells(self)), "\n".join(f"- {note}" for note in self.notes())]
        if self.published:
            parts.append(tables.markdown(tables.published_cells(self.published)))
        return "\n\n".join(parts) + "\n"

    def notes(self) -> list[str]:
        """What the table needs to be read, a sentence each, and what the best model gains."""
        s = self.summaries[0]
        notes = [
            f"{s.data}: {s.rows} test rows of {s.dimensions} dimensions, {s.draws} noise draw(s) each, the same for "
            "every model. ± is one standard error over rows with the solver error in quadrature. Models that share a "
            "letter are tied: all pairs by a paired bootstrap, Holm's correction at 5 %."
        ]
        notes += [_sentence(d) for d in self.differences if d.first == s.run]
        if any(d.bound for d in self.differences) and len({s.kind for s in self.summaries}) > 1:
            notes.append(
                "A bound lies below the model's log-likelihood: that it is lower alone does not make it worse."
            )
        if self.floor is not None:
            notes.append(
                f"Training rows in the place of draws: SW₂ {self.floor.sliced_wasserstein:.4f}, MMD² "
                f"{self.floor.mmd:+.5f}; {_scale(self.dataset)}."
            )
        return notes


def compare(
    contenders: Sequence[str | Path],
    out: str | Path,
    *,
    draws: int | None = None,
    samples: int | None = None,
    with_baselines: bool = True,
    data_root: str | Path | None = None,
    device: str = "cpu",
    threads: int = 0,
    progress_bar: bool = False,
) -> Comparison:
    """Trains and evaluates what is missing, ranks the models, and writes tables, figures and one page.

    Writes `comparison.{html,md,tex,csv,json}` and the figures of the page as PNG into `out`.

    Args:
        contenders: run folders and config files of the same data, one or more.
        out: folder of the results; baselines go into `baselines` in it.
        draws: dequantization draws a row; each config's where omitted.
        samples: draws of each model for the distances from test rows; 0 for none; 2000, of images 100, where omitted.
        with_baselines: whether a Gaussian, a Gaussian mixture and a kernel density are fitted beside them.
        data_root: folder of the data files, where it moved since training.
        device: where to compute.
        threads: CPU threads, 0 to choose by the size of each model.
        progress_bar: show progress on the terminal.

    Returns:
        The comparison, best model first.

    Raises:
        UserError: nothing to compare, two runs of one name, or runs that were tested on different rows or noise.
    """
    if (draws is not None and draws < 1) or (samples is not None and samples < 0):
        raise UserError(f"--draws must be 1 or more and --samples 0 or more, but they are {draws} and {samples}.")
    place, root = resolve_device(device), None if data_root is None else Path(data_root)
    options = Options(data_root, device, threads, progress_bar)
    runs = open_or_train(contenders, options)
    _make_folder(Path(out))
    found = {run.name: _evaluated(run, draws, options) for run in runs}
    _check_same_rows(list(found.values()))
    dataset = runs[0].load_data(root)
    added = baselines(runs[0], Path(out) / "baselines", options) if with_baselines else []
    added = [run for run in added if run.name not in found]
    most = max(s.draws for s in found.values())
    found |= {run.name: _evaluated(run, most, options) for run in added}
    differences, entries = _ranked([*runs, *added], found)
    count = samples if samples is not None else DRAWN_IMAGES if dataset.image_shape is not None else DRAWN_ROWS
    count = min(count, len(dataset.test), len(dataset.train))
    comparison = Comparison(
        entries=tuple(_drawn(entry, dataset, count, place) for entry in entries),
        differences=tuple(differences),
        floor=floor(dataset, count) if count > 1 else None,
        published=published(dataset.name),
        dataset=dataset,
        folder=Path(out),
    )
    _write_tables(comparison)
    write_page(comparison, device=place)
    return comparison


def _evaluated(run: Run, draws: int | None, options: Options) -> Summary:
    return saved_summary(run, draws=draws) or evaluate(run.path, draws=draws, **vars(options))


def _ranked(runs: Sequence[Run], found: dict[str, Summary]) -> tuple[list[PairedDifference], list[Entry]]:
    """Every pair, and the models, best first."""
    order = sorted(runs, key=lambda run: -found[run.name].log_prob_nats)
    log_prob = {run.name: saved_log_prob(run) for run in order}
    names, summaries = list(log_prob), [found[name] for name in log_prob]
    differences = paired_differences(
        names,
        list(log_prob.values()),
        [s.solver_error_nats for s in summaries],
        [s.kind == "bound" for s in summaries],
    )
    places, letters = ranks(names, differences), tied_groups(names, differences)
    return differences, [
        Entry(run, found[run.name], log_prob[run.name], places[run.name], letters[run.name]) for run in order
    ]


def _drawn(entry: Entry, dataset: Dataset, count: int, device: torch.device) -> Entry:
    if count < 2:
        return entry
    draws = draws_of(entry.run, dataset, count, device=device)
    return replace(entry, draws=draws.x, quality=quality(draws, dataset))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be made a folder: {error.strerror or error}.") from error


def _check_same_rows(summaries: Sequence[Summary]) -> None:
    first = summaries[0]
    for other in summaries[1:]:
        if other.conditional != first.conditional:
            told, untold = (first, other) if first.conditional else (other, first)
            raise UserError(
                f"{told.run} was told the labels and {untold.run} was not: log p(x | y) and log p(x) cannot be "
                "compared."
            )
        if other.data_fingerprint != first.data_fingerprint:
            raise UserError(
                f"{first.run} was tested on {first.data} ({first.rows} rows) and {other.run} on {other.data} "
                f"({other.rows} rows): only runs tested on the same rows can be compared."
            )
    noisy = [s for s in summaries if not s.mass]  # a mass has no draws but one
    for other in noisy[1:]:
        if other.draws != noisy[0].draws:
            raise UserError(
                f"{noisy[0].run} was evaluated with {noisy[0].draws} dequantization draws and {other.run} with "
                f"{other.draws}; give --draws to use the same."
            )


def _sentence(d: PairedDifference) -> str:
    tied = "" if d.significant else "; tied"
    return (
        f"{d.first} over {d.second}: {d.difference_nats:+.3f} ± {d.error_nats:.3f} nats a row, paired, 95 % interval "
        f"{d.low_nats:+.3f} to {d.high_nats:+.3f}, p = {d.adjusted_p_value:.2g} for all pairs{tied}."
    )


def _scale(dataset: Dataset) -> str:
    if dataset.image_shape is None:
        return "each column in units of its standard deviation over test rows"
    return "pixels in units of their range"


def _write_tables(comparison: Comparison) -> None:
    folder, table = comparison.folder, tables.cells(comparison)
    content = {
        "models": [
            {
                **asdict(e.summary),
                "rank": e.rank,
                "tied": e.tied,
                "quality": None if e.quality is None else asdict(e.quality),
            }
            for e in comparison.entries
        ],
        "paired_differences": [asdict(d) for d in comparison.differences],
        "floor": None if comparison.floor is None else asdict(comparison.floor),
        "published": [{**asdict(p), "error": None if math.isnan(p.error) else p.error} for p in comparison.published],
    }
    write_json(folder / "comparison.json", content)
    write_atomic(folder / "comparison.md", comparison.markdown().encode())
    write_atomic(folder / "comparison.tex", tables.latex(table).encode())
    write_atomic(folder / "comparison.csv", tables.comma_separated(comparison).encode())
