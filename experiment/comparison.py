"""Runs side by side on the same rows with the same noise: tables, figures, paired differences."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from experiment.budget import Array
from experiment.device import resolve_device
from experiment.errors import UserError
from experiment.evaluation import evaluate, saved_log_prob, saved_summary
from experiment.files import write_atomic, write_json
from experiment.plots import likelihood_figure, png, sample_figure
from experiment.run import Run, load_run, open_run
from experiment.summary import Summary, known

SAMPLE_SEED = 30_000_000


@dataclass(frozen=True)
class PairedDifference:
    """Mean of log p_first - log p_second over shared rows and draws, nats: what the rows have in common cancels.

    Attributes:
        first: name of a run.
        second: name of another.
        difference_nats: above 0 where the first is better.
        error_nats: standard error over rows, with both solver errors in quadrature.
    """

    first: str
    second: str
    difference_nats: float
    error_nats: float


@dataclass(frozen=True)
class Comparison:
    """What `compare` found and wrote.

    Attributes:
        summaries: one a run, best first.
        differences: the best run against each other.
        folder: where tables and figures lie.
    """

    summaries: tuple[Summary, ...]
    differences: tuple[PairedDifference, ...]
    folder: Path

    def text(self) -> str:
        """The table for a terminal."""
        header, rows = _cells(self.summaries)
        widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
        rule = "  ".join("-" * w for w in widths)

        def line(cells: Sequence[str]) -> str:
            return "  ".join(
                c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
            )

        return "\n".join([line(header), rule, *(line(row) for row in rows), "", *self._notes()])

    def markdown(self) -> str:
        """The table as GitHub-flavoured Markdown."""
        header, rows = _cells(self.summaries)
        lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + "\n".join(self._notes()) + "\n"

    def _notes(self) -> list[str]:
        s = self.summaries[0]
        notes = [
            f"{s.data}: {s.rows} test rows of {s.dimensions} dimensions, {s.draws} noise draw(s) each, the same for "
            "every model. ± is one standard error over rows with the solver error in quadrature.",
        ]
        notes += [
            f"{d.first} over {d.second}: {d.difference_nats:+.3f} ± {d.error_nats:.3f} nats a row, paired."
            for d in self.differences
        ]
        return notes


def compare(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    draws: int | None = None,
    data_root: str | Path | None = None,
    device: str = "cpu",
    threads: int = 0,
    progress_bar: bool = False,
) -> Comparison:
    """Evaluates what is not evaluated yet and writes tables and figures side by side.

    Writes `comparison.{md,csv,json}`, `samples.png` and `likelihoods.png` into `out`.

    Args:
        runs: run folders, one or more, trained on the same data.
        out: folder of the results.
        draws: dequantization draws a row; each config's where omitted.
        data_root: folder of the data files, where it moved since training.
        device: where to compute.
        threads: CPU threads, 0 to choose by the size of each model.
        progress_bar: show progress on the terminal.

    Returns:
        The comparison, best model first.

    Raises:
        UserError: no run, two runs of one name, or runs that were tested on different rows or noise.
    """
    if draws is not None and draws < 1:
        raise UserError(f"--draws must be 1 or more, but is {draws}.")
    opened = [open_run(run) for run in runs]
    _check_names(opened)
    _make_folder(Path(out))
    found = {
        run.name: saved_summary(run, draws=draws)
        or evaluate(
            run.path, draws=draws, data_root=data_root, device=device, threads=threads, progress_bar=progress_bar
        )
        for run in opened
    }
    _check_same_rows(list(found.values()))
    ranked = sorted(opened, key=lambda run: -found[run.name].log_prob_nats)
    values = [saved_log_prob(run) for run in ranked]
    summaries = tuple(found[run.name] for run in ranked)
    differences = tuple(_paired(summaries[0], s, values[0], v) for s, v in zip(summaries[1:], values[1:], strict=True))
    comparison = Comparison(summaries, differences, Path(out))
    _write(comparison, ranked, values, data_root=data_root, device=device)
    return comparison


def _paired(first: Summary, second: Summary, a: Array, b: Array) -> PairedDifference:
    rows = (a - b).mean(0)
    statistical = float(rows.std(ddof=1)) / math.sqrt(len(rows))
    error = math.hypot(statistical, first.solver_error_nats, second.solver_error_nats)
    return PairedDifference(first.run, second.run, float(rows.mean()), error)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be made a folder: {error.strerror or error}.") from error


def _check_names(runs: Sequence[Run]) -> None:
    if not runs:
        raise UserError("compare needs at least one run folder, but none was given.")
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two runs are called {twice!r}; a table needs folders with different names.")


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
        if other.draws != first.draws:
            raise UserError(
                f"{first.run} was evaluated with {first.draws} dequantization draws and {other.run} with "
                f"{other.draws}; give --draws to use the same."
            )


def _cells(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table, as text."""
    integers = summaries[0].bits_per_dim is not None
    header = ["run", "kind", "log p(x | y) (nats)" if summaries[0].conditional else "log p (nats)"]
    header += ["bits/dim", "log-mean-exp"] if integers else []
    header += ["± rows", "± draws", "± trace", "± solver", "truncation", "NFE", "parameters", "train s", "eval s"]
    return header, [_row(s, integers=integers) for s in summaries]


def _row(s: Summary, *, integers: bool) -> list[str]:
    cells = [s.run, s.kind, f"{s.log_prob_nats:.3f} ± {s.error_nats:.3f}"]
    if integers:
        tighter = s.bits_per_dim_log_mean_exp
        cells += [f"{s.bits_per_dim:.4f} ± {s.bits_per_dim_error:.4f}", "-" if tighter is None else f"{tighter:.4f}"]
    cells += [f"{s.sampling_error_nats:.4f}", known(s.dequantization_error_nats), known(s.trace_error_nats)]
    cells += [f"{s.solver_error_nats:.4f}", f"{s.truncation_nats:+.4f}", f"{s.nfe:.0f}", f"{s.parameters:,}"]
    return [*cells, f"{s.train_seconds:.0f}", f"{s.seconds:.0f}"]


def _write(
    comparison: Comparison,
    runs: Sequence[Run],
    log_prob: Sequence[Array],
    *,
    data_root: str | Path | None,
    device: str,
) -> None:
    rows = [asdict(s) for s in comparison.summaries]
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    samples = _samples(runs, data_root=data_root, device=device)
    figures = {"samples.png": samples, "likelihoods.png": likelihood_figure(comparison.summaries, log_prob)}
    folder = comparison.folder
    for name, figure in figures.items():
        write_atomic(folder / name, png(figure))
    differences = [asdict(d) for d in comparison.differences]
    write_json(folder / "comparison.json", {"runs": rows, "paired_differences": differences})
    write_atomic(folder / "comparison.md", comparison.markdown().encode())
    write_atomic(folder / "comparison.csv", table.getvalue().encode())


def _samples(runs: Sequence[Run], *, data_root: str | Path | None, device: str) -> Figure:
    """Draws of each run beside its test data."""
    dataset = runs[0].load_data(None if data_root is None else Path(data_root))
    count = 64 if dataset.image_shape is not None else 4000
    samples = {"test data": dataset.test[:count].double().numpy()}
    place = resolve_device(device)
    context = dataset.context("test")
    context = None if context is None else context[:count].to(place)
    for run in runs:
        generator = torch.Generator(place).manual_seed(SAMPLE_SEED)
        rows = count if context is None else len(context)
        drawn = load_run(run.path, device=place).sample((rows,), context=context, generator=generator)
        samples[run.name] = drawn.double().cpu().numpy()
    return sample_figure(samples, image_shape=dataset.image_shape, bins=dataset.bins, title=f"Samples: {dataset.name}")
