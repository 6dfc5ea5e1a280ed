import csv
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiment.data.dataset import Dataset, check_finite, split_rows
from experiment.errors import UserError


def table(path: Path, *, validation: int | float = 0.1, test: int | float = 0.1, seed: int = 0) -> Dataset:
    """Rows of numbers from a file, each row one event of shape (columns,).

    A `.npy` file holds a 2-D array. A `.csv` file holds comma-separated numbers; its first line is a header if none of
    its cells is a number. Error messages count rows and columns from 0, without the header and blank lines.

    Args:
        path: file to read.
        validation: validation rows, a float as a fraction of all rows, an int as a number.
        test: test rows, as `validation`.
        seed: seed of the random split.

    Returns:
        The dataset, named after the file.

    Raises:
        UserError: the file is missing or not a table of finite numbers, or too short to split.
    """
    if path.suffix not in {".npy", ".csv"}:
        raise UserError(f'{path}: a table cannot be read from a "{path.suffix}" file; use .npy or .csv.')
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give the path of a .npy or .csv file.")
    rows = _read_npy(path) if path.suffix == ".npy" else _read_csv(path)
    check_finite(rows, name=str(path))
    generator = torch.Generator().manual_seed(seed)
    return Dataset(path.stem, *split_rows(rows, validation=validation, test=test, generator=generator))


def _read_npy(path: Path) -> Tensor:
    """A 2-D array of real numbers as float32."""
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{path}: this is not an array of plain numbers; write it with numpy.save.") from error
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "iuf":
        raise UserError(
            f"{path}: found {array.dtype} values in shape {array.shape}; a table is (rows, columns) of real numbers."
        )
    return torch.from_numpy(array.astype(np.float64)).float()


def _read_csv(path: Path) -> Tensor:
    """The numbers below the header as float32."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [cells for cells in csv.reader(file) if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: this is not comma-separated text ({error}); save it as UTF-8 csv.") from error
    if lines and not any(_is_number(cell) for cell in lines[0]):
        del lines[0]
    if not lines:
        raise UserError(f"{path}: the file holds no rows of numbers; a table needs at least three.")
    numbers = [_parse(cells, row, width=len(lines[0]), path=path) for row, cells in enumerate(lines)]
    return torch.tensor(numbers, dtype=torch.float64).float()


def _parse(cells: list[str], row: int, *, width: int, path: Path) -> list[float]:
    """The numbers of one row."""
    if len(cells) != width:
        raise UserError(f"{path}: row {row} has {len(cells)} columns and row 0 has {width}; all rows need the same.")
    for column, cell in enumerate(cells):
        if not _is_number(cell):
            raise UserError(f"{path}: row {row} holds {cell!r} in column {column}; every cell must be a number.")
    return [float(cell) for cell in cells]


def _is_number(cell: str) -> bool:
    """Whether the text reads as a float."""
    try:
        float(cell)
    except ValueError:
        return False
    return True
