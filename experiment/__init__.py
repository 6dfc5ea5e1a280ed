"""Top layer: configs, data, training, evaluation and comparison of either side."""

import importlib
import os
from typing import TYPE_CHECKING, Any

# Idle threads sleep instead of spinning: with fewer free cores than threads, steps took 50 times as long.
# OpenMP reads it when torch is loaded, hence before any import of that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from experiment.building.builder import build
    from experiment.comparison.compare import compare
    from experiment.config import load_config
    from experiment.likelihood.evaluation import evaluate
    from experiment.likelihood.own_score import evaluate_score
    from experiment.other_data.anomaly import anomalies
    from experiment.other_data.classification import classify
    from experiment.run import load_run
    from experiment.training.engine import train

__all__ = [
    "anomalies",
    "build",
    "classify",
    "compare",
    "evaluate",
    "evaluate_score",
    "load_config",
    "load_run",
    "train",
]

_PLACES = {
    "anomalies": "other_data.anomaly",
    "build": "building.builder",
    "classify": "other_data.classification",
    "compare": "comparison.compare",
    "evaluate": "likelihood.evaluation",
    "evaluate_score": "likelihood.own_score",
    "load_config": "config",
    "load_run": "run",
    "train": "training.engine",
}


if not TYPE_CHECKING:  # to a type checker any name would be one

    def __getattr__(name: str) -> Any:
        """A public name from its module at its first use: a script's --help need not wait for torch."""
        if name in _PLACES:
            return getattr(importlib.import_module(f"experiment.{_PLACES[name]}"), name)
        raise AttributeError(f"module 'experiment' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
