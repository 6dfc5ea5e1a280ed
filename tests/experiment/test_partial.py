"""An evaluation that is killed goes on behind the batches that it had done."""

import numpy as np
import pytest

from experiment import partial
from experiment.partial import Partial


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
