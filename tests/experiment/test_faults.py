"""What `benchmarks/faults.py` does many times, here a few: killed, damaged, disk full, and the same bits at the end."""

import random

import pytest

from benchmarks import faults
from experiment.comparison import figures, page
from experiment.likelihood import partial
from experiment.training import engine

STEPS = 400


@pytest.fixture(autouse=True)
def period(monkeypatch):
    for module, name in ((engine, "CHECKPOINT_SECONDS"), (partial, "SECONDS")):
        monkeypatch.setattr(module, name, getattr(module, name))  # set back afterwards


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return {name: faults.trained(name, folder / name, 0.05, STEPS) for name in faults.MODELS}


@pytest.mark.slow
@pytest.mark.parametrize("model", faults.MODELS)
def test_killed_at_random_moments(tmp_path, whole, model):
    found = faults.killed(model, tmp_path / "run", whole[model], times=4, steps=STEPS, longest=0.1)
    assert found["in_training"] >= 1


@pytest.mark.slow
def test_a_suite_killed_at_random_moments(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "png", lambda figure: b"")  # of the two that are not killed
    monkeypatch.setattr(figures, "SIDE", 20)
    assert faults.killed_suite(tmp_path / "suite", times=2, steps=200)["in_work"] >= 1


@pytest.mark.parametrize("damage", [faults.flip, faults.cut])
def test_damaged_at_random_places(tmp_path, whole, damage):
    found = faults.damaged("damage", damage, tmp_path / "run", whole["flow"], times=40)
    assert found["steps_lost"] >= 1


@pytest.mark.slow
def test_a_full_disk(tmp_path, whole):
    found = faults.full_disk(tmp_path / "run", whole["flow"], times=2, steps=STEPS)
    assert found["refused"] == 2


@pytest.mark.slow
def test_a_second_process(tmp_path):
    assert faults.second_process(tmp_path / "run", times=2)["refused"] == 2


def test_damage_damages():
    places = random.Random(0)
    for damage in (faults.flip, faults.cut):
        assert all(damage(b"0123456789", places) != b"0123456789" for _ in range(100))


def test_other_weights_or_lines_are_noticed(tmp_path, whole):
    other = faults.trained("flow", tmp_path / "shorter", 0.05, STEPS - 1)
    with pytest.raises(RuntimeError, match="ended with other values in model"):
        faults._check_same(whole["flow"], other)
    lines = (whole["score"] / "metrics.jsonl").read_text()
    (whole["score"] / "metrics.jsonl").write_text(lines.split("\n", 1)[1])
    with pytest.raises(RuntimeError, match="other lines of metrics"):
        faults._check_same(faults.trained("score", tmp_path / "again", 0.05, STEPS), whole["score"])
    (whole["score"] / "metrics.jsonl").write_text(lines)
