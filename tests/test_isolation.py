"""Nothing goes over a network, and what lies below `experiment` reads no setting of ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Every event of a socket, and every name that is looked up in the environment, on a line of their own.
WATCH = """
import os, sys
told = set()
def hook(event, args):
    if event.startswith("socket."):
        told.add(event)
sys.addaudithook(hook)
look = os._Environ.__getitem__
def looked(self, name):
    told.add(f"environment {name}")
    return look(self, name)
os._Environ.__getitem__ = looked
"""
TELL = "\nprint('told:', *sorted(told), sep='\\n', file=sys.stderr)"
TRAINING = """
from experiment import train
from experiment.config import parse_config
train(parse_config({
    "data": {"kind": "toy", "name": "moons", "train_rows": 200, "validation_rows": 50, "test_rows": 50},
    "model": {"kind": "real_nvp", "layers": 2, "hidden": [8]},
    "train": {"steps": 4, "batch_size": 64, "validate_every": 2},
}, source="here"), "run")
"""


def told(code: str, folder: Path = ROOT) -> set[str]:
    """What a new interpreter did on the way through the code."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", WATCH + code + TELL]
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("told:\n")[2].splitlines())


def sockets(events: set[str]) -> set[str]:
    return {event for event in events if event.startswith("socket.")}


@pytest.mark.parametrize("package", ["core", "discrete", "cflows"])
def test_a_library_opens_no_socket_and_reads_no_setting(package: str) -> None:
    found = told(f"import {package}")
    assert not sockets(found)
    assert not {event for event in found if "cflows" in event.lower()}


@pytest.mark.parametrize("package", ["core", "discrete", "cflows"])
def test_no_line_of_a_library_asks_the_environment(package: str) -> None:
    """Not in a function either."""
    for path in (ROOT / package).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "environ" not in text, path
        assert "getenv" not in text, path


def test_the_top_layer_opens_no_socket() -> None:
    code = "import experiment\nfor name in experiment.__all__: getattr(experiment, name)"
    assert not sockets(told(code))


def test_a_training_opens_no_socket(tmp_path: Path) -> None:
    assert not sockets(told(TRAINING, tmp_path))
    assert any((tmp_path / "run").iterdir()), "nothing was trained"


def test_what_is_watched_is_seen() -> None:
    seen = told("import socket\nsocket.socket().close()\nos.environ.get('CFLOWS_DATA_ROOT')")
    assert "socket.__new__" in seen
    assert "environment CFLOWS_DATA_ROOT" in seen
