import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from experiment.errors import UserError

NAME = ".lock"


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Makes a run folder and keeps every other process from training into it until the block ends.

    A folder into which nothing was written goes again.

    The lock is the operating system's: it ends with the process, however that ends. Checked by
    tests/experiment/training/test_lock.py.

    Raises:
        UserError: the folder cannot be made or written, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / NAME, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"run folder {folder} is in use by another process that trains into it; wait for its end or choose "
            "another --run-dir."
        ) from error
    except OSError as error:
        raise UserError(f"run folder {folder} cannot be written: {error.strerror or error}.") from error
    try:
        yield
    finally:
        if [path.name for path in folder.iterdir()] == [NAME]:
            (folder / NAME).unlink()
            folder.rmdir()
        lock.release()
