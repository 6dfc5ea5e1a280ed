"""A checkpoint that was changed, cut short or of another program is refused; nothing in it is executed."""

import hashlib
import os
import pickle
import re
from pathlib import Path

import pytest
import torch

from experiment import load_run, train
from experiment.config import parse_config
from experiment.errors import UserError
from experiment.training.checkpoint import FORMAT, NAME, load_checkpoint, load_newest, save_checkpoint

STATE = {"model": {"w": torch.arange(1000.0)}, "step": 3, "name": "x"}


def test_a_checkpoint_comes_back(tmp_path):
    save_checkpoint(tmp_path / "a.ckpt", STATE)
    back = load_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(back["model"]["w"], STATE["model"]["w"])
    assert back["step"] == 3


@pytest.mark.parametrize("place", [25, 60, 90, 500, -1])
def test_any_flipped_byte_is_noticed(tmp_path, place):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, STATE)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"truncated or was changed|not a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 10, 50, 100, 1000])
def test_a_truncated_file_is_noticed(tmp_path, keep):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, STATE)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=str(path)):
        load_checkpoint(path)


def test_a_pickle_under_the_name_is_never_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "exploded").exists()


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.ckpt does not exist"):
        load_checkpoint(tmp_path / "a.ckpt")


def wrapped(payload: bytes, version: int = FORMAT) -> bytes:
    """A file with the right first line and hash, whatever the rest is."""
    return b"%s%d\n%s\n%s" % (NAME, version, hashlib.sha256(payload).hexdigest().encode(), payload)


def test_a_bomb_with_the_right_hash_is_never_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    torch.save({"model": Bomb()}, tmp_path / "bomb")
    for payload in ((tmp_path / "bomb").read_bytes(), pickle.dumps(Bomb(), protocol=2), b"", b"PK\x03\x04 no archive"):
        (tmp_path / "a.ckpt").write_bytes(wrapped(payload))
        with pytest.raises(UserError, match=r"a\.ckpt holds more than tensors and plain values, or none"):
            load_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "exploded").exists()


def test_the_format_is_checked(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(wrapped(b"", version=FORMAT + 1))
    with pytest.raises(UserError, match=rf"has format {FORMAT + 1}, but this version reads {FORMAT}\.$"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_another_architecture_is_refused(tmp_path):
    runs = [train(asked(width), tmp_path / str(width), threads=1) for width in (8, 16)]
    state = load_checkpoint(runs[0].best)
    save_checkpoint(runs[1].best, {**state, "config_sha256_16": runs[1].environment["config_sha256_16"]})
    with pytest.raises(UserError, match=r"holds another model than .*config\.json names"):
        load_run(runs[1].path)
    runs[1].best.write_bytes(runs[0].best.read_bytes())
    with pytest.raises(UserError, match="belongs to another config"):
        load_run(runs[1].path)


def test_a_replaced_file_is_kept_under_another_name(tmp_path, monkeypatch):
    path, before = tmp_path / "a.ckpt", tmp_path / "before.ckpt"

    def steps():
        return [load_checkpoint(p)["step"] for p in (path, before)]

    save_checkpoint(path, {"step": 1}, keep=before)
    assert not before.exists()
    save_checkpoint(path, {"step": 2}, keep=before)
    assert steps() == [2, 1]
    save_checkpoint(path, {"step": 3}, keep=before)
    assert steps() == [3, 2]

    def refused(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)  # a file system without links
    save_checkpoint(path, {"step": 4}, keep=before)
    assert steps() == [4, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ckpt", "before.ckpt"]


def test_the_newest_that_is_whole(tmp_path):
    new, old = tmp_path / "new.ckpt", tmp_path / "old.ckpt"
    save_checkpoint(new, {"step": 2})
    save_checkpoint(old, {"step": 1})
    assert load_newest([new, old]) == (new, {"step": 2})
    new.write_bytes(new.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"new\.ckpt is truncated or was changed.* Going on from .*old\.ckpt"):
        assert load_newest([new, old]) == (old, {"step": 1})
    old.write_bytes(b"")
    with pytest.raises(UserError, match=r"new\.ckpt is truncated"):
        load_newest([new, old])


def asked(width: int = 8, **settings: int):
    table = {
        "data": {"kind": "toy", "name": "moons", "train_rows": 200, "validation_rows": 50, "test_rows": 50},
        "model": {"kind": "real_nvp", "layers": 2, "hidden": [width]},
        "train": {"steps": 12, "batch_size": 32, "validate_every": 4, "log_every": 3, "ema_decay": 0.9, **settings},
    }
    return parse_config(table, source="test")


def same_weights(a: Path, b: Path) -> bool:
    x, y = load_checkpoint(a)["model"], load_checkpoint(b)["model"]
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_training_goes_on_from_the_last_good_checkpoint(tmp_path, monkeypatch, damage):
    """With the bits of a training that nothing happened to."""
    whole = train(asked(), tmp_path / "whole", threads=1)
    monkeypatch.setattr("experiment.training.engine.CHECKPOINT_SECONDS", -1.0)
    run = train(asked(), tmp_path / "run", threads=1)
    assert [load_checkpoint(p)["progress"]["step"] for p in (run.last, run.previous)] == [12, 11]
    content = bytearray(run.last.read_bytes())
    if damage == "gone":
        run.last.unlink()
    else:
        content[len(content) // 2] ^= 4
        run.last.write_bytes(content if damage == "flipped" else content[:1000])
    if damage == "gone":
        train(asked(), run.path, threads=1, resume=True)
    else:
        with pytest.warns(UserWarning, match=r"last\.ckpt is truncated or was changed.*previous\.ckpt"):
            train(asked(), run.path, threads=1, resume=True)
        assert (run.path / "damaged").exists()
    assert all(same_weights(getattr(whole, name), getattr(run, name)) for name in ("last", "best"))
    assert load_checkpoint(run.previous)["progress"]["step"] == 11  # and not the bad one


def test_damaged_best_weights_give_way_to_those_of_now(tmp_path):
    run = train(asked(), tmp_path / "run", threads=1)
    averaged = load_checkpoint(run.last)["ema"]
    run.best.write_bytes(run.best.read_bytes()[:-10])
    with pytest.raises(UserError, match=re.escape("best.ckpt is truncated")):
        load_run(run.path)
    with pytest.warns(UserWarning, match="averaged weights of step 12 take the place of the best"):
        train(asked(), run.path, threads=1, resume=True)
    for name, value in load_run(run.path).state_dict().items():
        assert torch.equal(value, averaged[name])
