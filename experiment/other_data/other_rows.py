"""Rows of other data as a trained run takes them: a config file's test split, a file, or a folder of images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from experiment.building.builder import load_data
from experiment.config import read_toml
from experiment.data import Dataset
from experiment.data.dataset import Layout, check_finite, check_levels, lay_out
from experiment.data.image_folder import read_images
from experiment.data.spread import resolution
from experiment.data.table import Missing, first_places, read_table
from experiment.errors import UserError
from experiment.likelihood.budget import Array
from experiment.messages import describe
from experiment.run import Run
from experiment.sections.base import Section
from experiment.sections.data import Data, ImageFolderData, TableData, UCISmallData

SPREAD_SEED = 40_000_000


class Named(Section):
    """The part of a config file that names data."""

    data: Annotated[Data, Field(discriminator="kind")]


@dataclass(frozen=True, eq=False)
class OtherRows:
    """Rows that a run was not trained on.

    Attributes:
        name: what tables call them.
        x: `(rows, *event)`, float32.
        places: of the rows in their file or split, from 0.
    """

    name: str
    x: Tensor
    places: Tensor


def other_rows(source: Path, run: Run, dataset: Dataset, *, root: Path) -> OtherRows:
    """Rows in the shape, levels and columns of a run, so that its model and its preprocessing take them as they are.

    Checked by tests/experiment/other_data/test_other_rows.py.

    Args:
        source: a config file, of whose `[data]` the test split counts; a table with the run's columns, in any order; a
            .npy file of events; or a folder of images.
        run: the run.
        dataset: its data.
        root: folder of the data files of a config file.

    Raises:
        UserError: no such source, or rows of another shape, other levels or other columns.
    """
    if source.suffix == ".toml":
        found = _of_config(source, dataset, root)
    elif source.is_dir():
        found = _of_folder(source, run, dataset)
    else:
        found = _of_file(source, run, dataset)
    if found.x.shape[1:] != dataset.event_shape:
        raise UserError(
            f"{source} has rows of shape {tuple(found.x.shape[1:])}, but run {run.name} was trained on rows of shape "
            f"{tuple(dataset.event_shape)}."
        )
    if not len(found.x):
        raise UserError(f"{source} holds no rows to score.")
    check_finite(found.x, name=str(source), columns=dataset.columns)
    if dataset.bins is not None:
        check_levels(found.x, dataset.bins, name=str(source), columns=dataset.columns)
    return found


def _of_config(path: Path, dataset: Dataset, root: Path) -> OtherRows:
    table = read_toml(path)
    try:
        named = Named.model_validate({key: table[key] for key in Named.model_fields if key in table})
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, Named)}") from error
    other = load_data(named.data, root)
    if other.bins != dataset.bins:
        here, there = ("continuous" if bins is None else f"of {bins} levels" for bins in (dataset.bins, other.bins))
        raise UserError(f"{path}: {other.name} is {there}, but the run was trained on {dataset.name}, which is {here}.")
    ours, theirs = (None if _places(d.columns) else d.columns for d in (dataset, other))
    if ours is not None and theirs is not None and ours != theirs:
        raise UserError(f"{path}: its columns are {', '.join(theirs)}, but the run's are {', '.join(ours)}.")
    return OtherRows(path.stem if other.name == dataset.name else other.name, other.test, torch.arange(len(other.test)))


def _of_folder(folder: Path, run: Run, dataset: Dataset) -> OtherRows:
    """Images cut and resized as those of the run, where those were."""
    if dataset.image_shape is None or dataset.bins != 256:
        raise UserError(f"{folder} is a folder of images, but run {run.name} was not trained on images of 256 levels.")
    section = run.config.data
    size = section.size if isinstance(section, ImageFolderData) else None
    images = read_images(folder, size=size, colour=len(dataset.image_shape) == 3)
    layout: Layout = "flat" if len(dataset.event_shape) == 1 else "image"
    return OtherRows(folder.name, lay_out(images, layout), torch.arange(len(images)))


def _of_file(path: Path, run: Run, dataset: Dataset) -> OtherRows:
    section = run.config.data
    if isinstance(section, UCISmallData) and section.noise:
        raise UserError(
            f"{path}: rows of {dataset.name} were spread over the gaps of its columns, which those of a file are not; "
            "train with data.noise=false, or name a config file."
        )
    if path.suffix == ".npy" and len(shape := _shape(path)) > 2:
        events = torch.from_numpy(np.load(path, allow_pickle=False)).float()
        if dataset.image_shape is not None and tuple(shape[1:]) == dataset.image_shape:
            events = events.reshape(len(events), *dataset.event_shape)
        return OtherRows(path.stem, events, torch.arange(len(events)))
    names = () if _places(dataset.columns) and not isinstance(section, TableData) else dataset.columns or ()
    gaps: Missing = "keep" if isinstance(section, TableData) and section.missing == "drop" else "error"
    _, x = read_table(path, columns=names, missing=gaps)
    places = np.flatnonzero(~np.isnan(x).any(1))
    x = x[places]
    if isinstance(section, TableData) and section.noise:
        x = x + _gaps_of(section, run) * (np.random.default_rng(SPREAD_SEED).random(x.shape) - 0.5)
    rows = torch.from_numpy(x).float()
    if rows.shape[1] == dataset.event_shape.numel():
        rows = rows.reshape(len(rows), *dataset.event_shape)
    return OtherRows(path.name.partition(".")[0], rows, torch.from_numpy(places))


def _gaps_of(section: TableData, run: Run) -> Array:
    """Over which the training rows were spread: those of the run's own table."""
    path = Path(run.environment["data_root"]) / section.path
    _, x = read_table(path, columns=section.columns, drop=section.drop, missing=section.missing)
    return resolution(x[first_places(x)] if section.duplicates == "drop" else x)


def _places(columns: tuple[str, ...] | None) -> bool:
    """Whether columns have no names but their places."""
    return columns is None or all(name.isdecimal() for name in columns)


def _shape(path: Path) -> tuple[int, ...]:
    """Of an array in a file, from its header."""
    try:
        return np.lib.format.open_memmap(path, mode="r").shape
    except (OSError, ValueError):
        return ()  # the reader of tables says what is wrong
