"""Files that are whole or absent: written beside their place, flushed to the disk, and renamed into it."""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from experiment.errors import UserError

MAGIC = b"cflows checkpoint 1\n"


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


def map_rows(path: Path) -> torch.Tensor:
    """Rows of a `.npy` file, read when they are needed; what is written to them stays in memory.

    Raises:
        UserError: no such file, or one that is no array or not whole.
    """
    try:
        return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
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


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a state of tensors and plain values: a header, the sha256 of the rest, and torch's own format."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomic(path, MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def load_checkpoint(path: Path, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint; nothing in it is ever executed.

    Raises:
        UserError: a missing file, one that is no checkpoint, one cut short or changed since it was written.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {path} does not exist; train the run first.") from error
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror or error}.") from error
    if not content.startswith(MAGIC):
        raise UserError(f"{path} is not a checkpoint of this program and format: its first line is another.")
    digest, _, payload = content[len(MAGIC) :].partition(b"\n")
    found = hashlib.sha256(payload).hexdigest()
    if found.encode() != digest:
        raise UserError(
            f"checkpoint {path} is truncated or was changed: its content has sha256 {found[:12]}..., but "
            f"{digest.decode(errors='replace')[:12]}... was written."
        )
    state = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds a {type(state).__name__}, not the state of a run.")
    return state
