"""Top layer: configs, data, training, evaluation and comparison of either side."""

import os

# Idle threads sleep instead of spinning: with fewer free cores than threads, steps took 50 times as long.
# OpenMP reads it when torch is loaded, hence before the imports below.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from experiment.anomaly import anomalies
from experiment.build import build
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
