"""Training with `train.compile`: the steps of the other to rounding, and a clear word where no graph can be made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiment.config import parse_config
from experiment.data import Dataset
from experiment.errors import UserError
from experiment.training.trainer import Trainer

TESTS = Path(__file__).parents[2]


@pytest.mark.slow
def test_compiled_steps_are_the_steps() -> None:
    """Normalization starts from the first batch in either, and not again in one that goes on from a checkpoint.

    The trace of a bad value still runs layer by layer.
    """
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(
        [sys.executable, TESTS / "compiled.py"], env=environment, capture_output=True, text=True, check=True
    )
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert found["graphs"] == "1"
    assert float(found["moved"]) > 1e-3
    for name in ("loss", "parameters", "validation", "resumed"):
        assert float(found[name]) < 1e-5
    assert "first out of model" in found["trace"]
    assert "graph of a step" in found["noisy"]
    assert found["noisy"].endswith("leave out train.compile.")


def test_compiled_or_shared_out() -> None:
    sections = {"data": {"kind": "toy", "name": "moons"}, "model": {"kind": "nice"}, "train": {"compile": True}}
    rows = torch.zeros(4, 2)
    with pytest.raises(UserError, match=r"leave out train.compile or --shard"):
        Trainer(
            parse_config(sections, source="test"),
            Dataset("rows", rows, rows, rows),
            device=torch.device("cpu"),
            shard=True,
        )
