"""Results of batches that outlast the process that computes them."""

import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiment.errors import UserError
from experiment.files import whole_or_absent
from experiment.likelihood.budget import Array

SECONDS = 20.0  # between two writings: a crash loses at most the batches of this time


class Partial:
    """A file of what has been found so far, `(fields, rows)` a batch, as long as it is the same work.

    Checked by tests/experiment/likelihood/test_partial.py.

    Args:
        path: the file; nothing is kept where it is None.
        key: names the work: model, rows, noise, solver. What was kept of another is not taken.
    """

    def __init__(self, path: Path | None, *, key: str) -> None:
        self.path, self.key = path, key
        self._written = time.monotonic()

    def load(self) -> list[Array]:
        """The first batches of the work, as far as they are there; none of a file that is bad or another's."""
        if self.path is None:
            return []
        try:
            with self.path.open("rb") as file, np.load(file) as kept:
                if str(kept["key"]) != self.key:
                    return []
                return np.split(kept["values"], np.cumsum(kept["rows"])[:-1], axis=1)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return []

    def keep(self, found: Sequence[Sequence[Array] | Array]) -> None:
        """Writes all of the batches, where the last writing was a while ago.

        Raises:
            UserError: the disk or the folder refuses.
        """
        if self.path is None or time.monotonic() - self._written < SECONDS:
            return
        values = [np.stack(tuple(batch)) for batch in found]
        rows = np.array([len(batch[0]) for batch in found])
        with whole_or_absent(self.path) as file:
            np.savez(file, key=np.array(self.key), values=np.concatenate(values, axis=1), rows=rows)
        self._written = time.monotonic()

    def drop(self) -> None:
        """Removes the file: the whole has been written.

        Raises:
            UserError: the folder refuses.
        """
        if self.path is not None:
            try:
                self.path.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"{self.path} cannot be removed: {error.strerror or error}.") from error


NOTHING_KEPT = Partial(None, key="")
