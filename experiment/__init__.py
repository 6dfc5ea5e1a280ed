"""Top layer: configs, data, training, evaluation and comparison of either side."""

import importlib
import os
from typing import TYPE_CHECKING, Any

# Idle threads sleep instead of spinning: with fewer free cores than threads, steps took 50 times as long.
# OpenMP reads it when torch is loaded, hence before any import of that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from experiment.anomaly import anomalies
    from experiment.builder import build
    from experiment.classification import classify
    from experiment.comparison import compare
    from experiment.config import load_config
    from experiment.engine import train
    from experiment.evaluation import evaluate
    from experiment.own_score import evaluate_score
    from experiment.run import load_run

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
    "anomalies": "anomaly",
    "build": "builder",
    "classify": "classification",
    "compare": "comparison",
    "evaluate": "evaluation",
    "evaluate_score": "own_score",
    "load_config": "config",
    "load_run": "run",
    "train": "engine",
}


if not TYPE_CHECKING:  # to a type checker any name would be one

    def __getattr__(name: str) -> Any:
        """A public name from its module at its first use: a script's --help need not wait for torch."""
        if name in _PLACES:
            return getattr(importlib.import_module(f"experiment.{_PLACES[name]}"), name)
        raise AttributeError(f"module 'experiment' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
