"""How unlikely rows of other data are under a trained run: scores, p-values, and what tells them from test rows."""

import csv
import io
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core import AtContext, DensityModel, MixtureOfDensities
from experiment.data import Dataset
from experiment.device import resolve_device
from experiment.distributed.ranks import ALONE, Ranks
from experiment.errors import UserError
from experiment.files import write_atomic, write_json
from experiment.likelihood.budget import Array
from experiment.likelihood.evaluation import asked_draws, check_options, likelihoods, load_density, noise_draws
from experiment.other_data import detection
from experiment.other_data.other_rows import other_rows
from experiment.plots import anomaly_figure, png
from experiment.run import open_run
from experiment.threads import set_threads

RATE = 0.05
SETS = ("test", "validation", "other")
COLUMNS = ("set", "row", "score_nats", "error_nats", "typicality_nats", "p_value", "typicality_p_value", "discovery")
DRAWS_APART = 1_000_000  # so that no two sets share their noise
SELECTION_SEED = 50_000_000
CAVEAT = (
    "a density can find other data likelier than its own, as models of Fashion-MNIST do with MNIST (Nalisnick et al., "
    "2019): look at both statistics, of which the untypical counts either tail, and at the histograms."
)


@dataclass(frozen=True)
class Anomalies:
    """What `anomalies` found and wrote; scores are -log p in nats.

    Attributes:
        run: name of the run.
        data: name of its data.
        other: name of the other rows.
        test_rows: number of rows of its test split.
        validation_rows: of its validation split, which give the p-values.
        other_rows: of the others.
        kind: exact, estimate or bound.
        draws: of the noise of integer data, over which a score is the mean.
        rate: level of the p-values and false discovery rate.
        test_mean_nats: mean score of test rows.
        validation_mean_nats: of validation rows, the estimate of the entropy.
        other_mean_nats: of the others; None where one of them has density 0.
        median_error_nats: of a score, from draws, probes and solver; None where a single draw or probe cannot tell.
        unlikely: by the score.
        untypical: by its distance from the entropy.
        notes: sentences on what the numbers do not show.
        folder: where scores and figure lie.
    """

    run: str
    data: str
    other: str
    test_rows: int
    validation_rows: int
    other_rows: int
    kind: str
    draws: int
    rate: float
    test_mean_nats: float
    validation_mean_nats: float
    other_mean_nats: float | None
    median_error_nats: float | None
    unlikely: detection.Detection
    untypical: detection.Detection
    notes: list[str] = field(default_factory=list)
    folder: str = ""

    def text(self) -> str:
        """What was found in a few lines."""
        mean = "infinity" if self.other_mean_nats is None else f"{self.other_mean_nats:.3f}"
        error = "unknown" if self.median_error_nats is None else f"{self.median_error_nats:.4f}"
        u, t, rate = self.unlikely, self.untypical, f"{self.rate:g}"
        return "\n".join(
            [
                f"{self.run}: {self.other_rows} rows of {self.other} against {self.test_rows} test rows of {self.data}",
                f"  -log p in nats ({self.kind}, {self.draws} draw(s)): mean {self.test_mean_nats:.3f} of test rows, "
                f"{mean} of the others; error of a row {error} in the median",
                f"  unlikely  (large -log p):       {u.text()}",
                f"  untypical (far from its mean):  {t.text()}",
                f"  p-values from {self.validation_rows} validation rows, unlikely/untypical: p ≤ {rate} of "
                f"{u.test_share:.1%}/{t.test_share:.1%} of test rows (that or more by chance "
                f"{u.test_chance:.2g}/{t.test_chance:.2g}) and of {u.other_share:.1%}/{t.other_share:.1%} of others",
                f"  {u.discoveries}/{t.discoveries} of the others stand out at a false discovery rate of {rate}",
                *(f"  note: {note}" for note in self.notes),
                f"  scores and p-values of each row: {self.folder}",
            ]
        )


@dataclass(frozen=True)
class _Scored:
    """One set of rows: scores, errors and places, `(rows,)`."""

    score: Array
    error: Array
    places: Array


def anomalies(
    run: str | Path,
    data: str | Path,
    *,
    rate: float = RATE,
    rows: int | None = None,
    draws: int | None = None,
    data_root: str | Path | None = None,
    device: str = "cpu",
    threads: int = 0,
    progress_bar: bool = False,
    ranks: Ranks = ALONE,
) -> Anomalies:
    """Scores other rows under a trained run by -log p and writes `anomalies_<data>.{csv,json,png}` into its folder.

    A p-value is conformal: from the scores of the validation rows, which the model was not fitted to. A run with labels
    is asked for p(x) = Σ_y p(y) p(x | y), p(y) the frequencies of the classes in training.

    Checked by tests/experiment/other_data/test_anomaly.py.

    Args:
        run: the run folder.
        data: a config file, of whose `[data]` the test split counts, or rows: a .csv, .npy, .npz or .parquet file with
            the run's columns or the shape of its rows, or a folder of images. They go through the run's preprocessing.
        rate: level of the p-values, and false discovery rate.
        rows: at most so many of each set, drawn at random; all where omitted.
        draws: dequantization draws a row; the run's config's where omitted.
        data_root: folder of the data files, where it moved since training.
        device: where to compute.
        threads: CPU threads, 0 to choose by the size of the model.
        progress_bar: show progress on the terminal.
        ranks: the processes that share the batches, as in `evaluate`; the first one writes.

    Returns:
        What was found.

    Raises:
        UserError: no run, no rows, or rows that the run cannot take.
        NumericalError: a likelihood that is not a number; it names the row.
    """
    detection.check_rate(rate)
    check_options(draws=draws, solver_share=None, audit_rows=0)
    if rows is not None and rows < 1:
        raise UserError(f"--rows must be 1 or more, but is {rows}.")
    folder, place = open_run(run), ranks.place(resolve_device(device))
    root = None if data_root is None else Path(data_root)
    dataset = folder.load_data(root)
    other = other_rows(Path(data), folder, dataset, root=root or Path(folder.environment["data_root"]))
    model = load_density(folder, device=place)
    model = marginal(model, dataset).to(place).eval()
    set_threads(threads, model)
    count = noise_draws(model, dataset, asked_draws(folder, draws))
    sources = {
        "test": (dataset.test, torch.arange(len(dataset.test))),
        "validation": (dataset.validation, torch.arange(len(dataset.validation))),
        "other": (other.x, other.places),
    }
    found = {}
    for i, name in enumerate(SETS):
        x, places = _some(*sources[name], rows)
        arrays, kind = likelihoods(
            model,
            x,
            count,
            first_draw=DRAWS_APART * i,
            finite=name != "other",
            what=f"{name} row",
            run=folder.name,
            progress_bar=progress_bar,
            ranks=ranks,
        )
        found[name] = _Scored(-arrays["log_prob"].mean(0), _errors(arrays), places.numpy())
    stem = folder.path / ("anomalies_" + re.sub(r"[^\w-]+", "_", other.name))
    names = {"run": folder.name, "data": dataset.name, "other": other.name}
    result = _judged(found, rate, **names, kind=kind, draws=count, stem=stem)
    if ranks.first:
        _write(stem, found, result)
    return result


def marginal(model: DensityModel, dataset: Dataset) -> DensityModel:
    """p(x) = Σ_y p(y) p(x | y) with the frequencies of the training rows' classes; the model itself without labels."""
    if dataset.labels is None:
        return model
    frequencies = torch.bincount(dataset.labels.train, minlength=dataset.classes).float()
    return MixtureOfDensities([AtContext(model, y) for y in torch.eye(dataset.classes)], frequencies)


def _some(x: Tensor, places: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """At most so many rows, in order."""
    if most is None or most >= len(x):
        return x, places
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SELECTION_SEED))
    chosen = order[:most].sort().values
    return x[chosen], places[chosen]


def _errors(arrays: dict[str, Array]) -> Array:
    """Error of the mean over draws, probes within it, and of the solver; NaN where it is unknown."""
    log_prob, solver = arrays["log_prob"], arrays["solver_error"].mean(0)
    n = len(log_prob)
    if n == 1:
        return np.hypot(arrays["std_error"][0], solver)
    spread = np.where(np.isfinite(log_prob), log_prob, math.nan).std(0, ddof=1)
    return np.hypot(spread / math.sqrt(n), solver)


def _judged(
    found: dict[str, _Scored], rate: float, *, run: str, data: str, other: str, kind: str, draws: int, stem: Path
) -> Anomalies:
    s = {name: scored.score for name, scored in found.items()}
    unlikely, untypical = detection.both_statistics(s["test"], s["other"], s["validation"], rate=rate)
    mean = float(s["other"].mean())
    error = float(np.median(np.concatenate([scored.error for scored in found.values()])))
    return Anomalies(
        run=run,
        data=data,
        other=other,
        test_rows=len(s["test"]),
        validation_rows=len(s["validation"]),
        other_rows=len(s["other"]),
        kind=kind,
        draws=draws,
        rate=rate,
        test_mean_nats=float(s["test"].mean()),
        validation_mean_nats=float(s["validation"].mean()),
        other_mean_nats=mean if math.isfinite(mean) else None,
        median_error_nats=error if math.isfinite(error) else None,
        unlikely=unlikely,
        untypical=untypical,
        notes=_notes(unlikely, rate, len(s["validation"])),
        folder=f"{stem}.csv",
    )


def _notes(unlikely: detection.Detection, rate: float, held_out: int) -> list[str]:
    notes = [CAVEAT]
    if unlikely.area_error is not None and unlikely.area + 2 * unlikely.area_error < 0.5:
        notes.append("here the others are likelier than test rows: -log p does not find them, nor do its p-values.")
    if unlikely.test_chance < 0.01:
        notes.append(
            f"test rows have p ≤ {rate:g} more often than rows of one law would: validation rows are too likely, as "
            "where the weights were chosen on few of them, or the two splits differ; p-values are too small."
        )
    if rate * (held_out + 1) < 1:
        notes.append(f"{held_out} validation rows give no p-value below {1 / (held_out + 1):.2g}.")
    return notes


def _write(stem: Path, found: dict[str, _Scored], result: Anomalies) -> None:
    held_out = found["validation"].score
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, scored in found.items():
        far = detection.typicality(scored.score, held_out)
        p = detection.conformal_p_values(scored.score, held_out)
        typical_p = detection.typicality_p_values(scored.score, held_out)
        stands_out = detection.discoveries(p, rate=result.rate)
        columns = (scored.places, scored.score, scored.error, far, p, typical_p, stands_out)
        for place, *numbers, stands in zip(*columns, strict=True):
            told = [f"{number:.8g}" for number in numbers]
            # A validation row has no p-value among the validation rows, and a test row is nothing to discover.
            told = [*told[:3], "", ""] if name == "validation" else told
            writer.writerow([name, place, *told, int(stands) if name == "other" else ""])
    write_atomic(Path(f"{stem}.csv"), text.getvalue().encode())
    write_json(Path(f"{stem}.json"), asdict(result))
    scores = {result.data: found["test"].score, result.other: found["other"].score}
    write_atomic(Path(f"{stem}.png"), png(anomaly_figure(scores, held_out, run=result.run)))
