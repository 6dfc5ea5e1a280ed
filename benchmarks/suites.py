"""Results of suites: what `compare.py configs/suites/<name>.toml --out runs/suites/<name>` trains, a row a model."""

import json
from statistics import mean, median
from typing import Any

from benchmarks.record import DATA, RUNS
from experiment.comparison.published import published
from experiment.comparison.suite import run_suite
from experiment.threads import available_cores

KEPT = (
    "log_prob_nats",
    "bits_per_dim",
    "bits_per_dim_error",
    "entropy_nats",
    "train_seconds",
    "seconds",
    "rank",
    "tied",
)

Row = dict[str, Any]


def measure_suite(name: str, *, counterparts: dict[str, str] | None = None) -> tuple[Row, list[Row]]:
    """Trains and compares what is missing of a suite; `counterparts` names models of papers by ours."""
    path, out, jobs = f"configs/suites/{name}.toml", RUNS.parent / "suites" / name, available_cores()
    run_suite(path, out, jobs=jobs, data_root=DATA, progress_bar=True)
    found = json.loads((out / "suite.json").read_text())
    return {"suite": path, "jobs": jobs}, [row(model, of, counterparts or {}) for model, of in found.items()]


def row(model: str, found: dict[str, list[Row]], counterparts: dict[str, str]) -> Row:
    """A model on every data set of a suite, of the first seed."""
    of = {name: several[0] for name, several in found.items()}
    first = next(iter(of.values()))
    printed = {p.model: p for p in published(first["data"])}.get(counterparts.get(model, ""))
    return {
        "model": model,
        "kind": first["kind"],
        "parameters": first["parameters"],
        "train_seconds": median(s["train_seconds"] for s in of.values()),
        "evaluation_seconds": median(s["seconds"] for s in of.values()),
        "mean_rank": mean(s["rank"] for s in of.values()),
        "found": {name: {**{key: s[key] for key in KEPT}, "error_nats": error(s)} for name, s in of.items()},
        "published": None if printed is None else {"model": printed.model, "value": printed.value},
    }


def error(summary: Row) -> float:
    """Standard error and solver error in quadrature."""
    return float((summary["sampling_error_nats"] ** 2 + summary["solver_error_nats"] ** 2) ** 0.5)
