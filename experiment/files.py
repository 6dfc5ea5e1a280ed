"""Files that are whole or absent: written beside their place, flushed to the disk, and renamed into it."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from experiment.errors import UserError


@contextlib.contextmanager
def whole_or_absent(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` at the end of the block, or leaves no trace where that fails.

    Raises:
        UserError: the disk or the folder refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces `path` in one step: a reader or a crash sees the old file or the new one, never a part.

    Raises:
        UserError: the disk or the folder refuses.
    """
    with whole_or_absent(path) as file:
        file.write(content)


def write_rows(path: Path, shape: tuple[int, ...], chunks: Iterable[NDArray[Any]]) -> None:
    """Writes a `.npy` file of `shape` in one step, some rows at a time as they come, and holds no more than those.

    Appended and not mapped into memory: a full disk then is an error and no crash.

    Raises:
        UserError: the disk or the folder refuses.
    """
    with whole_or_absent(path) as file:
        for i, rows in enumerate(chunks):
            if i == 0:
                header = {"descr": rows.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(rows).data)


def write_arrays(path: Path, **arrays: Any) -> None:
    """Writes named arrays as a compressed `.npz` file in one step.

    Raises:
        UserError: the disk or the folder refuses.
    """
    with whole_or_absent(path) as file:
        np.savez_compressed(file, **arrays)


def map_rows(path: Path) -> NDArray[Any]:
    """Rows of a `.npy` file, read when they are needed; what is written to them stays in memory.

    Raises:
        UserError: no such file, or one that is no array or not whole.
    """
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); delete {path.parent} to prepare it again.") from error


def file_digest(path: Path) -> str:
    """First 16 hex digits of the sha256 of a file; empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON in one step; numbers that are not finite are refused."""
    write_atomic(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        UserError: a missing or malformed file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable as JSON: {error}.") from error
