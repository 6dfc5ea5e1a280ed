"""Files are whole or absent, and a checkpoint that was changed is refused."""

import os
import pickle
import stat

import numpy as np
import pytest
import torch

from experiment.errors import UserError
from experiment.files import (
    load_checkpoint,
    read_json,
    save_checkpoint,
    whole_or_absent,
    write_atomic,
    write_json,
    write_rows,
)

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


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_atomic(path, b"new")
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "a.json", b"")


def test_json_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_written_files_are_readable_by_others(tmp_path):
    write_atomic(tmp_path / "a", b"x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) & 0o400


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_rows_that_come_in_parts_are_one_array(tmp_path, dtype):
    x = np.arange(42).reshape(7, 2, 3).astype(dtype)
    write_rows(tmp_path / "a.npy", x.shape, (x[i : i + 3] for i in range(0, 7, 3)))
    back = np.load(tmp_path / "a.npy")
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, x)
    write_rows(tmp_path / "a.npy", (2, 3, 7), iter([x.transpose(1, 2, 0)]))  # not in the order of memory
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), x.transpose(1, 2, 0))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_text("before")

    def half():
        with whole_or_absent(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        half()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.bin", "before")]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none/a\.npy cannot be written: No such file or directory\.$"):
        write_rows(tmp_path / "none" / "a.npy", (1,), iter([np.zeros(1)]))
