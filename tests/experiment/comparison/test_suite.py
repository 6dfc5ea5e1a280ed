"""Suites: what they ask for, that they go on, and what they collect."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiment.comparison import contenders, figures, page
from experiment.comparison.suite import is_suite, read_suite, run_suite
from experiment.errors import UserError
from experiment.likelihood import normalization_check

ROOT = Path(__file__).parents[3]
SUITES = sorted((ROOT / "configs/suites").glob("*.toml"))
MODEL = '[data]\nkind = "digits"\n[model]\nkind = "{kind}"\nhidden = [8]\n[train]\nsteps = 2\nbatch_size = 64\n'
SUITE = """
seeds = [0, 7]

[data.moons]
kind = "toy"
name = "moons"
train_rows = 300
validation_rows = 50
test_rows = 200

[data.rings]
kind = "toy"
name = "rings"
train_rows = 300
validation_rows = 50
test_rows = 200

[models.flow]
config = "{folder}/real_nvp.toml"
set = {{ "model.layers" = 2, "train.steps" = 3 }}

[models.flow.on.rings]
"train.steps" = 4

[models.nice]
config = "{folder}/nice.toml"
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(normalization_check.POINTS, 2, 49)
    monkeypatch.setattr(page, "png", lambda figure: b"")  # what is in it, test_comparison.py looks at
    monkeypatch.setattr(figures, "SIDE", 20)
    monkeypatch.setitem(contenders.SIZES, "gaussian_mixture", {0: {"components": 3}})
    for kind in ("real_nvp", "nice"):
        (tmp_path / f"{kind}.toml").write_text(MODEL.format(kind=kind))
    path = tmp_path / "suite.toml"
    path.write_text(SUITE.format(folder=tmp_path))
    return path


def test_every_data_set_model_and_seed_is_a_run_of_its_own(suite: Path, tmp_path: Path) -> None:
    tasks = read_suite(suite, tmp_path / "out")
    folders = {str(task.folder.relative_to(tmp_path / "out")) for task in tasks}
    names = ("flow", "flow-7", "nice", "nice-7")
    assert folders == {f"{data}/{name}" for data in ("moons", "rings") for name in names}
    steps = {(task.data, task.model): task.config.train.steps for task in tasks}
    assert steps == {("moons", "flow"): 3, ("rings", "flow"): 4, ("moons", "nice"): 2, ("rings", "nice"): 2}
    assert {task.config.seed for task in tasks if task.folder.name.endswith("-7")} == {7}
    assert {task.config.data.name for task in tasks if task.data == "rings"} == {"rings"}


def test_a_suite_is_trained_compared_collected_and_added_to(suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = run_suite(suite, out, samples=50, threads=1)
    assert text == (out / "suite.md").read_text()
    found = json.loads((out / "suite.json").read_text())
    assert set(found) == {"flow", "nice", "gaussian", "gaussian_mixture", "kernel_density"}
    assert len(found["flow"]["moons"]) == 2  # seeds
    assert len(found["gaussian"]["rings"]) == 1
    assert (out / "moons/comparison/comparison.html").is_file()
    line = next(line for line in text.splitlines() if line.startswith("| flow |"))
    gaps = [-s["log_prob_nats"] - s["entropy_nats"] for s in found["flow"]["moons"]]
    assert float(line.split("|")[3].strip("* ").split("±")[0]) == pytest.approx(sum(gaps) / 2, abs=0.006)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("best.ckpt")}
    suite.write_text(suite.read_text() + f'\n[models.more]\nconfig = "{tmp_path}/nice.toml"\n')
    assert "| more |" in run_suite(suite, out, samples=50, threads=1)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_two_processes_train_what_one_does(suite: Path, tmp_path: Path) -> None:
    suite.write_text(re.sub(r"(?s)\[data.rings\].*?\n\n|\[models.flow.on.*?\n\n", "", suite.read_text()))
    texts = [run_suite(suite, tmp_path / f"out{jobs}", jobs=jobs, samples=0, threads=1) for jobs in (1, 2)]
    values = [[line.split("|")[2:9] for line in text.splitlines() if line.startswith("| flow")] for text in texts]
    assert values[0] == values[1]


def test_processes_of_torchrun_share_the_trainings(suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "compare.py"]
    options = [suite, "--out", out, "--threads", "1", "--samples", "0", "--no-baselines", "--quiet", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, *map(str, options)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert len(list(out.rglob("best.ckpt"))) == 8
    assert done.stdout.count("| flow |") >= 1
    assert (out / "suite.md").is_file()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("sedes = [1]", "'sedes' is none of data, models, seeds"),
        ("seeds = []", "one or more of each"),
        ('[models.bad]\nconfg = "x.toml"', "models.bad has 'confg'"),
        ("[models.bad]\nset = {}", "models.bad has no config"),
        ('[models.bad]\nconfig = "{folder}/nice.toml"\nset = {{ "train.stps" = 3 }}', "bad on moons: unknown key"),
    ],
)
def test_a_wrong_suite_is_refused_before_anything_is_trained(suite: Path, tmp_path: Path, line: str, says: str) -> None:
    text = suite.read_text().replace("seeds = [0, 7]\n", "") if line.startswith("seeds") else suite.read_text()
    line = line.format(folder=tmp_path) if "{" in line and "folder" in line else line
    suite.write_text(f"{line}\n{text}" if line.startswith("se") else f"{text}\n{line}\n")
    with pytest.raises(UserError, match=says):
        run_suite(suite, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_the_suites_at_hand_are_right(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert is_suite(path)
    assert len(read_suite(path, tmp_path)) > 1
