"""One JSON file a measurement: figures, settings, versions, date, machine."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiment.files import write_json
from experiment.threads import available_cores

DOCS = Path(__file__).parents[1] / "docs"
DATA = Path(os.environ.get("CFLOWS_DATA_ROOT", "data"))
RUNS = Path(__file__).parents[1] / "runs" / "results"
Measure = Callable[[], tuple[dict[str, Any], list[dict[str, Any]]]]


def record(name: str, measure: Measure, *, folder: Path = DOCS / "results") -> None:
    """Runs a measurement, which returns its settings and its rows, and writes `<name>.json` into the folder."""
    started = datetime.datetime.now(datetime.UTC)
    settings, rows = measure()
    seconds = (datetime.datetime.now(datetime.UTC) - started).total_seconds()
    versions = {p: importlib.metadata.version(p) for p in ("torch", "torchdiffeq", "numpy", "scikit-learn")}
    units = torch.backends.cpu.get_cpu_capability()  # a speed is one of the vector units as well
    machine = f"{platform.machine()}, {units}, {available_cores()} CPU cores, {torch.get_num_threads()} torch threads"
    if torch.get_default_device().type == "cuda":
        machine = torch.cuda.get_device_name()
    content = {
        "name": name,
        "date": started.date().isoformat(),
        "machine": machine,
        "versions": {"python": platform.python_version(), **versions},
        "seconds": round(seconds, 1),
        "settings": settings,
        "rows": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", content)
