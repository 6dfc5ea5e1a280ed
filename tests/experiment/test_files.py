"""Files are whole or absent."""

import os
import stat

import numpy as np
import pytest

from experiment.errors import UserError
from experiment.files import (
    read_json,
    whole_or_absent,
    write_atomic,
    write_json,
    write_rows,
)


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
