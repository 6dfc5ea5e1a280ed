"""Rows that stay in their files: the training and the likelihoods of the same rows in memory, at constant memory."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from experiment import evaluate
from experiment.building.builder import load_data
from experiment.config import Config, parse_config
from experiment.data.order import FeistelOrder
from experiment.likelihood.evaluation import saved_log_prob
from experiment.run import Run
from experiment.training import trainer
from experiment.training.checkpoint import load_checkpoint
from experiment.training.engine import train
from experiment.training.trainer import Trainer

ROWS = 200


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The same rows as one file and as three."""
    x = np.random.default_rng(0).normal(size=(ROWS, 3)) * [1, 100, 1e-3] + [1000, 0, 5]
    np.save(tmp_path / "whole.npy", x)
    (tmp_path / "events").mkdir()
    for i, part in enumerate(np.split(x, [40, 150])):
        np.save(tmp_path / "events" / f"rows-{i:05d}.npy", part)
    return tmp_path


def config(path: str, normalization: str = "actnorm") -> Config:
    table = {
        "data": {"kind": "table", "path": path, "seed": 1},
        "preprocessing": {"kind": "none", "standardize": True},
        "model": {"kind": "maf", "layers": 2, "hidden": [8], "normalization": normalization},
        "train": {"steps": 30, "batch_size": 32, "validate_every": 10, "validation_draws": 3},
    }
    return parse_config(table, source="test")


def results(run: Run) -> tuple[dict[str, torch.Tensor], list[dict[str, object]]]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return load_checkpoint(run.last)["model"], [{k: v for k, v in x.items() if k != "seconds"} for x in lines]


@pytest.mark.parametrize("normalization", ["actnorm", "batch"])
def test_training_and_likelihoods_are_bit_for_bit_those_in_memory(root: Path, normalization: str) -> None:
    """Batch normalization takes its statistics from all training rows."""
    runs = [
        train(config(path, normalization), root / f"run-{path}", data_root=root, threads=1, device="cpu")
        for path in ("whole.npy", "events")
    ]
    (weights, log), (same_weights, same_log) = map(results, runs)
    assert weights.keys() == same_weights.keys()
    assert all(torch.equal(weights[key], same_weights[key]) for key in weights)
    assert log == same_log
    summaries = [evaluate(run.path, threads=1) for run in runs]
    assert summaries[0].log_prob_nats == summaries[1].log_prob_nats
    assert summaries[0].data_fingerprint == summaries[1].data_fingerprint
    np.testing.assert_array_equal(saved_log_prob(runs[0]), saved_log_prob(runs[1]))


def batches(asked: Config, root: Path, steps: int, *, first: int = 0) -> list[list[list[float]]]:
    made = Trainer(asked, load_data(asked.data, root), device=torch.device("cpu"))
    found = []
    for step in range(first, steps):
        found.append(made._batch(step)[0].tolist())
    return found


def test_beyond_what_is_held_every_row_comes_once_an_epoch_and_a_training_goes_on_where_it_was(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "MOST_HELD", 50)
    asked = config("events")
    epoch = 160 // 32
    found = batches(asked, root, 2 * epoch)
    for part in (found[:epoch], found[epoch:]):
        assert Counter(tuple(row) for batch in part for row in batch).most_common(1)[0][1] == 1
        assert sum(map(len, part)) == 160
    assert found[:epoch] != found[epoch:], "another order in each epoch"
    assert batches(asked, root, 2 * epoch, first=7) == found[7:]
    other = asked.model_copy(update={"seed": 1})
    assert batches(other, root, epoch) != found[:epoch]


def test_rows_in_memory_keep_their_order_however_many_they_are(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "MOST_HELD", 50)
    for path, kind in (("whole.npy", torch.Tensor), ("events", FeistelOrder)):
        made = Trainer(config(path), load_data(config(path).data, root), device=torch.device("cpu"))
        made._batch(0)
        assert isinstance(made._order, kind)
    order = torch.randperm(160, generator=torch.Generator().manual_seed(1_000_003))
    data = load_data(config("whole.npy").data, root)
    assert batches(config("whole.npy"), root, 1)[0] == data.train[order[:32]].tolist()


def test_the_standardization_is_that_of_float64(root: Path) -> None:
    """A mean a million times its deviation: sums of float32 would lose it."""
    x = np.random.default_rng(1).normal(size=(100_000, 2)) * [1, 1e-2] + [0, 1e4]
    np.save(root / "events" / "far.npy", x)
    asked = config("events/far*")
    data = load_data(asked.data, root)
    scaling = Trainer(asked, data, device=torch.device("cpu")).built.model.bijection.bijections[0]
    rows = data.train.double()
    torch.testing.assert_close(scaling.loc.double(), rows.mean(0), rtol=6e-8, atol=1e-9)
    torch.testing.assert_close(scaling.scale.double(), rows.std(0), rtol=6e-8, atol=0)


MEASURE = """
import sys, threading, time
from pathlib import Path
from experiment import evaluate, train
from experiment.config import parse_config

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

peak, root = 0.0, Path(sys.argv[1])
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.005)

data = {"kind": "table", "path": sys.argv[2], "mapped": sys.argv[3] == "mapped", "validation": 5000, "test": 5000}
config = parse_config({
    "data": data,
    "preprocessing": {"kind": "none", "standardize": True},
    "model": {"kind": "real_nvp", "layers": 2, "hidden": [8]},
    "train": {"steps": 20, "batch_size": 256, "validate_every": 10},
}, source="test")
threading.Thread(target=watch, daemon=True).start()
run = train(config, root / sys.argv[3] / sys.argv[2], data_root=root, threads=1, device="cpu")
evaluate(run.path, threads=1)
print(peak)
"""


def peak_mib(root: Path, name: str, how: str) -> float:
    """Largest anonymous memory of a process that trains and evaluates, MiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(root), name, how], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Ten times the rows, 28 MiB more: of rows in memory every copy counts, of mapped ones none."""
    for rows in (50_000, 500_000):
        x = np.random.default_rng(0).normal(size=(rows, 16)).astype(np.float32)
        np.save(tmp_path / f"rows{rows}.npy", x)
    few, many = (peak_mib(tmp_path, f"rows{rows}.npy", "mapped") for rows in (50_000, 500_000))
    assert many - few < 10  # 4 of them the order, which is held of so few rows
    assert peak_mib(tmp_path, "rows500000.npy", "held") - few > 60
