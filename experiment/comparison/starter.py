"""Models for a table that nobody wrote a config for: what of the file has a density, and configs sized to it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from experiment.comparison import tables
from experiment.comparison.compare import Comparison, compare
from experiment.comparison.contenders import Options
from experiment.config import Config, load_config, parse_config
from experiment.data.dataset import column_name
from experiment.data.spread import resolution
from experiment.data.table import Array, first_places, read_columns, suffix_of
from experiment.data.table_files import Text
from experiment.data.uci_small import independent
from experiment.errors import UserError
from experiment.files import write_atomic
from experiment.run import RUNS, first_difference

FEWEST = 50  # rows
MOST_HELD_OUT = 4000  # rows of validation and of test: a likelihood by an ODE costs milliseconds a row
BATCH = 256
VALIDATIONS = 20
COUNTS = 0.99  # share of equal steps from which on a column counts the rows
FEW_VALUES = 20  # rows a value from which on a column is said to be spread
# Milliseconds a training step of BATCH rows on one core: with no column, and more for each.
COST = {"nsf": (12.0, 0.5), "gaussianization": (10.0, 0.7), "flow_matching": (8.0, 0.05)}
SHARE = 0.2  # of the time for each of the three; the rest goes to baselines, likelihoods and draws


@dataclass(frozen=True)
class Plan:
    """What is to be fitted to a table.

    Attributes:
        path: the file.
        out: folder of configs, runs and page.
        rows: rows that are used.
        columns: names of the columns that are used.
        sections: the config of each model as it is written, by the name of its run.
        notes: what was left out or changed and why, a sentence each.
        minutes: about how long it takes.
    """

    path: Path
    out: Path
    rows: int
    columns: tuple[str, ...]
    sections: dict[str, dict[str, Any]]
    notes: tuple[str, ...]
    minutes: float

    def text(self) -> str:
        """What is about to happen, for a terminal."""
        names = ", ".join(self.columns[:8]) + (", ..." if len(self.columns) > 8 else "")
        lines = [f"{self.path}: {self.rows} rows, columns {names}"]
        lines += [f"  {note}" for note in self.notes]
        models = ", ".join(self.sections)
        lines.append(f"fits {models} and three baselines into {self.out}, in about {self.minutes:g} minutes or less")
        return "\n".join(lines)

    def compare(self, *others: Path, **options: Any) -> Comparison:
        """Writes the configs, `<model>.toml`, trains each into the folder of its name beside it, and compares the runs.

        Args:
            others: further runs and config files.
            options: keywords of `compare`.

        Raises:
            UserError: a config that is there already and says something else, and as of `compare`.
        """
        configs = {name: self._written(name) for name in self.sections}
        named = {field.name for field in fields(Options)}
        training = Options(**{name: value for name, value in options.items() if name in named})
        runs = [training.train(config, self.out / name, data_root=".").path for name, config in configs.items()]
        return compare([*runs, *others], self.out, **options)

    def report(self, found: Comparison) -> str:
        """Which model is best, and what can be done with it, for a terminal."""
        best = [entry for entry in found.entries if entry.rank == 1]
        names = ", ".join(entry.summary.run for entry in best)
        s = found.summaries[0]
        first = next(iter(self.sections))
        return "\n".join(
            [
                tables.text(tables.brief(tables.cells(found))),
                f"log p in nats: mean over {s.rows} test rows ± standard error, higher is better. These rows do not "
                "tell models apart that share a letter.",
                "",
                f"best: {names}" + (f" (these {s.rows} rows cannot tell which)" if len(best) > 1 else ""),
                f"  the page           {found.folder / 'comparison.html'}",
                f"  score new rows     python evaluate.py {best[0].run.path} --anomalies new_rows.csv",
                f"  draw rows          python sample.py {best[0].run.path} --count 1000",
                f"  add another model  copy {self.out / first}.toml to {self.out}/mine.toml, change it, then: "
                f"python compare.py {self.path} {self.out}/mine.toml",
            ]
        )

    def _written(self, name: str) -> Config:
        """The config of a model, on disk as it is here."""
        path, config = self.out / f"{name}.toml", parse_config(self.sections[name], source=name)
        if not path.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            write_atomic(path, toml(self.sections[name], comment=f"{name} on {self.path.name}").encode())
        there = load_config(path)
        if there != config:
            difference = first_difference(there.model_dump(mode="json"), config.model_dump(mode="json"))
            raise UserError(f"{path} is there already and has {difference}; give another folder with --out.")
        return config


def plan(path: Path, out: Path | None = None, *, minutes: float = 3.0) -> Plan:
    """Three models for the rows of a file, sized by rows and columns, and what of the file they are fitted to.

    Columns are left out that hold text, that lack more than half of their values, or that have no density beside the
    others: constants, counters and linear functions of columns before them. Rows that lack a value or occurred before
    are left out as well. Values that rows share are spread. The same file gives the same plan.

    Checked by tests/experiment/comparison/test_starter.py.

    Args:
        path: a .csv, .csv.gz, .npy, .npz or .parquet file.
        out: folder of the results; `runs/<name of the file>` where omitted.
        minutes: about how long trainings and comparison may take on two cores.

    Raises:
        UserError: no table, or one without enough rows or columns of numbers.
    """
    if not 0 < minutes < 1e4:
        raise UserError(f"--minutes must be above 0, such as 3, but is {minutes:g}.")
    found = _inspected(path)
    stem = path.name[: -len(suffix_of(path))]
    rows, D = found.x.shape
    data = {"kind": "table", "path": str(path.resolve()), **found.settings, **_held_out(rows)}
    models = _models(rows)
    sections = {
        name: {"seed": 0, "data": data, "preprocessing": {"kind": "none", "standardize": True}, "model": model}
        | {"train": _training(name, rows, D, seconds=60 * minutes * SHARE, learning_rate=rate)}
        for name, (model, rate) in models.items()
    }
    return Plan(path, out or RUNS / stem, rows, found.names, sections, tuple(found.notes), minutes)


@dataclass(frozen=True)
class _Found:
    """What of a file is used: names and rows, settings of the data section that say so, and why."""

    names: tuple[str, ...]
    x: Array
    settings: dict[str, Any]
    notes: list[str]


def _inspected(path: Path) -> _Found:
    found = read_columns(path)
    twice = next((name for i, (name, _) in enumerate(found) if name in dict(found[:i])), None)
    if twice is not None:
        raise UserError(f"{path}: two columns are called {twice!r}; give each a name of its own.")
    drop = {name: why for name, column in found if (why := _useless(column))}
    numbers = {name: column for name, column in found if name not in drop and not isinstance(column, Text)}
    x = np.stack([*numbers.values()], 1, dtype=np.float64) if numbers else np.empty((0, 0))
    _check_finite(path, [*numbers], x)
    drop |= _dependent([*numbers], x[_whole(x)])
    names = tuple(name for name in numbers if name not in drop)
    if not names:
        reasons = "; ".join(f"{_title(name)} {why}" for name, why in drop.items())
        raise UserError(f"{path}: no column of numbers is left: {reasons or 'it has none'}.")
    x = x[:, [name in names for name in numbers]]
    settings: dict[str, Any] = {"drop": [*drop]} if drop else {}
    notes = [f"left out column {_title(name)}, which {why}" for name, why in drop.items()]
    x = _without_duplicates(_without_gaps(x, settings, notes), settings, notes)
    _note_ties(names, x, settings, notes)
    if len(x) < FEWEST:
        raise UserError(f"{path}: {len(x)} rows are left, but three models and a test need {FEWEST} or more.")
    return _Found(names, x, settings, notes)


def _whole(x: Array) -> Array:
    """Which rows lack no value."""
    return np.asarray(~np.isnan(x).any(1))


def _dependent(names: Sequence[str], x: Array) -> dict[str, str]:
    """Columns of whole rows that have no density beside those before them, and why."""
    if not len(x):
        return {}
    places = independent(x)
    left = {place: name for place, name in enumerate(names) if place not in places}
    linear = "is a linear function of others before it"
    return {n: linear if np.ptp(x[:, place]) else f"is {x[0, place]:g} in every row" for place, n in left.items()}


def _without_gaps(x: Array, settings: dict[str, Any], notes: list[str]) -> Array:
    whole = _whole(x)
    if whole.all():
        return x
    settings["missing"] = "drop"
    notes.append(f"left out {len(x) - whole.sum()} of {len(x)} rows, which lack a value")
    return x[whole]


def _useless(column: Array | Text) -> str:
    """Why a column has no density of its own; empty where it may."""
    if isinstance(column, Text):
        where = "" if column.row is None else f" in row {column.row}"
        return f"holds {column.value!r}{where}; code it as numbers to keep it"
    if np.isnan(column).mean() > 0.5:
        return f"has a value in {(~np.isnan(column)).sum()} of {len(column)} rows"
    steps = np.diff(column.astype(np.float64))
    if len(steps) > 1 and (middle := np.median(steps)) != 0 and (steps == middle).mean() > COUNTS:
        return "counts the rows"
    return ""


def _title(name: str) -> str:
    return column_name(0, (name,))


def _check_finite(path: Path, names: Sequence[str], x: Array) -> None:
    bad = np.argwhere(np.isinf(x))
    if len(bad):
        row, place = bad[0].tolist()
        raise UserError(
            f"{path}: row {row} holds {x[row, place]} in column {_title(names[place])}; remove the row or fill it in."
        )
    for name, values in zip(names, x.T, strict=True):
        known = values[~np.isnan(values)]
        if len(np.unique(known.astype(np.float32))) < 0.5 * len(np.unique(known)):
            raise UserError(
                f"{path}: column {_title(name)} varies by {np.ptp(known):.3g} around {known.mean():.3g}, more finely "
                "than single precision can tell; subtract a constant from it first."
            )


def _without_duplicates(x: Array, settings: dict[str, Any], notes: list[str]) -> Array:
    """Rows that did not occur before; all of them where they agree by chance: few values, or a single column."""
    first = first_places(x)
    by_chance = x.shape[1] == 1 or max(len(np.unique(values)) for values in x.T) * FEW_VALUES < len(x)
    if len(first) == len(x) or by_chance:
        return x
    settings["duplicates"] = "drop"
    notes.append(f"left out {len(x) - len(first)} rows that occurred before, so that no test row is a training row")
    return x[first]


def _note_ties(names: tuple[str, ...], x: Array, settings: dict[str, Any], notes: list[str]) -> None:
    counts = [len(np.unique(values)) for values in x.T]
    if min(counts) == len(x):
        return
    settings["noise"] = True
    for name, count, gap in zip(names, counts, resolution(x), strict=True):
        if count * FEW_VALUES < len(x):
            notes.append(f"column {_title(name)} has {count} values: uniform noise {gap:.3g} wide makes them a density")


def _held_out(rows: int) -> dict[str, float]:
    """Shares of validation and test."""
    share = round(min(0.2 if rows < 2000 else 0.1, MOST_HELD_OUT / rows), 6)
    return {"validation": share, "test": share}


def _models(rows: int) -> dict[str, tuple[dict[str, Any], float]]:
    """Of both sides and for any number of columns, one too: the section of each model, and a learning rate."""
    few = rows < 1000
    width = 32 if few else 64
    nsf = {"structure": "autoregressive", "layers": 2 if few else 3, "hidden": [width, width], "bins": 4 if few else 8}
    gaussianization = {"layers": 3 if few else 6, "components": 6 if few else 16}
    ode = {"hidden": [64 if few else 128] * 3, "solver": {"rtol": 1e-4, "atol": 1e-4}}
    return {
        "nsf": ({"kind": "nsf", **nsf}, 2e-3),
        "gaussianization": ({"kind": "gaussianization", **gaussianization}, 1e-2),
        "flow_matching": ({"kind": "flow_matching", **ode}, 2e-3),
    }


def _training(name: str, rows: int, D: int, *, seconds: float, learning_rate: float) -> dict[str, Any]:
    """As many steps as the seconds allow, 200 epochs at most; the best validation counts, and six worse ones end it."""
    first, each = COST[name]
    batch = min(BATCH, max(16, rows // 8))
    most = min(1000 * seconds / (first + each * D), 200 * rows / batch)
    steps = max(VALIDATIONS, round(most / VALIDATIONS) * VALIDATIONS)
    return {
        "steps": steps,
        "batch_size": batch,
        "learning_rate": learning_rate,
        "gradient_clip": 10.0,
        "ema_decay": 0.999,
        "validate_every": steps // VALIDATIONS,
        "patience": 6,
        **({"validation_draws": 4} if name == "flow_matching" else {}),
    }


def toml(table: Mapping[str, Any], *, comment: str) -> str:
    """Nested tables of texts, numbers and lists as TOML."""
    return f"# {comment}\n" + "\n".join(_lines(table, ""))


def _lines(table: Mapping[str, Any], name: str) -> list[str]:
    lines = [f"\n[{name}]"] if name else []
    lines += [f"{key} = {json.dumps(v, ensure_ascii=False)}" for key, v in table.items() if not isinstance(v, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{name}.{key}" if name else key)
    return lines
