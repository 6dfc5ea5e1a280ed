"""Moving pictures of a reverse process."""

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, PillowWriter
from numpy.typing import NDArray
from torch import Tensor

from experiment.errors import UserError
from experiment.files import write_atomic
from experiment.plots import moving_figure

FRAMES = 24
FRAMES_PER_SECOND = 12
HELD = 12  # frames that the end is shown

Array = NDArray[np.float64]


class Recorder:
    """A sampler's callback that keeps some states, evenly spread over however many there will be.

    Whenever twice `FRAMES` are kept, every other one goes and from then on half as many come.

    Args:
        rows: of each state, the first ones.

    Example:
        >>> import torch
        >>> recorder = Recorder(rows=1)
        >>> for step in range(-1, 1000):
        ...     recorder(step, torch.tensor([[float(step)]]))
        >>> kept = [state.item() for state in recorder.states()]
        >>> kept[:3], kept[-1], len(kept)
        ([-1.0, 31.0, 63.0], 999.0, 33)
    """

    def __init__(self, *, rows: int) -> None:
        self._rows, self._every = rows, 1
        self._kept: list[Tensor] = []
        self._last: tuple[int, Tensor] | None = None

    def __call__(self, step: int, x: Tensor) -> None:
        """Hears of the state after a step, of the start as step -1."""
        self._last = step + 1, x
        if (step + 1) % self._every == 0:
            self._kept.append(x[: self._rows].detach().cpu().clone())
        if len(self._kept) == 2 * FRAMES:
            self._kept, self._every = self._kept[::2], 2 * self._every

    def states(self) -> list[Tensor]:
        """What was kept, the start first and the end last."""
        if self._last is None:
            return []
        count, x = self._last
        return self._kept if count % self._every == 0 else [*self._kept, x[: self._rows].cpu()]


def shown(states: Sequence[Tensor], decode: Callable[[Tensor], Tensor], *, std: float, images: bool) -> list[Array]:
    """The states as raw data; noise of images is damped to twice the spread of data, so that it stays grey.

    Args:
        states: of the reverse process.
        decode: to raw data.
        std: standard deviation of the data that the model sees.
        images: whether rows are images.
    """
    frames = []
    for i, x in enumerate(states):
        spread = x.square().mean().sqrt() / (2 * std)
        damped = x / spread.clamp(min=1.0) if images and i < len(states) - 1 else x
        frames.append(decode(damped).double().cpu().numpy())
    return frames


def check_animation(path: Path) -> None:
    """Refuses a file that is neither .gif nor .mp4, and an .mp4 where there is no ffmpeg.

    Raises:
        UserError: as above.
    """
    if path.suffix not in (".gif", ".mp4"):
        raise UserError(f"--animate must end in .gif or .mp4, but is {path}.")
    if path.suffix == ".mp4" and not FFMpegWriter.isAvailable():
        raise UserError(f"--animate {path} needs ffmpeg, which is not installed here; a .gif needs nothing.")
    if not path.parent.is_dir():
        raise UserError(f"--animate {path} has no folder to go to: {path.parent} does not exist.")


def write_animation(
    path: Path,
    frames: Sequence[Array],
    *,
    image_shape: tuple[int, ...] | None,
    bins: int | None,
    columns: int | None = None,
    title: str,
) -> None:
    """Writes rows that move, `(rows, *event)` a frame, as .gif or .mp4 in one step.

    Raises:
        UserError: the disk refuses, or ffmpeg does.
    """
    kinds = {".gif": PillowWriter, ".mp4": FFMpegWriter}
    writer: AbstractMovieWriter = kinds[path.suffix](fps=FRAMES_PER_SECOND)
    figure, show = moving_figure(frames[-1], image_shape=image_shape, bins=bins, columns=columns, title=title)
    with tempfile.TemporaryDirectory() as folder:
        moving = Path(folder) / f"moving{path.suffix}"
        try:
            with writer.saving(figure, str(moving), dpi=120):
                for frame in [*frames, *[frames[-1]] * HELD]:
                    show(frame)
                    writer.grab_frame()
        except (subprocess.CalledProcessError, BrokenPipeError) as error:
            raise UserError(f"--animate {path}: ffmpeg failed; a .gif needs nothing.") from error
        write_atomic(path, moving.read_bytes())
