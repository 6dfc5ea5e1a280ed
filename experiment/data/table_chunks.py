"""Readers of tables that may be larger than memory: some rows at a time."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from experiment.data.optional import optional
from experiment.data.table_files import Choose, Columns, from_array, from_arrow
from experiment.errors import UserError

VALUES = 2**20  # at a time: 8 MiB in float64
BUFFER = 2**16  # bytes of each column of a .parquet file that are read together

Chunks = Iterator[tuple[int, Columns]]


def npy_chunks(path: Path, choose: Choose) -> Chunks:
    """The first row's place and the columns of some rows after one another, of what `read_npy` reads."""
    try:
        array = np.atleast_1d(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: this is not an array of plain numbers; write it with numpy.save.") from error
    size = _rows(array[:1].size * len(array.dtype.names or [""]))
    for first in range(0, max(1, len(array)), size):
        yield first, from_array(path, array[first : first + size], choose)


def parquet_chunks(path: Path, choose: Choose) -> Chunks:
    """As `npy_chunks`, of a .parquet file, row group by row group."""
    purpose = f"{path}: a .parquet file"
    arrow, parquet = optional("pyarrow", purpose=purpose), optional("pyarrow.parquet", purpose=purpose)
    try:
        # What is read ahead would stay until the file is closed.
        with parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            names = tuple(file.schema_arrow.names)
            wanted = [names[place] for place in choose(names)]
            first = 0
            for batch in file.iter_batches(batch_size=_rows(len(wanted)), columns=wanted):
                yield first, from_arrow(batch, wanted)
                first += len(batch)
    except (OSError, arrow.ArrowException) as error:
        raise UserError(f"{path}: this is no readable .parquet file ({str(error).splitlines()[0]}).") from error


def _rows(columns: int) -> int:
    return max(1, VALUES // max(1, columns))


CHUNKS: dict[str, Callable[[Path, Choose], Chunks]] = {".npy": npy_chunks, ".parquet": parquet_chunks}
