"""Readers of tables: columns of numbers, NaN where a value is missing, or of something else."""

import contextlib
import csv
import gzip
import itertools
import math
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiment.data.optional import optional
from experiment.errors import UserError

Array = NDArray[Any]
Choose = Callable[[tuple[str, ...]], list[int]]  # names of all columns -> places of those that are wanted


@dataclass(frozen=True)
class Text:
    """A column that holds something else than numbers.

    Attributes:
        value: the first thing that is none.
        row: its row, where that is known.
    """

    value: object
    row: int | None = None


Columns = list[tuple[str, Array | Text]]
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})


def read_npy(path: Path, choose: Choose) -> Columns:
    """A 2-D array of real numbers, or a 1-D array of records with names."""
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{path}: this is not an array of plain numbers; write it with numpy.save.") from error
    return from_array(path, array, choose)


def read_npz(path: Path, choose: Choose) -> Columns:
    """One 2-D array, or 1-D arrays of one length, each a column with its name."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: these are not arrays of plain numbers; write them with numpy.savez.") from error
    if len(arrays) == 1 and (array := next(iter(arrays.values()))).ndim == 2:
        return _from_matrix(path, array, choose)
    if not arrays or len({array.shape for array in arrays.values()}) > 1 or next(iter(arrays.values())).ndim != 1:
        found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "no array"
        raise UserError(f"{path}: found {found}; a table is one 2-D array, or 1-D arrays of one length as its columns.")
    return _from_columns(arrays, choose)


def read_parquet(path: Path, choose: Choose) -> Columns:
    """The columns that are wanted; no others are read."""
    purpose = f"{path}: a .parquet file"
    arrow, parquet = optional("pyarrow", purpose=purpose), optional("pyarrow.parquet", purpose=purpose)
    try:
        with parquet.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
            wanted = [names[place] for place in choose(names)]
            return from_arrow(file.read(columns=wanted), wanted)
    except arrow.ArrowException as error:
        raise UserError(f"{path}: this is no readable .parquet file ({str(error).splitlines()[0]}).") from error


def from_arrow(table: Any, names: Sequence[str]) -> Columns:
    """These columns of a table or batch of pyarrow."""
    types = optional("pyarrow", purpose="a .parquet file").types
    columns: Columns = []
    for name in names:
        kind, values = table.schema.field(name).type, table.column(name)
        if types.is_integer(kind) or types.is_floating(kind) or values.null_count == len(values):
            columns.append((name, values.cast("float64", safe=False).to_numpy(zero_copy_only=False)))
        else:
            columns.append((name, Text(values.drop_null()[0].as_py())))
    return columns


def read_csv(path: Path, choose: Choose) -> Columns:
    """Numbers between commas, semicolons or tabs, gzipped or not, below a header if no cell of the first line is one.

    Between semicolons and tabs a comma is a decimal comma, unless the file has decimal points as well.
    """
    delimiter = _delimiter(path)
    with _text(path) as file:
        first = next(filter(None, csv.reader(file, delimiter=delimiter)), [])
        header = bool(first) and not any(_is_number(cell.replace(",", ".")) for cell in first)
        if not header:
            file.seek(0)
        names = tuple(cell.strip() for cell in first) if header else tuple(map(str, range(len(first))))
        places = choose(names) if first else []
        x = _loaded(file, delimiter, names) if len(places) == len(names) else None
    if x is None:
        return _parsed(path, delimiter, names, places, header=header)
    return [(names[place], x[:, place]) for place in places]


@contextlib.contextmanager
def _text(path: Path) -> Iterator[Any]:
    """The file as text, whatever is no text in it an error of one sentence."""
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", newline="", encoding="utf-8-sig") as file:
            yield file
    except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: this is not comma-separated text ({error}); save it as UTF-8 csv.") from error


def _delimiter(path: Path) -> str:
    """A tab or a semicolon where it cuts the first two lines, else a comma."""
    for delimiter in "\t;":
        with _text(path) as file:
            lines = list(itertools.islice(filter(None, csv.reader(file, delimiter=delimiter)), 2))
        if lines and min(map(len, lines)) > 1:
            return delimiter
    return ","


def _loaded(file: Any, delimiter: str, names: tuple[str, ...]) -> Array | None:
    """By numpy, which takes a third of the time; None where a line is anything but plain numbers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of no rows
            x: Array = np.loadtxt(file, delimiter=delimiter, comments=None, quotechar='"', ndmin=2)
    except ValueError:
        return None
    return x if x.size and x.shape[1] == len(names) else None


def _parsed(path: Path, delimiter: str, names: tuple[str, ...], places: list[int], *, header: bool) -> Columns:
    """Cell by cell: NaN where a value is missing."""
    with _text(path) as file:
        lines = [cells for cells in csv.reader(file, delimiter=delimiter) if cells][header:]
    if not lines:
        raise UserError(f"{path}: the file holds no rows of numbers; a table needs at least three.")
    for row, cells in enumerate(lines):
        if len(cells) != len(names):
            raise UserError(
                f"{path}: row {row} has {len(cells)} columns and the first line {len(names)}; all need the same."
            )
    cells_of = list(zip(*lines, strict=True))
    comma = delimiter != "," and not any("." in cell for place in places for cell in cells_of[place])
    return [(names[place], _column(cells_of[place], comma=comma)) for place in places]


def _column(cells: Sequence[str], *, comma: bool) -> Array | Text:
    texts = [cell.replace(",", ".") for cell in cells] if comma else cells
    try:
        return np.fromiter(map(float, texts), np.float64, len(cells))
    except ValueError:
        x = np.full(len(cells), math.nan)
    for row, text in enumerate(texts):
        try:
            x[row] = float(text)
        except ValueError:
            if text.strip().lower() not in MISSING:
                return Text(cells[row], row)
    return x


def _is_number(cell: str) -> bool:
    """Whether the text reads as a float."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def from_array(path: Path, array: Array, choose: Choose) -> Columns:
    """Columns of a 2-D array of real numbers, or of a 1-D array of records with names."""
    if array.dtype.names and array.ndim == 1:
        return _from_columns({name: array[name] for name in array.dtype.names}, choose)
    return _from_matrix(path, array, choose)


def _from_matrix(path: Path, array: Array, choose: Choose) -> Columns:
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "iuf":
        raise UserError(
            f"{path}: found {array.dtype} values in shape {array.shape}; a table is (rows, columns) of real numbers."
        )
    return [(str(place), array[:, place]) for place in choose(tuple(map(str, range(array.shape[1]))))]


def _from_columns(arrays: Mapping[str, Array], choose: Choose) -> Columns:
    names = tuple(arrays)
    columns: Columns = []
    for name in (names[place] for place in choose(names)):
        values = arrays[name]
        numeric = values.dtype.kind in "iuf" and values.ndim == 1
        columns.append((name, values if numeric else Text(values[0].item() if len(values) else values.dtype)))
    return columns
