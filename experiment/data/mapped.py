"""Tables larger than memory: many files, or a large one, prepared once on the disk and then mapped."""

import hashlib
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiment.data.dataset import Dataset, check_finite, split_sizes
from experiment.data.order import drawn_order
from experiment.data.table import Missing, chooser, stacked
from experiment.data.table_chunks import CHUNKS, VALUES
from experiment.errors import UserError
from experiment.files import map_rows, read_json, whole_or_absent, write_json, write_rows

Array = NDArray[Any]
SPLITS = ("train", "validation", "test")
WILD = "*?["
VERSION = 1  # of what is kept


def mapped_table(
    path: Path,
    *,
    columns: Sequence[str | int] = (),
    drop: Sequence[str | int] = (),
    missing: Missing = "error",
    validation: int | float = 0.1,
    test: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Rows of numbers as of `table`, but never all of them in memory: one or many .npy or .parquet files.

    The first use reads the files in the order of their names, some rows at a time, checks every value, deals the rows
    out to the splits in the order that `table` has up to 2²¹ rows, and beyond it in that of a `FeistelOrder`, and
    keeps them in float32 as `mapped-<key>/{train,validation,test}.npy` beside the files. Later uses map these, until
    a file's name, size or time of change, or a setting, is another. Needs the space of two float32 copies at first, and
    of one afterwards.

    Checked by tests/experiment/data/test_data_mapped.py.

    Args:
        path: a file; a folder of files; or a pattern such as `events/part-*.parquet`.
        columns: the columns to take, in this order; all, in the order of the first file, where none are given.
        drop: columns to leave out.
        missing: "drop" leaves out rows that lack a value in one of the columns taken, "error" refuses them.
        validation: validation rows, a float as a fraction of all rows, an int as a number.
        test: test rows, as `validation`.
        seed: of the random split.

    Returns:
        The dataset, `streamed`, with the names of its columns.

    Raises:
        UserError: no such files, or of several kinds or sets of columns; a value that is missing, not finite or no
            number, with its file, row and column; a disk that is full.
    """
    files = _files(path)
    source = _Source(files, tuple(map(str, columns)), tuple(map(str, drop)), missing)
    sizes = partial(split_sizes, validation=validation, test=test)
    folder = path.parent / f"mapped-{_key(source, validation, test, seed)}"
    if not folder.exists():
        _prepare(folder, source, sizes, seed)
    train, held_out, tested = (torch.from_numpy(map_rows(folder / f"{split}.npy")) for split in SPLITS)
    name = path.name if path.is_dir() else path.name[: -len(path.suffix)]
    names = tuple(read_json(folder / "columns.json"))
    return Dataset(name, train, held_out, tested, columns=names, streamed=True)


def is_many(path: Path) -> bool:
    """Whether a path is a folder or a pattern, and not one file."""
    return path.is_dir() or any(sign in path.name for sign in WILD)


@dataclass(frozen=True)
class _Source:
    """The rows that are asked for, by the names of the columns of the first file."""

    files: Sequence[Path]
    columns: tuple[str, ...]
    drop: tuple[str, ...]
    missing: Missing

    def chunks(self) -> Iterator[tuple[tuple[str, ...], Array]]:
        """Names of the columns, the same every time, and some rows in float32, all of them numbers."""
        seen: list[tuple[str, ...]] = []
        for file in self.files:
            for first, found in CHUNKS[file.suffix.lower()](file, partial(self._choose, file, seen)):
                names = tuple(name for name, _ in found)
                x, places = stacked(file, found, missing=self.missing, first_row=first)
                rows = torch.from_numpy(x).float()
                if len(rows):
                    check_finite(rows, name=str(file), columns=names, places=places)
                    yield names, rows.numpy()

    def _choose(self, file: Path, seen: list[tuple[str, ...]], names: tuple[str, ...]) -> list[int]:
        """Places of the columns that are wanted, in the order of the first file, whatever that of this one is."""
        seen.append(names)
        if sorted(names) != sorted(seen[0]):
            raise UserError(
                f"{file}: its columns are {', '.join(names)}, but those of {self.files[0].name} are "
                f"{', '.join(seen[0])}; all files need the same."
            )
        wanted = chooser(file, columns=self.columns, drop=self.drop)(seen[0])
        return [names.index(seen[0][place]) for place in wanted]


def _files(path: Path) -> list[Path]:
    """The .npy or .parquet files of a path, in the order of their names."""
    found = path.iterdir() if path.is_dir() else path.parent.glob(path.name) if is_many(path) else [path]
    files = sorted(file for file in found if file.suffix.lower() in CHUNKS and file.is_file())
    kinds = sorted({file.suffix.lower() for file in files})
    if not files:
        raise UserError(f"{path}: there is no {' or '.join(CHUNKS)} file; rows are mapped from these.")
    if len(kinds) > 1:
        raise UserError(f"{path}: there are {' and '.join(kinds)} files; give a pattern that takes one kind, as *.npy.")
    return files


def _key(source: _Source, *cut: float) -> str:
    """Sixteen hex digits that change with the files and with what is asked of them."""
    stats = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in source.files]
    asked = [VERSION, stats, source.columns, source.drop, source.missing, cut]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _prepare(folder: Path, source: _Source, sizes: Callable[[int], list[int]], seed: int) -> None:
    """Writes the splits; the folder appears whole and checked, or not at all."""
    with _scratch(folder.parent) as scratch:
        rows, prepared = Path(scratch, "rows"), Path(scratch, folder.name)
        names = _write_all(rows, source)
        prepared.mkdir()
        _deal(rows, prepared, len(names), sizes, seed)
        write_json(prepared / "columns.json", names)
        try:
            prepared.rename(folder)
        except OSError:  # another process may have been faster
            if not folder.exists():
                raise


def _scratch(folder: Path) -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(dir=folder)
    except OSError as error:
        raise UserError(
            f"{folder}: rows cannot be prepared there ({error.strerror or error}); put links to the files into a "
            "folder that can be written to."
        ) from error


def _write_all(path: Path, source: _Source) -> tuple[str, ...]:
    """All rows in turn, as nothing but float32; the names of their columns."""
    names: tuple[str, ...] = ()
    with whole_or_absent(path) as file:
        for names, rows in source.chunks():  # noqa: B007
            file.write(rows.data)
    return names


def _deal(path: Path, folder: Path, columns: int, sizes: Callable[[int], list[int]], seed: int) -> None:
    """From all rows in turn to the splits, the rows of each in a random order."""
    count = path.stat().st_size // (4 * max(1, columns))
    parts = sizes(count)
    rows = np.memmap(path, np.float32, mode="r", shape=(count, columns))
    order, step, first = drawn_order(count, seed), max(1, VALUES // columns), 0
    for split, size in zip(SPLITS, parts, strict=True):
        cuts = [*range(first, first + size, step), first + size]
        chunks = (np.asarray(rows)[order[a:b].numpy()] for a, b in itertools.pairwise(cuts))
        write_rows(folder / f"{split}.npy", (size, columns), chunks)
        first += size
