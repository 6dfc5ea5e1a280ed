"""Top layer: configs, data, training, evaluation and comparison of either side."""

from experiment.build import build
from experiment.comparison import compare
from experiment.config import load_config
from experiment.engine import train
from experiment.evaluation import evaluate
from experiment.run import load_run

__all__ = ["build", "compare", "evaluate", "load_config", "load_run", "train"]
