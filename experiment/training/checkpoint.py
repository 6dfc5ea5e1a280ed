"""Checkpoints: one file, never executable, checked by its hash; the one before the last is kept for a bad day."""

import hashlib
import io
import os
import pickle
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiment.errors import UserError
from experiment.files import write_atomic

FORMAT = 1
NAME = b"cflows checkpoint "


def save_checkpoint(path: Path, state: dict[str, Any], *, keep: Path | None = None) -> None:
    """Writes a state of tensors and plain values: name and format, the sha256 of the rest, and torch's own format.

    At no moment is there no whole file. Checked by tests/experiment/training/test_checkpoint.py.

    Args:
        path: the file, which is replaced.
        state: what it holds.
        keep: where the file that is replaced goes.

    Raises:
        UserError: the disk or the folder refuses.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    if keep is not None and path.exists():
        _second_name(path, keep)
    write_atomic(path, b"%s%d\n%s\n%s" % (NAME, FORMAT, hashlib.sha256(payload).hexdigest().encode(), payload))


def load_checkpoint(path: Path, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint; nothing in it is ever executed.

    Args:
        path: the file.
        device: where its tensors go.

    Raises:
        UserError: a missing file, one that is no checkpoint or of another format, one cut short or changed since it was
            written.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {path} does not exist; train the run first.") from error
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror or error}.") from error
    first, _, rest = content.partition(b"\n")
    if not re.fullmatch(re.escape(NAME) + rb"\d{1,9}", first):
        raise UserError(f"{path} is not a checkpoint of this program: its first line is another.")
    if int(first.removeprefix(NAME)) != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {int(first.removeprefix(NAME))}, but this version reads {FORMAT}."
        )
    digest, _, payload = rest.partition(b"\n")
    found = hashlib.sha256(payload).hexdigest()
    if found.encode() != digest:
        raise UserError(
            f"checkpoint {path} is truncated or was changed: its content has sha256 {found[:12]}..., but "
            f"{digest[:64].decode(errors='replace')[:12]}... was written."
        )
    try:
        state = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path} holds more than tensors and plain values, or none: {reason}") from error
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds a {type(state).__name__}, not the state of a run.")
    return state


def load_newest(paths: Sequence[Path]) -> tuple[Path, dict[str, Any]]:
    """The first of some checkpoints, the newest first, that is whole, with a warning of the bad ones before it.

    Raises:
        UserError: none is; the sentence is that of the first.
    """
    refusals: list[UserError] = []
    for path in paths:
        try:
            state = load_checkpoint(path)
        except UserError as refusal:
            refusals.append(refusal)
            continue
        if refusals:
            warnings.warn(f"{refusals[0]} Going on from {path}, written before it.", stacklevel=2)
        return path, state
    raise refusals[0]


def _second_name(path: Path, keep: Path) -> None:
    """Another name for the same file, which stays whole when `path` is replaced."""
    temporary = keep.with_name(f".{keep.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
        temporary.replace(keep)
    except OSError:  # a file system without links
        write_atomic(keep, path.read_bytes())
