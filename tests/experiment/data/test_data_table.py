import math
from pathlib import Path

import numpy as np
import pytest
import torch

from experiment.data import Dataset, table
from experiment.errors import UserError


def write(folder: Path, text: str, name: str = "heights.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def numbers(rows: int = 40, columns: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, columns))


def all_rows(data: Dataset) -> list[list[float]]:
    return sorted(torch.cat([data.train, data.validation, data.test]).tolist())


@pytest.mark.parametrize("header", ["", "left,middle,right\n", "\ufeff", "\ufeffa,b,c\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n"])
def test_csv_and_npy_give_the_same_dataset(tmp_path: Path, header: str, newline: str) -> None:
    x = numbers()
    np.save(tmp_path / "heights.npy", x)
    text = header + newline.join(",".join(map(repr, row)) for row in x.tolist())
    from_npy, from_csv = table(tmp_path / "heights.npy"), table(write(tmp_path, text))
    assert all_rows(from_npy) == sorted(x.astype(np.float32).tolist())
    assert torch.equal(from_csv.train, from_npy.train)
    assert from_csv.fingerprint == from_npy.fingerprint
    assert (from_csv.name, from_csv.bins, from_csv.event_shape) == ("heights", None, torch.Size([3]))
    assert (len(from_csv.train), len(from_csv.validation), len(from_csv.test)) == (32, 4, 4)


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", "<f2", "<i8", ">i2", "<u2", "|i1"])
def test_npy_of_any_real_dtype(tmp_path: Path, dtype: str) -> None:
    x = (10 * numbers()).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    data = table(tmp_path / "x.npy", validation=5, test=0.25)
    assert all_rows(data) == sorted(x.astype(np.float32).tolist())
    assert (len(data.train), len(data.validation), len(data.test), data.train.dtype) == (25, 5, 10, torch.float32)


def test_the_seed_fixes_the_split(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers())
    first, same, other = (table(tmp_path / "x.npy", seed=seed).fingerprint for seed in (3, 3, 4))
    assert first == same != other


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3,4\n5,abc\n", "row 2 holds 'abc' in column 1; every cell must be a number"),
        ("a,b\n1,2\n,4\n", "row 1 holds '' in column 0"),
        ("1,b\n3,4\n", "row 0 holds 'b' in column 1"),
        ("a;b\n1;2\n", "row 0 holds '1;2' in column 0"),
        ("a,b\n1,2\n3,4\n5,6,7\n", "row 2 has 3 columns and row 0 has 2"),
        ("a,b\n1,2\n\n3,nan\n5,6\n", "row 1 holds nan in column 1; remove the row or fill it in"),
        ("1,2\n3,4\n1e300,2\n", "row 2 holds inf in column 0"),
        ("a,b\n", "the file holds no rows of numbers"),
        ("", "the file holds no rows of numbers"),
    ],
)
def test_a_bad_csv_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as refusal:
        table(path)
    assert str(refusal.value).startswith(f"{path}: {message}")


def test_a_bad_row_of_an_npy_is_named_as_in_the_file(tmp_path: Path) -> None:
    x = numbers()
    x[31, 2] = math.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(UserError, match=r"x\.npy: row 31 holds nan in column 2;"):
        table(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros(5), r"float64 values in shape \(5,\)"),
        (np.zeros((5, 2, 2)), r"float64 values in shape \(5, 2, 2\)"),
        (np.zeros((5, 0)), r"float64 values in shape \(5, 0\)"),
        (np.zeros((5, 2), dtype=complex), "complex128 values"),
        (np.full((5, 2), "a"), "<U1 values"),
    ],
)
def test_an_array_that_is_no_table_is_refused(tmp_path: Path, array: np.ndarray, found: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UserError, match=rf"x\.npy: found {found}.*; a table is \(rows, columns\) of real numbers"):
        table(tmp_path / "x.npy")


def test_files_that_are_not_what_they_seem_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "pickled.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    for path in (tmp_path / "pickled.npy", write(tmp_path, "1,2\n", "text.npy"), write(tmp_path, "", "empty.npy")):
        with pytest.raises(UserError, match=rf"{path.name}: this is not an array of plain numbers; .* numpy\.save"):
            table(path)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe1,2")
    with pytest.raises(UserError, match=r"binary\.csv: this is not comma-separated text"):
        table(tmp_path / "binary.csv")
    with pytest.raises(UserError, match=r"gone\.csv: there is no such file"):
        table(tmp_path / "gone.csv")
    with pytest.raises(UserError, match=r'x\.xlsx: a table cannot be read from a "\.xlsx" file; use \.npy or \.csv'):
        table(tmp_path / "x.xlsx")


def test_a_table_too_short_to_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"validation=0\.1 and test=0\.1 cut 2 rows into 2 for training, 0 for val"):
        table(write(tmp_path, "1,2\n3,4\n"))
