"""Readers of tables: names of columns and numbers, NaN where a value is missing."""

import csv
import gzip
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from experiment.data.dataset import column_name
from experiment.data.optional import optional
from experiment.errors import UserError

Array = NDArray[Any]
Choose = Callable[[tuple[str, ...]], list[int]]  # names of all columns -> places of those that are wanted

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})


def read_npy(path: Path, choose: Choose) -> tuple[tuple[str, ...], Array]:
    """A 2-D array of real numbers, or a 1-D array of records with names."""
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{path}: this is not an array of plain numbers; write it with numpy.save.") from error
    if array.dtype.names and array.ndim == 1:
        return _from_columns(path, {name: array[name] for name in array.dtype.names}, choose)
    return _from_matrix(path, array, choose)


def read_npz(path: Path, choose: Choose) -> tuple[tuple[str, ...], Array]:
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
    return _from_columns(path, arrays, choose)


def read_parquet(path: Path, choose: Choose) -> tuple[tuple[str, ...], Array]:
    """The columns that are wanted; no others are read."""
    purpose = f"{path}: a .parquet file"
    arrow, parquet = optional("pyarrow", purpose=purpose), optional("pyarrow.parquet", purpose=purpose)
    try:
        with parquet.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
            wanted = [names[place] for place in choose(names)]
            table = file.read(columns=wanted)
    except arrow.ArrowException as error:
        raise UserError(f"{path}: this is no readable .parquet file ({str(error).splitlines()[0]}).") from error
    for name in wanted:
        kind, values = table.schema.field(name).type, table.column(name).drop_null()
        if len(values) and not (arrow.types.is_integer(kind) or arrow.types.is_floating(kind)):
            _refuse_value(path, values[0].as_py(), repr(name))
    numbers = [table.column(name).cast("float64", safe=False).to_numpy(zero_copy_only=False) for name in wanted]
    return tuple(wanted), np.stack(numbers, 1)


def read_csv(path: Path, choose: Choose) -> tuple[tuple[str, ...], Array]:
    """Comma-separated numbers, gzipped or not, below a header if none of the first line's cells is a number."""
    lines = _lines(path)
    names = tuple(str(place) for place in range(len(lines[0]))) if lines else ()
    if lines and not any(_is_number(cell) for cell in lines[0]):
        names = tuple(cell.strip() for cell in lines[0])
        del lines[0]
    if not lines:
        raise UserError(f"{path}: the file holds no rows of numbers; a table needs at least three.")
    places = choose(names)
    numbers = [_numbers(cells, row, names, places, path) for row, cells in enumerate(lines)]
    return tuple(names[place] for place in places), np.array(numbers)


def _lines(path: Path) -> list[list[str]]:
    """Cells of each line that is not blank."""
    reader = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with reader(path, "rt", newline="", encoding="utf-8-sig") as file:
            return [cells for cells in csv.reader(file) if cells]
    except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: this is not comma-separated text ({error}); save it as UTF-8 csv.") from error


def _numbers(cells: list[str], row: int, names: tuple[str, ...], places: list[int], path: Path) -> list[float]:
    """The numbers of one row, NaN where there is none."""
    if len(cells) != len(names):
        raise UserError(f"{path}: row {row} has {len(cells)} columns and row 0 has {len(names)}; all need the same.")
    numbers = []
    for place in places:
        try:
            numbers.append(float(cells[place]))
        except ValueError:
            if cells[place].strip().lower() not in MISSING:
                _refuse_value(path, cells[place], column_name(place, names), f"row {row} ")
            numbers.append(math.nan)
    return numbers


def _is_number(cell: str) -> bool:
    """Whether the text reads as a float."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _from_matrix(path: Path, array: Array, choose: Choose) -> tuple[tuple[str, ...], Array]:
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "iuf":
        raise UserError(
            f"{path}: found {array.dtype} values in shape {array.shape}; a table is (rows, columns) of real numbers."
        )
    places = choose(tuple(str(place) for place in range(array.shape[1])))
    return tuple(str(place) for place in places), array[:, places].astype(np.float64)


def _from_columns(path: Path, arrays: Mapping[str, Array], choose: Choose) -> tuple[tuple[str, ...], Array]:
    names = tuple(arrays)
    wanted = {names[place]: arrays[names[place]] for place in choose(names)}
    for name, values in wanted.items():
        if values.dtype.kind not in "iuf" or values.ndim != 1:
            _refuse_value(path, values[0].item() if len(values) else values.dtype, repr(name))
    return tuple(wanted), np.stack([values.astype(np.float64) for values in wanted.values()], 1)


def _refuse_value(path: Path, value: object, column: str, row: str = "it ") -> NoReturn:
    raise UserError(
        f"{path}: {row}holds {value!r} in column {column}; every cell must be a number, so code the column as numbers "
        "or leave it out with drop."
    )
