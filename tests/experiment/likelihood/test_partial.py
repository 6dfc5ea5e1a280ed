"""An evaluation that is killed goes on behind the batches that it had done."""

import json

import numpy as np
import pytest

from discrete import Flow
from experiment import evaluate, train
from experiment.config import parse_config
from experiment.likelihood import evaluation, partial
from experiment.likelihood.partial import Partial

CONFIG = {
    "data": {"kind": "digits"},
    "preprocessing": {"kind": "logit"},
    "model": {"kind": "nice", "hidden": [8]},
    "train": {"steps": 2, "batch_size": 32},
}


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(partial, "SECONDS", 0.0)


def found():
    generator = np.random.default_rng(0)
    return [generator.normal(size=(5, rows)) for rows in (3, 3, 1)]


def test_batches_come_back_to_the_bit(tmp_path, at_once):
    batches = found()
    Partial(tmp_path / "a", key="work").keep(batches)
    back = Partial(tmp_path / "a", key="work").load()
    assert len(back) == 3
    for a, b in zip(batches, back, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda x: x[:200], lambda x: x[:100] + b"?" + x[101:], lambda _: b"x"]
)
def test_other_work_or_a_bad_file_is_not_taken(tmp_path, at_once, damage):
    path = tmp_path / "a"
    assert Partial(path, key="work").load() == []
    Partial(path, key="work").keep(found())
    assert Partial(path, key="other work").load() == []
    path.write_bytes(damage(path.read_bytes()))
    assert Partial(path, key="work").load() == []


def test_nothing_is_written_before_its_time_or_without_a_place(tmp_path, at_once, monkeypatch):
    Partial(None, key="").keep(found())
    Partial(None, key="").drop()
    kept = Partial(tmp_path / "a", key="work")
    kept.keep(found())
    kept.drop()
    kept.drop()
    monkeypatch.setattr(partial, "SECONDS", 60.0)
    kept.keep(found())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("draws", [1, 3])
def test_a_stopped_evaluation_goes_on_to_the_same_numbers(tmp_path, at_once, monkeypatch, draws):
    """Batches that were done are not done again, and the arrays are equal to the bit."""
    monkeypatch.setattr("experiment.batches.BATCH_ROWS", 50)
    run = train(parse_config(CONFIG, source="test"), tmp_path / "run", threads=1)
    calls, stop, estimate = [], [None], Flow.estimate_log_prob

    def counted(self, *args, **options):
        calls.append(args)
        if len(calls) == stop[0]:
            raise KeyboardInterrupt
        return estimate(self, *args, **options)

    monkeypatch.setattr(Flow, "estimate_log_prob", counted)
    evaluate(run.path, draws=draws, threads=1)
    whole, summary, count = arrays(run), json.loads((run.path / "evaluation.json").read_text()), len(calls)
    for name in ("evaluation.npz", "evaluation.json"):
        (run.path / name).unlink()
    calls.clear()
    stop[0] = 7  # a batch is two calls, of the flow and of its base
    with pytest.raises(KeyboardInterrupt):
        evaluate(run.path, draws=draws, threads=1)
    assert (run.path / "evaluation-0.part").exists()
    evaluate(run.path, draws=draws, threads=1)
    assert len(calls) - 7 == count - 6  # three batches were kept
    assert not (run.path / "evaluation-0.part").exists()
    for name, values in arrays(run).items():
        np.testing.assert_array_equal(values, whole[name])
    again = json.loads((run.path / "evaluation.json").read_text())
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}


def test_an_evaluation_stopped_after_its_last_batch_still_knows_its_kind(tmp_path, at_once, monkeypatch):
    """The kind is not kept; the last batch, done once more, tells it."""
    run = train(parse_config(CONFIG, source="test"), tmp_path / "run", threads=1)
    kind = evaluate(run.path, draws=1, threads=1).kind
    assert kind == "bound"

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "check", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluate(run.path, draws=1, threads=1)
    left = Partial(run.path / "evaluation-1.part", key="of a second process, which does not come back")
    left.keep(found())
    assert len(list(run.path.glob("*.part"))) == 2
    assert evaluate(run.path, draws=1, threads=1).kind == kind
    assert not list(run.path.glob("*.part"))


def arrays(run):
    with np.load(run.path / "evaluation.npz") as found:
        return dict(found)
