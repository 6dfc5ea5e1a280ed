from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from experiment.data.dataset import Dataset, check_finite, column_name, split_rows
from experiment.data.spread import spread
from experiment.data.table_files import read_csv, read_npy, read_npz, read_parquet
from experiment.errors import UserError
from experiment.messages import did_you_mean

Array = NDArray[Any]
Missing = Literal["error", "drop"]

READERS = {".npy": read_npy, ".npz": read_npz, ".csv": read_csv, ".csv.gz": read_csv, ".parquet": read_parquet}


def table(
    path: Path,
    *,
    columns: Sequence[str | int] = (),
    drop: Sequence[str | int] = (),
    missing: Missing = "error",
    noise: bool = False,
    validation: int | float = 0.1,
    test: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Rows of numbers from a file, each row one event of shape (columns,).

    A `.npy` file holds a 2-D array, or records with names; a `.npz` file one 2-D array, or a 1-D array for each column.
    A `.csv` or `.csv.gz` file holds comma-separated numbers; its first line is a header if none of its cells is a
    number. A `.parquet` file needs pyarrow. Columns without names go by their places, counted from 0; so do rows in
    messages, without the header and blank lines.

    Missing are NaN, nulls, and empty cells, NA, N/A, null, None and ? of a csv.

    Args:
        path: file to read.
        columns: the columns to take, in this order; all, in the order of the file, where none are given.
        drop: columns to leave out.
        missing: "drop" leaves out rows that lack a value in one of the columns taken, "error" refuses them.
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
    suffix = next((suffix for suffix in READERS if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise UserError(f'{path}: a table cannot be read from a "{path.suffix}" file; use {", ".join(READERS)}.')
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give the path of one that ends in {', '.join(READERS)}.")
    choose = partial(_choose, columns=[str(c) for c in columns], drop=[str(c) for c in drop], path=path)
    names, x = READERS[suffix](path, choose)
    if missing == "drop":
        x = x[~np.isnan(x).any(1)]
    elif (gaps := np.argwhere(np.isnan(x))).size:
        row, column = gaps[0].tolist()
        raise UserError(
            f"{path}: row {row} has no value in column {column_name(column, names)}; fill it in, or leave out such "
            'rows with missing = "drop".'
        )
    rows = torch.from_numpy(x).float()
    check_finite(rows, name=str(path), columns=names)
    if noise:
        rows = torch.from_numpy(spread(x, np.random.default_rng(seed))).float()
    splits = split_rows(rows, validation=validation, test=test, generator=torch.Generator().manual_seed(seed))
    return Dataset(path.name[: -len(suffix)], *splits, columns=names)


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
