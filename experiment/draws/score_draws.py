"""What draws of score models under an SDE can do beside being drawn: guidance, inpainting, motion."""

import math
from pathlib import Path
from typing import overload

from cflows.samplers.sampler import Callback
from experiment.draws.animation import Recorder, check_animation, shown, write_animation
from experiment.draws.drawing import PICTURED, Opened
from experiment.draws.reverse_process import ReverseProcess
from experiment.errors import UserError
from experiment.sections.continuous import ScoreSDEModel


@overload
def score_process(opened: Opened, *, guidance: float | None = None, option: None = None) -> ReverseProcess | None: ...
@overload
def score_process(opened: Opened, *, guidance: float | None = None, option: str) -> ReverseProcess: ...
def score_process(opened: Opened, *, guidance: float | None = None, option: str | None = None) -> ReverseProcess | None:
    """The parts of a score model under an SDE, None where the run is another model.

    Args:
        opened: the run.
        guidance: weight of the labels, which not every run has learned.
        option: of the command line that needs such a model, if one was given.

    Raises:
        UserError: an option or guidance that the run cannot serve.
    """
    process = ReverseProcess.of(opened.model)
    needs = "--guidance" if guidance is not None else option
    if process is None and needs is not None:
        raise UserError(f"{needs} needs a score_sde, but {opened.run.name} is a {opened.kind}.")
    if guidance is not None:
        _check_guidance(opened, guidance)
    return process


def _check_guidance(opened: Opened, guidance: float) -> None:
    if not math.isfinite(guidance):
        raise UserError(f"--guidance must be finite, but is {guidance}.")
    section = opened.run.config.model
    if not opened.classes or not (isinstance(section, ScoreSDEModel) and section.label_dropout):
        raise UserError(
            f"--guidance needs a run that was trained with data.labels=true and model.label_dropout above 0, which "
            f"{opened.run.name} was not."
        )


class Motion:
    """The animation of a reverse process: what its first chunk goes through.

    Args:
        opened: the run.
        path: a .gif or .mp4 file.
        columns: images a line; a square where omitted.

    Raises:
        UserError: a file of another kind, or rows that cannot be shown moving.
    """

    def __init__(self, opened: Opened, path: Path, *, columns: int | None = None) -> None:
        check_animation(path)
        if opened.image_shape is None and opened.model.event_shape.numel() < 2:
            raise UserError("--animate shows images or points of two columns or more, but rows here have one value.")
        self._opened, self._path, self._columns = opened, path, columns
        images = 64 - 64 % (columns or 8)  # whole lines
        self._recorder = Recorder(rows=PICTURED if opened.image_shape is None else images)

    def callback(self, chunk: range) -> Callback | None:
        """What the sampler calls after each step of a chunk: only the first is shown."""
        return self._recorder if chunk.start == 0 else None

    def write(self, process: ReverseProcess) -> Path:
        """Writes it and returns where."""
        opened = self._opened
        images = opened.image_shape is not None
        frames = shown(self._recorder.states(), process.decode, std=process.inner.data_std, images=images)
        write_animation(
            self._path,
            frames,
            image_shape=opened.image_shape,
            bins=opened.run.environment["bins"],
            columns=self._columns,
            title=opened.run.name,
        )
        return self._path
