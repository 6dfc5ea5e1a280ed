"""One process at a time trains into a run folder."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from experiment import train
from experiment.config import parse_config
from experiment.errors import UserError
from experiment.training.lock import sole_writer

HOLD = "import sys, pathlib; from experiment.training.lock import sole_writer\n"
HOLD += "with sole_writer(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def held(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def asked():
    table = {
        "data": {"kind": "toy", "name": "moons", "train_rows": 200, "validation_rows": 50, "test_rows": 50},
        "model": {"kind": "real_nvp", "layers": 1, "hidden": [4]},
        "train": {"steps": 2, "batch_size": 32},
    }
    return parse_config(table, source="test")


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    with held(tmp_path / "run") as process:
        before = sorted(p.name for p in (tmp_path / "run").iterdir())
        with pytest.raises(UserError, match=r"run is in use by another process that trains into it; wait"):
            train(asked(), tmp_path / "run", threads=1)
        assert sorted(p.name for p in (tmp_path / "run").iterdir()) == before
        process.kill()  # nothing is left to be cleared by hand
        process.wait()
        assert train(asked(), tmp_path / "run", threads=1).best.exists()
    with sole_writer(tmp_path / "run"):
        pass


def write_as_nobody(folder, answer):
    os.setuid(65534)  # the superuser may write anywhere
    try:
        train(asked(), folder / "run", threads=1)
    except UserError as error:
        answer.send(str(error))


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="needs another user to be")
@pytest.mark.parametrize("there", [False, True], ids=["to be made", "there already"])
def test_a_folder_that_is_not_ours_is_a_sentence(there):
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as name:  # one in tmp_path could not even be read
        folder = Path(name)
        folder.chmod(0o755)
        if there:
            (folder / "run").mkdir()
        process = multiprocessing.get_context("fork").Process(target=write_as_nobody, args=(folder, theirs))
        process.start()
        assert ours.poll(60)
        assert ours.recv() == f"run folder {folder / 'run'} cannot be written: Permission denied."
        process.join()
        assert not any((folder / "run").glob("*"))
