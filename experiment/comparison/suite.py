"""Suites: data sets × models × seeds from one file, trained in several processes, compared and collected."""

import math
import multiprocessing
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tqdm import tqdm

from experiment.comparison.compare import Comparison, Entry, compare
from experiment.comparison.tables import markdown
from experiment.config import Config, parse_config, read_toml, set_value
from experiment.distributed.ranks import announced, joined
from experiment.errors import UserError
from experiment.files import write_atomic, write_json
from experiment.likelihood.evaluation import evaluate, saved_summary
from experiment.likelihood.summary import Summary
from experiment.threads import available_cores
from experiment.training.engine import train

KEYS = {"seeds", "data", "models"}


@dataclass(frozen=True)
class Task:
    """One training of a suite.

    Attributes:
        data: name of the data set in the suite.
        model: name of the model in the suite.
        seed: of the training.
        config: the whole experiment.
        folder: of the run.
    """

    data: str
    model: str
    seed: int
    config: Config
    folder: Path


def is_suite(path: Path) -> bool:
    """Whether a TOML file is a suite: it names models in the plural, and no experiment does."""
    return path.suffix == ".toml" and "models" in read_toml(path)


def read_suite(path: str | Path, out: str | Path) -> list[Task]:
    """The trainings that a suite asks for, every config checked.

    A suite has `[data.<name>]`, a `[data]` section each; `[models.<name>]` with `config`, a config file of which all
    but data and seed are taken, and `set`, settings changed in it; and `seeds`, [0] where omitted. Settings of
    `[models.<name>.on.<data>]` hold on that data set alone.

    Args:
        path: the file.
        out: folder of the results; a run goes to `<out>/<data>/<model>`, of further seeds with the seed behind it.

    Raises:
        UserError: a missing part, an unknown key, or a config that is wrong.
    """
    path, table = Path(path), read_toml(Path(path))
    for key in table.keys() - KEYS:
        raise UserError(f"{path}: {key!r} is none of {', '.join(sorted(KEYS))}.")
    seeds, data, models = table.get("seeds", [0]), table.get("data", {}), table.get("models", {})
    if not seeds or not data or not models:
        raise UserError(f"{path}: a suite needs seeds, [data.<name>] and [models.<name>], one or more of each.")
    return [
        Task(
            name,
            model,
            seed,
            _config(path, section, name, models[model], model, seed),
            Path(out) / name / (model if seed == seeds[0] else f"{model}-{seed}"),
        )
        for name, section in data.items()
        for model in models
        for seed in seeds
    ]


def _config(path: Path, data: Mapping[str, Any], name: str, model: Mapping[str, Any], called: str, seed: int) -> Config:
    unknown = next((key for key in model if key not in ("config", "set", "on")), None)
    if unknown is not None or "config" not in model:
        found = f"has {unknown!r}" if unknown is not None else "has no config"
        raise UserError(f"{path}: models.{called} {found}; it takes config, set and on.")
    table = read_toml(Path(model["config"]))
    table["data"], table["seed"] = dict(data), seed
    for settings in (model.get("set", {}), model.get("on", {}).get(name, {})):
        for key, value in settings.items():
            set_value(table, key, value)
    return parse_config(table, source=f"{path}: {called} on {name}")


def run_suite(
    path: str | Path,
    out: str | Path,
    *,
    jobs: int = 1,
    draws: int | None = None,
    samples: int | None = None,
    with_baselines: bool = True,
    data_root: str | Path | None = None,
    device: str = "cpu",
    threads: int = 0,
    progress_bar: bool = False,
) -> str:
    """Trains and evaluates what is missing of a suite, compares on each data set, and collects all in one folder.

    Interrupted it goes on where it was, and models, data sets or seeds that are added to the file later are trained
    alone. Under `torchrun` each process trains a share, and the first one then compares.

    Args:
        path: the suite.
        out: folder of the results: `suite.md` and `suite.json`, and a comparison with its page for each data set.
        jobs: runs trained and evaluated at a time, a process each.
        draws: as of `compare`.
        samples: as of `compare`.
        with_baselines: as of `compare`.
        data_root: folder of the data files.
        device: where to compute.
        threads: CPU threads of each process; 0 for an equal share of the cores, of a single process as in `train`.
        progress_bar: show progress on the terminal.

    Returns:
        The tables, as Markdown; empty in a process of `torchrun` that is not the first.

    Raises:
        UserError: as of `read_suite`, `train` and `compare`.
    """
    if jobs < 1:
        raise UserError(f"--jobs must be 1 or more, but is {jobs}.")
    tasks = read_suite(path, out)
    ranks = announced()
    options = {
        "data_root": Path("data") if data_root is None else Path(data_root),
        "device": device,
        "threads": threads,
    }
    if jobs > 1 and not threads:
        options["threads"] = max(1, available_cores() // jobs)
    _run_all(ranks.share(tasks), jobs, draws=draws, progress_bar=progress_bar, **options)
    with joined(device="cpu"):  # all are done
        pass
    if not ranks.first:
        return ""
    found = {}
    for name in dict.fromkeys(task.data for task in tasks):
        folders = [task.folder for task in tasks if task.data == name]
        found[name] = compare(
            folders,
            Path(out) / name / "comparison",
            draws=draws,
            samples=samples,
            with_baselines=with_baselines,
            data_root=data_root,
            device=device,
            threads=threads,
            progress_bar=progress_bar,
        )
    return _collect(found, tasks, Path(out))


def _run_all(tasks: Sequence[Task], jobs: int, *, draws: int | None, progress_bar: bool, **options: Any) -> None:
    bar = tqdm(total=len(tasks), desc="suite", unit="run", disable=not progress_bar)
    if jobs == 1:
        for task in tasks:
            _run(task, draws, options)
            bar.update()
        return
    # Spawned: a process that was forked would share the threads and locks of torch.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        begun = [pool.submit(_run, task, draws, options) for task in tasks]
        for done in as_completed(begun):
            done.result()
            bar.update()


def _run(task: Task, draws: int | None, options: dict[str, Any]) -> None:
    """Trains and evaluates what is not yet, so that the comparison finds it."""
    run = train(task.config, task.folder, resume=True, **options)
    if saved_summary(run, draws=draws) is None:
        evaluate(run.path, draws=draws, **options)


def _collect(found: dict[str, Comparison], tasks: Sequence[Task], out: Path) -> str:
    """One table over all data sets, and every comparison's own."""
    names = {(task.data, task.folder.name): task.model for task in tasks}
    grouped: dict[str, dict[str, list[Entry]]] = {}
    for name, comparison in found.items():
        for entry in comparison.entries:
            model = names.get((name, entry.summary.run), entry.summary.run)
            grouped.setdefault(model, {}).setdefault(name, []).append(entry)
    grouped = dict(sorted(grouped.items(), key=lambda item: mean_rank(item[1].values())))
    header = ["model", "mean rank", *found]
    rows = [
        [model, f"{mean_rank(of.values()):.1f}", *(_cell(of.get(name, [])) for name in found)]
        for model, of in grouped.items()
    ]
    note = (
        "Distance of test -log p from the entropy of the source in nats, where that is known; else bits/dim of whole "
        "numbers; else test log p in nats. ± one standard error, of several seeds their spread. Bold: of rank 1, no "
        "model being significantly better on these rows."
    )
    text = "\n\n".join([markdown((header, rows)), note, *(f"## {name}\n\n{c.markdown()}" for name, c in found.items())])
    write_atomic(out / "suite.md", text.encode())
    content = {
        model: {
            name: [{**vars(entry.summary), "rank": entry.rank, "tied": entry.tied} for entry in several]
            for name, several in of.items()
        }
        for model, of in grouped.items()
    }
    write_json(out / "suite.json", content)
    return text


def mean_rank(entries: Iterable[Sequence[Entry]]) -> float:
    """Of a model over data sets, each seed counting."""
    return mean(entry.rank for several in entries for entry in several)


def _cell(entries: Sequence[Entry]) -> str:
    if not entries:
        return ""
    values, errors = zip(*(_value(entry.summary) for entry in entries), strict=True)
    error = errors[0] if len(values) == 1 else stdev(values)
    digits = max(0, min(4, 1 - math.floor(math.log10(error)))) if error > 0 else 3
    text = f"{mean(values):.{digits}f} ± {error:.{digits}f}"
    return f"**{text}**" if min(entry.rank for entry in entries) == 1 else text


def _value(s: Summary) -> tuple[float, float]:
    """What a table of suites shows of one model: a distance from the entropy, bits per dimension, or nats."""
    if s.entropy_nats is not None:
        return -s.log_prob_nats - s.entropy_nats, s.error_nats
    if s.bits_per_dim is not None and s.bits_per_dim_error is not None:
        return s.bits_per_dim, s.bits_per_dim_error
    return s.log_prob_nats, s.error_nats
