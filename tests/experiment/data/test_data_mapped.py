"""Tables in files that are mapped: the rows, the split and the names of the same table in memory; what is refused."""

import errno
import math
import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from experiment.building.builder import load_data
from experiment.data import Dataset, mapped_table, table, table_chunks
from experiment.errors import UserError
from experiment.sections.data import TableData

NAMES = ["height", "weight", "age"]


@pytest.fixture(autouse=True)
def few_values_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file comes in several parts, none of them of one length."""
    monkeypatch.setattr(table_chunks, "VALUES", 21)
    monkeypatch.setattr("experiment.data.mapped.VALUES", 21)


def numbers(rows: int = 100) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, 3))


def shards(folder: Path, suffix: str, x: np.ndarray, cuts: tuple[int, ...] = (10, 53)) -> Path:
    """The rows in several files: plain or with names, and of row groups of 11 rows."""
    folder.mkdir()
    for i, part in enumerate(np.split(x, cuts)):
        path = folder / f"rows-{i:05d}{suffix.removeprefix('records')}"
        if suffix == ".npy":
            np.save(path, part)
        elif suffix == "records.npy":
            np.save(path, np.rec.fromarrays(part.T, names=NAMES))
        else:
            columns = dict(zip(NAMES, part.T, strict=True))
            pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=11)
    return folder


def in_memory(folder: Path, x: np.ndarray, **settings: object) -> Dataset:
    np.save(folder / "whole.npy", np.rec.fromarrays(x.T, names=NAMES))
    return table(folder / "whole.npy", **settings)


def same(a: Dataset, b: Dataset) -> bool:
    return all(torch.equal(getattr(a, split), getattr(b, split)) for split in ("train", "validation", "test"))


@pytest.mark.parametrize("suffix", [".npy", "records.npy", ".parquet"])
def test_rows_split_and_names_are_those_of_the_table_in_memory(tmp_path: Path, suffix: str) -> None:
    x = numbers()
    data = mapped_table(shards(tmp_path / "events", suffix, x), seed=3, validation=0.2, test=7)
    plain = in_memory(tmp_path, x, seed=3, validation=0.2, test=7)
    assert same(data, plain)
    assert (data.digest, data.fingerprint) == (plain.digest, plain.fingerprint)
    assert data.columns == (("0", "1", "2") if suffix == ".npy" else tuple(NAMES))
    assert (data.name, data.streamed, plain.streamed, data.train.dtype) == ("events", True, False, torch.float32)


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", ">i8", "|u1"])
def test_one_file_of_any_real_dtype_and_order_of_memory(tmp_path: Path, dtype: str) -> None:
    x = np.asfortranarray((100 * np.abs(numbers())).astype(dtype))
    np.save(tmp_path / "x.npy", x)
    assert same(mapped_table(tmp_path / "x.npy"), table(tmp_path / "x.npy"))


def test_rows_beyond_those_whose_order_is_held_are_dealt_out_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiment.data.order.drawn_order.__kwdefaults__", {"most_held": 50, "device": "cpu"})
    x = numbers()
    folder = shards(tmp_path / "events", ".npy", x)
    first, other = (mapped_table(folder, seed=seed) for seed in (0, 1))
    plain = in_memory(tmp_path, x)
    for data in (first, other):
        rows = torch.cat([data.train, data.validation, data.test])
        assert sorted(rows.tolist()) == sorted(torch.from_numpy(x).float().tolist())
        assert not same(data, plain)
    assert first.fingerprint != other.fingerprint


@pytest.mark.parametrize("suffix", ["records.npy", ".parquet"])
def test_columns_are_chosen_and_rows_without_values_left_out_as_in_memory(tmp_path: Path, suffix: str) -> None:
    x = numbers()
    x[[3, 52, 53, 99], [0, 1, 2, 0]] = math.nan
    folder = shards(tmp_path / "events", suffix, x)
    for settings in ({"columns": ["age", "height"]}, {"drop": ["weight"]}, {}):
        data = mapped_table(folder, missing="drop", **settings)
        plain = in_memory(tmp_path, x, missing="drop", **settings)
        assert same(data, plain)
        assert data.columns == plain.columns
    with pytest.raises(UserError, match=r"rows-00000\.\w+: there is no column 'wieght'; did you mean 'weight'\?"):
        mapped_table(folder, drop=["wieght"])


def test_columns_in_another_order_are_found_by_their_names(tmp_path: Path) -> None:
    x = numbers()
    folder = shards(tmp_path / "events", ".parquet", x)
    last = folder / "rows-00002.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(last).select(["age", "height", "weight"]), last)
    assert same(mapped_table(folder), in_memory(tmp_path, x))
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(last).select(["age", "height"]), last)
    with pytest.raises(
        UserError, match=r"rows-00002\.parquet: its columns are age, height, but those of rows-00000\.p"
    ):
        mapped_table(folder)


def test_a_pattern_takes_some_files(tmp_path: Path) -> None:
    x = numbers()
    folder = shards(tmp_path / "events", ".npy", x)
    data = mapped_table(folder / "rows-0000[12].npy")
    assert same(data, in_memory(tmp_path, x[10:]))
    assert data.name == "rows-0000[12]"


@pytest.mark.parametrize("suffix", ["records.npy", ".parquet"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "row 30 has no value in column 'age'; fill it in, or leave out such rows with missing ="),
        (math.inf, "row 30 holds inf in column 'age'; remove the row or fill it in"),
        (-1e300, "row 30 holds -inf in column 'age'; remove the row or fill it in"),
    ],
)
def test_the_first_bad_value_is_named_with_file_row_and_column(
    tmp_path: Path, suffix: str, value: float, message: str
) -> None:
    x = numbers()
    x[40, 2] = x[41, 0] = x[90, 1] = value
    folder = shards(tmp_path / "events", suffix, x)
    with pytest.raises(UserError) as refusal:
        mapped_table(folder)
    assert str(refusal.value).startswith(f"{folder}/rows-00001.{suffix.split('.')[-1]}: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["events"], "nothing is left behind"


def test_the_row_counts_as_in_the_file_where_others_are_left_out(tmp_path: Path) -> None:
    x = numbers()
    x[[11, 12, 35], 0] = math.nan
    x[40, 2] = math.inf
    with pytest.raises(UserError, match=r"rows-00001\.npy: row 30 holds inf in column 2"):
        mapped_table(shards(tmp_path / "events", ".npy", x), missing="drop")


def test_what_is_no_number_is_named(tmp_path: Path) -> None:
    folder = shards(tmp_path / "events", ".parquet", numbers())
    last = folder / "rows-00002.parquet"
    found = pyarrow.parquet.read_table(last)
    pyarrow.parquet.write_table(found.set_column(1, "weight", [["heavy"] * len(found)]), last)
    with pytest.raises(
        UserError, match=r"rows-00002\.parquet: it holds 'heavy' in column 'weight'; every cell must be"
    ):
        mapped_table(folder)
    assert mapped_table(folder, drop=["weight"]).columns == ("height", "age")


def test_files_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    folder = shards(tmp_path / "events", ".npy", numbers())
    np.save(folder / "rows-00003.npy", np.zeros((5, 4)))
    with pytest.raises(
        UserError, match=r"rows-00003\.npy: its columns are 0, 1, 2, 3, but those of rows-00000\.npy are"
    ):
        mapped_table(folder)
    (folder / "rows-00003.npy").write_bytes((folder / "rows-00002.npy").read_bytes()[:200])
    with pytest.raises(UserError, match=r"rows-00003\.npy: this is not an array of plain numbers"):
        mapped_table(folder)
    (folder / "rows-00003.npy").rename(folder / "rows-00003.parquet")
    with pytest.raises(UserError, match=r"events: there are \.npy and \.parquet files; give a pattern that takes one"):
        mapped_table(folder)
    with pytest.raises(UserError, match=r"rows-00003\.parquet: this is no readable \.parquet file \("):
        mapped_table(folder / "*.parquet")
    for path in (tmp_path / "none", tmp_path / "none*.npy", tmp_path):
        with pytest.raises(UserError, match=r": there is no \.npy or \.parquet file; rows are mapped from these\.$"):
            mapped_table(path)
    np.save(folder / "short.npy", np.zeros((2, 4)))
    with pytest.raises(UserError, match=r"validation=0\.1 and test=0\.1 cut 2 rows into 2 for training"):
        mapped_table(folder / "short*")


def cached(folder: Path) -> list[Path]:
    return sorted(folder.glob("mapped-*"))


def test_files_are_read_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = numbers()
    folder = shards(tmp_path / "events", ".npy", x)
    first = mapped_table(folder)
    (kept,) = cached(tmp_path)
    assert sorted(path.name for path in kept.iterdir()) == ["columns.json", "test.npy", "train.npy", "validation.npy"]
    with monkeypatch.context() as patch:
        patch.setattr("experiment.data.mapped.CHUNKS", {".npy": lambda *_: pytest.fail("read again")})
        assert same(mapped_table(folder), first)
    mapped_table(folder, seed=1)
    assert len(cached(tmp_path)) == 2, "another split"
    path = folder / "rows-00000.npy"
    before = path.stat()
    x[0, 0] = 5
    np.save(path, x[:10])
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert (torch.cat([getattr(mapped_table(folder), s) for s in ("train", "validation", "test")]) == 5).sum() == 1


def test_a_damaged_copy_is_named(tmp_path: Path) -> None:
    folder = shards(tmp_path / "events", ".npy", numbers())
    mapped_table(folder)
    path = cached(tmp_path)[0] / "train.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train\.npy is damaged \(.*\); delete .*mapped-\w+ to prepare it again"):
        mapped_table(folder)


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """While all rows are written, and while each of the splits is."""
    folder, sync, calls = shards(tmp_path / "events", ".npy", numbers()), os.fsync, []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) > 2 * after:  # each file and its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device\.$"):
        mapped_table(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["events"]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    folder = shards(tmp_path / "events", ".npy", numbers())
    monkeypatch.setattr("tempfile.TemporaryDirectory", refused)
    with pytest.raises(UserError, match=r"rows cannot be prepared there \(Read-only file system\); put links to"):
        mapped_table(folder)


def test_the_section_maps_folders_and_patterns_and_a_file_where_it_says_so(tmp_path: Path) -> None:
    x = numbers()
    shards(tmp_path / "events", ".npy", x)
    plain = in_memory(tmp_path, x, test=5)

    def data(path: str, **settings: object) -> Dataset:
        return load_data(TableData(kind="table", path=path, test=5, **settings), tmp_path)

    for path, settings in {"events": {}, "events/*.npy": {}, "whole.npy": {"mapped": True}}.items():
        found = data(path, **settings)
        assert same(found, plain)
        assert found.streamed
    assert not data("whole.npy").streamed
    for settings in ({"duplicates": "drop"}, {"noise": True}):
        with pytest.raises(
            UserError, match=r"events: duplicates='drop' and noise=true need all rows in memory at once"
        ):
            data("events", **settings)
