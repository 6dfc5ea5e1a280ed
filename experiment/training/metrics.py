import contextlib
import json
from pathlib import Path
from typing import IO, Any

from experiment.errors import UserError
from experiment.files import write_atomic


class MetricsLog:
    """`metrics.jsonl`, one object a line with its step, and TensorBoard beside it where asked.

    Args:
        path: the file; lines beyond `after` are dropped, since the steps come again. None for a process that leaves
            writing to another.
        after: last step that the run goes on from.
        tensorboard: also write TensorBoard events into the same folder.

    Raises:
        UserError: TensorBoard is asked for but not installed.
    """

    def __init__(self, path: Path | None, *, after: int, tensorboard: bool) -> None:
        self._file: IO[str] | None = None
        self._board: Any = None
        if path is None:
            return
        kept = (
            [line for line in path.read_text(errors="replace").splitlines() if _step(line) <= after]
            if path.exists()
            else []
        )
        write_atomic(path, "".join(line + "\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8", buffering=1)
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError("--tensorboard needs the extra: pip install 'cflows[tensorboard]'.") from error
            self._board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=after + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line.

        Raises:
            UserError: the disk refuses.
        """
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise UserError(f"{self._file.name} cannot be written: {error.strerror or error}.") from error
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a line that a full disk refused, as `write` has said
                self._file.close()
        if self._board is not None:
            self._board.close()


def _step(line: str) -> float:
    """Step of a line; a line cut short by a crash is dropped."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
