"""What all draws from a run have in common: their randomness, their labels, and how they reach the disk."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core import GenerativeModel
from core.nets.masked import MaskedMLP
from core.rng import Rng, RowGenerators
from experiment.config import with_sampler
from experiment.data import one_hot
from experiment.device import resolve_device
from experiment.distributed.ranks import ALONE, Ranks
from experiment.errors import NumericalError, UserError
from experiment.files import write_atomic, write_rows
from experiment.plots import png, sample_figure
from experiment.run import Run, load_model, open_run
from experiment.threads import set_threads

# No picture shows more rows.
PICTURED = 4000

Written = tuple[Path, ...]  # the .npy file, the picture, and what else there is
Draw = Callable[[range, Rng], Tensor]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A run that is drawn from.

    Attributes:
        run: the run, with the sampler that was asked for.
        model: its model.
        device: where it is.
    """

    run: Run
    model: GenerativeModel
    device: torch.device

    @property
    def kind(self) -> str:
        """Of the model."""
        return self.run.config.model.kind

    @property
    def classes(self) -> int:
        """Classes that the model knows, 0 for none."""
        return int(self.run.environment.get("classes", 0))

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """Of a row as an image, None where it is none."""
        shape = self.run.environment["image_shape"]
        return None if shape is None else tuple(shape)

    def context(self, labels: Tensor | None) -> Tensor | None:
        """What the model is told of rows with these labels."""
        return None if labels is None else one_hot(labels, self.classes).to(self.device)


def open_for_draws(
    run: str | Path, *, settings: Sequence[str] = (), device: str, threads: int, ranks: Ranks = ALONE
) -> Opened:
    """The trained model of a run, perhaps with another sampler.

    Raises:
        UserError: no run, a damaged checkpoint, no such device, or settings that the sampler does not know.
    """
    place = ranks.place(resolve_device(device))
    folder = open_run(run)
    folder = replace(folder, config=with_sampler(folder.config, settings))
    model = load_model(folder, device=place)
    in_steps = any(isinstance(module, MaskedMLP) for module in model.modules())
    set_threads(threads or (1 if in_steps else 0), model)  # each step is too small to share
    return Opened(run=folder, model=model, device=place)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which rows are drawn, from what randomness, and how many at a time.

    Attributes:
        count: number of rows.
        seed: of the generator that serves all rows, one chunk after the other.
        seeds: one a row instead: a row then depends neither on its chunk nor on the other rows, up to rounding.
        chunk: most rows at a time.
        ranks: the processes that the chunks are dealt to.

    Raises:
        UserError: a count or chunk below 1, seeds that are out of range or not `count` many, or several processes
            without seeds and chunks.
    """

    count: int
    seed: int = 0
    seeds: Sequence[int] | None = None
    chunk: int | None = None
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        if self.ranks.world > 1 and (self.seeds is None or self.chunk is None):
            raise UserError(
                f"{self.ranks.world} processes share draws by --seeds, one a sample, and --chunk: what comes of a "
                "single --seed depends on all that was drawn before."
            )
        for name, value in {"count": self.count, "chunk": self.chunk}.items():
            if value is not None and value < 1:
                raise UserError(f"--{name} must be 1 or more, but is {value}.")
        for name, seeds in {"seed": (self.seed,), "seeds": self.seeds or ()}.items():
            bad = next((seed for seed in (min(seeds), max(seeds)) if not 0 <= seed < 2**63), None) if seeds else None
            if bad is not None:
                raise UserError(f"--{name} must lie within 0 and 2**63 - 1, but is {bad}.")
        if self.seeds is not None and len(self.seeds) != self.count:
            raise UserError(f"--seeds gives {len(self.seeds)} rows a seed, but --count is {self.count}.")

    def chunks(self) -> Iterator[range]:
        """The rows of each chunk."""
        size = self.chunk or self.count
        return (range(start, min(start + size, self.count)) for start in range(0, self.count, size))

    def randomness(self, device: torch.device) -> Iterator[tuple[range, Rng]]:
        """The rows of each chunk, and what they are drawn from."""
        shared = torch.Generator(device).manual_seed(self.seed)
        for rows in self.chunks():
            yield rows, shared if self.seeds is None else RowGenerators(self.seeds[rows.start : rows.stop])


def check_out(out: Path | None) -> None:
    """Refuses a file of samples that is no .npy."""
    if out is not None and out.suffix != ".npy":
        raise UserError(f"--out must end in .npy, beside which the picture goes, but is {out}.")


def chosen_labels(opened: Opened, labels: Sequence[int] | None) -> Sequence[int]:
    """The labels that are drawn in turn: those asked for, else all that the model knows.

    Raises:
        UserError: a label that the model does not know.
    """
    if labels is not None and not opened.classes:
        raise UserError(f"--label needs a run that was trained with data.labels=true, which {opened.run.name} was not.")
    for label in labels or ():
        if not 0 <= label < opened.classes:
            raise UserError(f"--label must lie within 0 and {opened.classes - 1}, but is {label}.")
    return range(opened.classes) if labels is None else labels


def labels_in_turn(labels: Sequence[int], rows: range) -> Tensor | None:
    """The label of each row, in turn; None where there are no labels."""
    return torch.tensor(labels)[torch.arange(rows.start, rows.stop) % len(labels)] if labels else None


def stream(opened: Opened, rows: Rows, draw: Draw) -> Iterator[Tensor]:
    """Draws chunk by chunk, which the processes share; all get the whole.

    Raises:
        UserError: a model or sampler that cannot give each row a generator of its own.
        NumericalError: a draw that is not finite, or a solver that does not get there.
    """
    ranks, waiting = rows.ranks, rows.randomness(opened.device)
    while turn := list(islice(waiting, ranks.world)):
        mine = []
        for chunk, generator in ranks.share(turn):
            with one_sentence(opened):
                x = draw(chunk, generator)
            check_finite(opened, x, first=chunk.start)
            mine.append(x)
        yield from ranks.merged(mine)


@contextmanager
def one_sentence(opened: Opened) -> Iterator[None]:
    """What a sampler or a solver cannot do, told to the user.

    Raises:
        UserError: settings that do not serve, such as a tolerance below the precision, or a generator for each row.
        NumericalError: a solver that does not get there.
    """
    try:
        yield
    except (UserError, NumericalError):
        raise
    except TypeError as error:
        if "RowGenerators" not in str(error):
            raise
        raise UserError(f"--seeds: {error}") from error
    except ValueError as error:
        raise UserError(f"{opened.run.name}: {error}") from error
    except RuntimeError as error:
        raise NumericalError(f"{opened.run.name}: draws could not be computed: {error}".splitlines()[0]) from error


def check_finite(opened: Opened, x: Tensor, *, first: int = 0) -> None:
    """Refuses rows that are not finite."""
    bad = (~x.flatten(1).isfinite().all(1)).nonzero()
    if len(bad):
        raise NumericalError(f"{opened.run.name}: sample {first + bad[0].item()} is not finite.")


def write_stream(out: Path, shape: tuple[int, ...], chunks: Iterator[Tensor]) -> NDArray[np.float64]:
    """Writes draws as they come, and returns as many of the first as a picture shows."""
    shown: list[NDArray[np.float64]] = []

    def arrays() -> Iterator[NDArray[np.generic]]:
        for x in chunks:
            array = x.cpu().numpy()
            left = PICTURED - sum(map(len, shown))
            if left > 0:
                shown.append(array[:left].astype(np.float64))
            yield array

    write_rows(out, shape, arrays())
    return np.concatenate(shown)


def write_picture(
    opened: Opened, out: Path, samples: dict[str, NDArray[np.float64]], *, title: str, columns: int | None = None
) -> Path:
    """A picture beside the draws, of them or of several kinds of rows side by side."""
    path = out.with_suffix(".png")
    bins, image_shape = opened.run.environment["bins"], opened.image_shape
    figure = sample_figure(samples, image_shape=image_shape, bins=bins, columns=columns, title=title)
    write_atomic(path, png(figure))
    return path


def write_labels(out: Path, rows: Rows, labels: Sequence[int]) -> Path:
    """The labels that draws have in turn, int64, in a file beside theirs."""
    path = labels_path(out)
    chunks = (labels_in_turn(labels, chunk) for chunk in rows.chunks())
    write_rows(path, (rows.count,), (part.numpy() for part in chunks if part is not None))
    return path


def labels_path(out: Path) -> Path:
    """Where the labels of draws lie."""
    return out.with_name(f"{out.stem}_labels.npy")
