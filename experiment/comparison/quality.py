"""How near a model's draws are to test rows, and what a likelihood and a draw cost."""

import math
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiment.comparison.distances import sliced_wasserstein, squared_mmd
from experiment.data import Dataset
from experiment.files import file_digest, write_arrays
from experiment.likelihood.budget import Array
from experiment.run import Run, load_run

SAMPLE_SEED = 30_000_000
DIRECTIONS = 256


@dataclass(frozen=True)
class Draws:
    """Draws of a run.

    Attributes:
        x: `(count, *event)`.
        seconds: wall time of all.
    """

    x: Array
    seconds: float


@dataclass(frozen=True)
class Quality:
    """Draws of a model against test rows, in standard deviations of each test column, images in units of their range.

    Attributes:
        sliced_wasserstein: SW₂; above 0 of two samples of one law, by what their sizes allow.
        mmd: squared maximum mean discrepancy without bias, the bandwidth being the median distance of test rows.
        sample_ms: wall time of one draw, drawn with the others.
    """

    sliced_wasserstein: float
    mmd: float
    sample_ms: float


def draws_of(run: Run, dataset: Dataset, count: int, *, device: torch.device) -> Draws:
    """Draws of a run from one seed, with the contexts of the first test rows, kept beside it for the next time."""
    path, key = run.path / "draws.npz", file_digest(run.best)
    found = _saved(path, key, count)
    if found is not None:
        return found
    model = load_run(run.path, device=device)
    context = dataset.context("test")
    context = None if context is None else context[torch.arange(count) % len(context)].to(device)
    generator = torch.Generator(device).manual_seed(SAMPLE_SEED)
    started = time.monotonic()
    x = model.sample((count,), context=context, generator=generator).double().cpu().numpy()
    drawn = Draws(x, time.monotonic() - started)
    write_arrays(path, x=x.astype(np.float32), seconds=drawn.seconds, key=key)
    return drawn


def _saved(path: Path, key: str, count: int) -> Draws | None:
    """The draws of these weights, or None where there are none or another number."""
    try:
        with path.open("rb") as file, np.load(file) as saved:
            if str(saved["key"]) == key and len(saved["x"]) == count:
                return Draws(saved["x"].astype(np.float64), float(saved["seconds"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None


def quality(draws: Draws, dataset: Dataset) -> Quality:
    """Distances of draws from as many test rows.

    Checked by tests/experiment/test_quality.py.
    """
    test = dataset.test[: len(draws.x)].double()
    x, y = (_scaled(rows.flatten(1), dataset) for rows in (torch.from_numpy(draws.x), test))
    generator = torch.Generator().manual_seed(SAMPLE_SEED)
    h = float(torch.pdist(y).median())
    return Quality(
        sliced_wasserstein=sliced_wasserstein(x, y, directions=DIRECTIONS, generator=generator),
        mmd=squared_mmd(x, y, h=h) if h > 0 else math.nan,
        sample_ms=1e3 * draws.seconds / len(draws.x),
    )


def floor(dataset: Dataset, count: int) -> Quality:
    """What training rows in the place of draws have: no model should be expected to be nearer."""
    return quality(Draws(dataset.train[:count].double().numpy(), 0.0), dataset)


def _scaled(rows: Tensor, dataset: Dataset) -> Tensor:
    if dataset.image_shape is not None:
        return rows / (1.0 if dataset.bins is None else dataset.bins)
    std = torch.stack([column.double().std() for column in dataset.test.flatten(1).T])  # no copy of all columns at once
    return rows / torch.where(std > 0, std, 1.0)
