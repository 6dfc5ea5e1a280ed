from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from experiment.data.dataset import Dataset, check_finite, column_name, split_rows
from experiment.data.spread import spread
from experiment.data.table_files import Choose, Columns, Text, read_csv, read_npy, read_npz, read_parquet
from experiment.errors import UserError
from experiment.messages import did_you_mean

Array = NDArray[Any]
Missing = Literal["error", "drop", "keep"]
Duplicates = Literal["keep", "drop"]

READERS = {".npy": read_npy, ".npz": read_npz, ".csv": read_csv, ".csv.gz": read_csv, ".parquet": read_parquet}


def table(
    path: Path,
    *,
    columns: Sequence[str | int] = (),
    drop: Sequence[str | int] = (),
    missing: Missing = "error",
    duplicates: Duplicates = "keep",
    noise: bool = False,
    validation: int | float = 0.1,
    test: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Rows of numbers from a file, each row one event of shape (columns,).

    Args:
        path: file to read, see `read_table`.
        columns: the columns to take, in this order; all, in the order of the file, where none are given.
        drop: columns to leave out.
        missing: "drop" leaves out rows that lack a value in one of the columns taken, "error" refuses them.
        duplicates: "drop" leaves out rows that occurred before, so that no test row is a training row.
        noise: whether values that many rows share are spread over the smallest gap of their column, see `spread`.
        validation: validation rows, a float as a fraction of all rows, an int as a number.
        test: test rows, as `validation`.
        seed: seed of the random split, and of the noise.

    Returns:
        The dataset, named after the file, with the names of its columns.

    Raises:
        UserError: the file is missing or not a table of finite numbers, or too short to split; a column that is not
            there.
    """
    names, x = read_table(path, columns=columns, drop=drop, missing=missing)
    if duplicates == "drop":
        x = x[first_places(x)]
    rows = torch.from_numpy(x).float()
    check_finite(rows, name=str(path), columns=names)
    if noise:
        rows = torch.from_numpy(spread(x, np.random.default_rng(seed))).float()
    splits = split_rows(rows, validation=validation, test=test, generator=torch.Generator().manual_seed(seed))
    return Dataset(path.name[: -len(suffix_of(path))], *splits, columns=names)


def read_table(
    path: Path, *, columns: Sequence[str | int] = (), drop: Sequence[str | int] = (), missing: Missing = "error"
) -> tuple[tuple[str, ...], Array]:
    """Names of columns and float64 rows (rows, columns) of a file, which may have the columns in any order.

    A `.npy` file holds a 2-D array, or records with names; a `.npz` file one 2-D array, or a 1-D array for each column.
    A `.csv` or `.csv.gz` file holds numbers between commas, semicolons or tabs; its first line is a header if none of
    its cells is a number. A `.parquet` file needs pyarrow. Columns without names go by their places, counted from 0;
    so do rows in messages, without the header and blank lines.

    Missing are NaN, nulls, and empty cells, NA, N/A, null, None and ? of a csv.

    Args:
        path: file to read.
        columns: the columns to take, in this order; all, in the order of the file, where none are given.
        drop: columns to leave out.
        missing: "drop" leaves out rows that lack a value, "error" refuses them, "keep" leaves NaN in their place.

    Raises:
        UserError: the file is missing or no table of numbers; a column that is not there.
    """
    found = read_columns(path, columns=columns, drop=drop)
    names = tuple(name for name, _ in found)
    return names, stacked(path, found, missing=missing)[0]


def stacked(path: Path, found: Columns, *, missing: Missing, first_row: int = 0) -> tuple[Array, Array]:
    """Rows (rows, columns) in float64 of columns that begin at a row of a file, and the places of the rows there.

    Raises:
        UserError: a column of something else than numbers; with missing = "error", a row that lacks a value.
    """
    x = np.stack([_numbers(path, *column) for column in found], 1, dtype=np.float64)
    gaps = np.isnan(x)
    if missing == "error" and gaps.any():
        row, column = np.argwhere(gaps)[0].tolist()
        title = column_name(0, (found[column][0],))
        raise UserError(
            f"{path}: row {first_row + row} has no value in column {title}; fill it in, or leave out such rows with "
            'missing = "drop".'
        )
    places = np.arange(first_row, first_row + len(x))
    kept = ~gaps.any(1) if missing == "drop" else slice(None)
    return x[kept], places[kept]


def read_columns(path: Path, *, columns: Sequence[str | int] = (), drop: Sequence[str | int] = ()) -> Columns:
    """As `read_table`, column by column; one that does not hold numbers is a `Text`."""
    suffix = suffix_of(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give the path of one that ends in {', '.join(READERS)}.")
    return READERS[suffix](path, chooser(path, columns=columns, drop=drop))


def chooser(path: Path, *, columns: Sequence[str | int] = (), drop: Sequence[str | int] = ()) -> Choose:
    """Finds the places of the columns that are wanted among the names of all."""
    return partial(_choose, columns=[str(c) for c in columns], drop=[str(c) for c in drop], path=path)


def _numbers(path: Path, name: str, column: Array | Text) -> Array:
    if not isinstance(column, Text):
        return column
    where = "it" if column.row is None else f"row {column.row}"
    raise UserError(
        f"{path}: {where} holds {column.value!r} in column {column_name(0, (name,))}; every cell must be a number, so "
        "code the column as numbers or leave it out with drop."
    )


def is_table(path: Path) -> bool:
    """Whether the name of a file ends as that of a table does."""
    return path.name.lower().endswith(tuple(READERS))


def suffix_of(path: Path) -> str:
    """How the name of a table ends, as it is written there.

    Raises:
        UserError: no table ends so.
    """
    suffix = next((suffix for suffix in READERS if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise UserError(f'{path}: a table cannot be read from a "{path.suffix}" file; use {", ".join(READERS)}.')
    return suffix


def first_places(x: Array) -> Array:
    """Places of the rows that did not occur before, in order.

    Example:
        >>> first_places(np.array([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0]])).tolist()
        [0, 1]
    """
    return np.sort(np.unique(x, axis=0, return_index=True)[1])


def _choose(names: tuple[str, ...], *, columns: Sequence[str], drop: Sequence[str], path: Path) -> list[int]:
    """Places of the columns that are wanted."""
    for column in (*columns, *drop):
        if column not in names:
            raise UserError(f"{path}: there is no column {column!r}; {did_you_mean(column, names)}")
        if names.count(column) > 1 or columns.count(column) > 1:
            where = "the file" if names.count(column) > 1 else "columns"
            raise UserError(f"{path}: {where} names {column!r} more than once; each name must mean one column.")
    places = [names.index(column) for column in columns] if columns else range(len(names))
    left = [place for place in places if names[place] not in drop]
    if not left:
        raise UserError(f"{path}: drop leaves out every column; a table needs at least one.")
    return left
