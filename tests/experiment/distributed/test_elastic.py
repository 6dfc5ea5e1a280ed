"""torchrun starts the processes, says what went wrong, and starts them again after one was killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranked
import torch

from experiment.training.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[3]
CONFIG = """
[data]
kind = "toy"
name = "moons"
train_rows = 200
[model]
kind = "real_nvp"
layers = 2
hidden = [8]
dropout = 0.3
[train]
steps = 10
batch_size = 32
validate_every = 5
ema_decay = 0.9
"""
# The script itself, with a checkpoint after each step, and a process that dies once.
KILLED = """
import os, runpy, signal, sys
from pathlib import Path
from experiment.training import engine
from experiment.training.trainer import Trainer

engine.CHECKPOINT_SECONDS = 0.0
step, mark, begun = Trainer.step, Path({mark!r}), []

def dying(self):
    if self.ranks.rank == 0 and not begun:
        begun.append(self.progress.step)
        with mark.with_name("begun").open("a") as file:
            print(self.progress.step, file=file)
    if self.progress.step == 6 and self.ranks.rank == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)

Trainer.step = dying
sys.argv[0] = "train.py"
runpy.run_path({script!r}, run_name="__main__")
"""


def torchrun(*arguments):
    options = ("--standalone", "--nproc-per-node=2", "--max-restarts=3", "--monitor-interval=0.1")
    command = [sys.executable, "-m", "torch.distributed.run", *options, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_the_weights_are_those_of_a_run_without_a_stop(tmp_path):
    config, run, mark = tmp_path / "config.toml", tmp_path / "run", tmp_path / "killed"
    config.write_text(CONFIG)
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(mark=str(mark), script=str(ROOT / "train.py")))
    done = torchrun(script, config, "--run-dir", run, "--resume", "--device", "cpu", "--quiet")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "begun").read_text().split() == ["0", "6"]
    assert done.stdout.count("trained") == 1  # the first process alone
    assert ranked.launch(ranked.train_file, config, tmp_path / "whole")[0] == [0, 0]
    for name in ("last.ckpt", "best.ckpt"):
        a, b = (load_checkpoint(folder / name) for folder in (run, tmp_path / "whole"))
        assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [5, 10, 10]
