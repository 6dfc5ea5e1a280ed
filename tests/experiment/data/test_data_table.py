import gzip
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from experiment import evaluate, train
from experiment.config import parse_config
from experiment.data import Dataset, table, table_files
from experiment.data.table import READERS, read_columns, read_table
from experiment.data.table_files import Text
from experiment.errors import UserError
from experiment.run import open_run


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
        ("a,b\n1,2\n,4\n", "row 1 has no value in column 'a'; fill it in, or leave out such rows with missing ="),
        ("1,2\n?,4\n", "row 1 has no value in column 0; fill it in"),
        ("a, b\n1,2\n3,red\n", "row 1 holds 'red' in column 'b'; every cell must be a number, so code"),
        ("1,b\n3,4\n", "row 0 holds 'b' in column 1"),
        ("a|b\n1|2\n", "row 0 holds '1|2' in column 'a|b'"),
        ("a,b\n1,2\n3,4\n5,6,7\n", "row 2 has 3 columns and the first line 2"),
        ("a,b\n1,2\n\n3,nan\n5,6\n", "row 1 has no value in column 'b'; fill it in"),
        ("1,2\n3,4\n1e300,2\n", "row 2 holds inf in column 0; remove the row"),
        ("a,b\n1,2\n-inf,4\n", "row 1 holds -inf in column 'a'; remove the row"),
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
    with pytest.raises(UserError, match=r"x\.npy: row 31 has no value in column 2; fill it in"):
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
    with pytest.raises(
        UserError, match=r'x\.xlsx: a table cannot be read from a "\.xlsx" file; use \.npy, \.npz, \.csv,'
    ):
        table(tmp_path / "x.xlsx")


def test_a_table_too_short_to_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"validation=0\.1 and test=0\.1 cut 2 rows into 2 for training, 0 for val"):
        table(write(tmp_path, "1,2\n3,4\n"))


NAMES = ("height", "weight", "age")


def save(folder: Path, suffix: str, x: np.ndarray) -> Path:
    """The same table in each format, with its names where the format has some."""
    path = folder / f"people{suffix}"
    if suffix == ".npz":
        np.savez(path, **{name: x[:, column] for column, name in enumerate(NAMES)})
    elif suffix == ".npy":
        np.save(path, np.rec.fromarrays(x.T, names=NAMES))
    elif suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({name: x[:, column] for column, name in enumerate(NAMES)}), path)
    else:
        text = ",".join(NAMES) + "\n" + "\n".join(",".join(map(repr, row)) for row in x.tolist())
        path.write_bytes(gzip.compress(text.encode()) if suffix == ".csv.gz" else text.encode())
    return path


@pytest.mark.parametrize("suffix", READERS)
def test_every_format_gives_the_same_rows_and_names(tmp_path: Path, suffix: str) -> None:
    x = numbers()
    data = table(save(tmp_path, suffix, x))
    assert (data.name, data.columns) == ("people", NAMES)
    assert all_rows(data) == sorted(x.astype(np.float32).tolist())
    np.save(tmp_path / "plain.npy", x)
    plain = table(tmp_path / "plain.npy")
    assert (plain.digest, plain.columns) == (data.digest, ("0", "1", "2"))


@pytest.mark.parametrize("suffix", READERS)
def test_columns_are_chosen_by_name_in_the_order_asked_for(tmp_path: Path, suffix: str) -> None:
    x = numbers()
    path = save(tmp_path, suffix, x)
    chosen, dropped = table(path, columns=["age", "height"]), table(path, drop=["weight"])
    assert (chosen.columns, dropped.columns) == (("age", "height"), ("height", "age"))
    assert all_rows(chosen) == sorted(x[:, [2, 0]].astype(np.float32).tolist())
    assert torch.equal(chosen.train, dropped.train.flip(1))
    assert table(path, columns=["age", "height"], drop=["height"]).columns == ("age",)
    with pytest.raises(UserError, match=r"people.*: there is no column 'wieght'; did you mean 'weight'\?"):
        table(path, drop=["wieght"])
    with pytest.raises(UserError, match=r"people.*: drop leaves out every column"):
        table(path, columns=["age"], drop=["age"])
    with pytest.raises(UserError, match=r"people.*: columns names 'age' more than once"):
        table(path, columns=["age", "age"])


def test_columns_without_names_go_by_their_places(tmp_path: Path) -> None:
    x = numbers()
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x)
    for path in (tmp_path / "x.npy", tmp_path / "x.npz", write(tmp_path, "\n".join(f"{a},{b},{c}" for a, b, c in x))):
        data = table(path, columns=[2, 0])
        assert data.columns == ("2", "0")
        assert all_rows(data) == sorted(x[:, [2, 0]].astype(np.float32).tolist())


def test_a_name_that_means_two_columns_cannot_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, "a,a,b\n" + "\n".join(f"{i},{i * i},{-i}" for i in range(20)))
    assert table(path).columns == ("a", "a", "b")
    with pytest.raises(UserError, match=r"the file names 'a' more than once"):
        table(path, drop=["a"])


@pytest.mark.parametrize("suffix", READERS)
def test_rows_that_lack_a_value_are_left_out_on_demand(tmp_path: Path, suffix: str) -> None:
    x = numbers()
    x[3, 1] = x[17, 0] = math.nan
    path = save(tmp_path, suffix, x)
    with pytest.raises(UserError, match=r"people.*: row 3 has no value in column 'weight'; fill it in, or leave out"):
        table(path)
    with pytest.raises(UserError, match=r"people.*: row 17 has no value in column 'height'"):
        table(path, drop=["weight"])
    data = table(path, missing="drop", test=4)
    assert all_rows(data) == sorted(np.delete(x, [3, 17], 0).astype(np.float32).tolist())
    assert len(table(path, columns=["age"], validation=4, test=4).train) == 32, "only the columns taken count"


@pytest.mark.parametrize("cell", ["", " ", "NA", "n/a", "NaN", "null", "None", "?"])
def test_what_a_csv_writes_for_a_missing_value(tmp_path: Path, cell: str) -> None:
    path = write(tmp_path, f"a,b\n{cell},2\n" + "\n".join(f"{i},{i * i}" for i in range(20)))
    assert len(all_rows(table(path, missing="drop"))) == 20


def test_nulls_of_a_parquet_file_are_missing_and_whole_numbers_stay_exact(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    counts = [None, *range(2**24, 2**24 - 40, -1)]
    pyarrow.parquet.write_table(pyarrow.table({"count": counts, "when": pyarrow.array(["x"] * 41)}), path)
    with pytest.raises(UserError, match=r"x\.parquet: row 0 has no value in column 'count'"):
        table(path, columns=["count"])
    data = table(path, columns=["count"], missing="drop")
    assert all_rows(data) == [[float(count)] for count in sorted(counts[1:])]


def test_text_is_refused_with_its_column_and_value_and_can_be_left_out(tmp_path: Path) -> None:
    sizes, colours = np.arange(20.0), np.array(["red", "blue"] * 10)
    np.savez(tmp_path / "x.npz", size=sizes, colour=colours)
    pyarrow.parquet.write_table(pyarrow.table({"size": sizes, "colour": colours}), tmp_path / "x.parquet")
    dictionary = pyarrow.array(colours).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"size": sizes, "colour": dictionary}), tmp_path / "c.parquet")
    text = "size,colour\n" + "\n".join(f"{size},{colour}" for size, colour in zip(sizes, colours, strict=True))
    for path in (tmp_path / "x.npz", tmp_path / "x.parquet", tmp_path / "c.parquet", write(tmp_path, text, "x.csv")):
        with pytest.raises(UserError, match=r"x?\.\w+: (it|row 0) holds 'red' in column 'colour'; every cell must be"):
            table(path)
        assert table(path, drop=["colour"]).columns == ("size",)


def test_arrays_that_are_no_table_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=np.zeros((4, 2)), b=np.zeros(4))
    with pytest.raises(UserError, match=r"x\.npz: found a \(4, 2\), b \(4,\); a table is one 2-D array, or 1-D arrays"):
        table(path)
    np.savez(path)
    with pytest.raises(UserError, match=r"x\.npz: found no array; a table is"):
        table(path)
    np.savez(path, a=np.array([{}]))
    with pytest.raises(UserError, match=r"x\.npz: these are not arrays of plain numbers; write them with numpy\.savez"):
        table(path)
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"x\.npz: these are not arrays of plain numbers"):
        table(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = save(tmp_path, ".parquet", numbers()).read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.parquet: this is no readable \.parquet file \("):
        table(tmp_path / "half.parquet")
    whole = save(tmp_path, ".csv.gz", numbers()).read_bytes()
    for content in (whole[:-20], b"a,b\n1,2\n"):
        (tmp_path / "half.csv.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"half\.csv\.gz: this is not comma-separated text \("):
            table(tmp_path / "half.csv.gz")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, ".parquet", numbers())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        UserError, match=r"people\.parquet: a \.parquet file needs pyarrow; install it with: pip install"
    ):
        table(path)


def test_noise_spreads_values_that_many_rows_share(tmp_path: Path) -> None:
    """Whole numbers become a density whose histogram they are; the other column, without ties, keeps its order."""
    random = np.random.default_rng(0)
    x = np.stack([random.integers(0, 3, 300), random.normal(size=300)], 1)
    np.save(tmp_path / "x.npy", x)
    plain, noisy, again = (table(tmp_path / "x.npy", noise=noise) for noise in (False, True, True))
    assert noisy.digest == again.digest
    assert len(plain.train[:, 0].unique()) == 3
    assert len(noisy.train[:, 0].unique()) == 240
    assert torch.equal(noisy.train[:, 0].round(), plain.train[:, 0])
    assert torch.equal(noisy.train[:, 1].argsort(), plain.train[:, 1].argsort())


def test_a_csv_goes_through_the_scripts(tmp_path: Path) -> None:
    save(tmp_path, ".csv", numbers())
    text = {
        "data": {"kind": "table", "path": "people.csv", "drop": ["age"], "missing": "drop", "seed": 1},
        "preprocessing": {"kind": "none", "standardize": True},
        "model": {"kind": "real_nvp", "layers": 2, "hidden": [8]},
        "train": {"steps": 2, "batch_size": 20},
    }
    run = train(parse_config(text, source="test"), tmp_path / "run", data_root=tmp_path, device="cpu")
    assert open_run(run.path).load_data().columns == ("height", "weight")
    assert (evaluate(run.path).rows, evaluate(run.path).dimensions) == (4, 2)


def test_a_constant_column_that_cannot_be_standardized_is_named(tmp_path: Path) -> None:
    x = numbers()
    x[:, 1] = 7
    save(tmp_path, ".csv", x)
    text = {
        "data": {"kind": "table", "path": "people.csv"},
        "preprocessing": {"kind": "none", "standardize": True},
        "model": {"kind": "nice"},
    }
    with pytest.raises(
        UserError, match=r"^preprocessing\.standardize: column 'weight' of the training rows is constant"
    ):
        train(parse_config(text, source="test"), tmp_path / "run", data_root=tmp_path, device="cpu")


def test_semicolons_tabs_and_decimal_commas_are_told_by_the_file(tmp_path: Path) -> None:
    x = numbers().round(3)
    plain = read_table(write(tmp_path, "a,b,c\n" + "\n".join(f"{a},{b},{c}" for a, b, c in x)))[1]
    np.testing.assert_array_equal(plain, x)
    for delimiter in ";\t":
        for header in ("", delimiter.join(["a", '"b, in cm"', "c"]) + "\n"):
            body = "\n".join(delimiter.join(map(str, row)) for row in x)
            for text in (body, body.replace(".", ",")):
                names, read = read_table(write(tmp_path, header + text))
                np.testing.assert_array_equal(read, x)
                assert names == (("a", "b, in cm", "c") if header else ("0", "1", "2"))


def test_commas_beside_decimal_points_are_not_taken_for_decimal_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 0 holds '1,234' in column 'income'; every cell must be a number"):
        read_table(write(tmp_path, "age;income\n30.5;1,234\n41.5;2,345\n"))


def test_missing_values_text_and_quotes_beside_decimal_commas(tmp_path: Path) -> None:
    path = write(tmp_path, 'a;b;c\n1,5;NA;"rot"\n"2,5";7;blau, hell\n')
    names, x = read_table(path, drop=["c"], missing="keep")
    np.testing.assert_array_equal(x, [[1.5, math.nan], [2.5, 7]])
    assert names == ("a", "b")
    assert dict(read_columns(path))["c"] == Text("rot", 0)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("header", ["", "a,b,c\n"])
def test_lines_of_plain_numbers_and_cells_one_by_one_read_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newline: str, header: str
) -> None:
    cells = [["1", " 2.5", "-3e-7"], ['"4"', "+5", "0.1"], ["nan", "1e300", "123456789.123456789"]]
    path = write(tmp_path, header + newline.join(map(",".join, cells)) + newline + newline)
    fast = read_table(path, missing="keep")
    monkeypatch.setattr(table_files, "_loaded", lambda *_: None)
    slow = read_table(path, missing="keep")
    assert fast[0] == slow[0]
    np.testing.assert_array_equal(fast[1], slow[1])


def test_plain_numbers_are_read_by_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "_parsed", lambda *_, **__: pytest.fail("cell by cell"))
    assert read_table(write(tmp_path, "a,b\n1,2\n3,4\n"))[1].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("suffix", READERS)
def test_columns_of_new_rows_are_found_by_name_in_any_order(tmp_path: Path, suffix: str) -> None:
    x = numbers()
    names, read = read_table(save(tmp_path, suffix, x), columns=("age", "height"))
    assert names == ("age", "height")
    np.testing.assert_array_equal(read, x[:, [2, 0]])
    assert read.dtype == np.float64


def test_rows_that_occurred_before_are_left_out_on_demand(tmp_path: Path) -> None:
    x = numbers()
    np.save(tmp_path / "x.npy", np.concatenate([x, x[:10], x[:3]]))
    assert len(all_rows(table(tmp_path / "x.npy"))) == 53
    data = table(tmp_path / "x.npy", duplicates="drop")
    assert all_rows(data) == sorted(x.astype(np.float32).tolist())
    np.save(tmp_path / "y.npy", x)
    assert data.digest == table(tmp_path / "y.npy").digest, "in the order of the file"


def test_a_run_keeps_the_names_of_its_columns(tmp_path: Path) -> None:
    path = save(tmp_path, ".csv", numbers())
    asked = {"data": {"kind": "table", "path": str(path), "drop": ["weight"]}, "model": {"kind": "gaussian"}}
    run = train(parse_config(asked, source="test"), tmp_path / "run", threads=1)
    assert open_run(run.path).environment["columns"] == ["height", "age"]
