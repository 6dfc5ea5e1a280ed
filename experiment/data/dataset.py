import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor

from experiment.data.labels import Labels, one_hot
from experiment.errors import UserError

Layout = Literal["flat", "image"]
Split = Literal["train", "validation", "test"]
Columns = tuple[str, ...] | None
Places = Sequence[int] | NDArray[Any]

VALUES = 2**22  # that are looked at together: rows of a file larger than memory are never copied as a whole


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows that a model is fitted to (train), tuned on (validation) and judged by (test).

    Every value is finite, no split is empty and the three have one event shape: construction checks it.

    Attributes:
        name: what tables and error messages call the data.
        train: rows for the optimiser, (rows, *event) float32.
        validation: rows for early stopping and choices, (rows, *event) float32.
        test: rows for the reported likelihood, (rows, *event) float32.
        bins: number of levels of integer data, whose values are the whole numbers 0..bins-1; None for continuous data.
        image_shape: (height, width), or (3, height, width) in colour, to draw a row as an image.
        entropy_nats: differential entropy of the source, the best reachable test loss, where it is known.
        labels: the class of each row, where models are to know it.
        columns: names of the values of a row, where they have some; a name of digits is a place in the file.
        streamed: whether the rows may be more than memory holds: they are mapped from files, and go to the device batch
            by batch.

    Raises:
        UserError: a split is empty or has another event shape, a value is not finite or not one of the levels, or there
            are not as many labels as rows or names as columns.

    Example:
        >>> Dataset("pairs", train=torch.zeros(8, 2), validation=torch.zeros(1, 2), test=torch.ones(1, 2)).event_shape
        torch.Size([2])
    """

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    bins: int | None = None
    image_shape: tuple[int, ...] | None = None
    entropy_nats: float | None = None
    labels: Labels | None = None
    columns: Columns = None
    streamed: bool = False

    def __post_init__(self) -> None:
        if self.columns is not None and (len(self.columns),) != self.event_shape:
            raise UserError(
                f"{self.name}: there are {len(self.columns)} names of columns for rows of shape "
                f"{tuple(self.event_shape)}; each column needs one."
            )
        for split, x in {"training": self.train, "validation": self.validation, "test": self.test}.items():
            if len(x) == 0:
                raise UserError(f"{self.name}: the {split} split is empty; it needs at least one row.")
            if x.shape[1:] != self.event_shape:
                raise UserError(
                    f"{self.name}: the {split} rows have shape {tuple(x.shape[1:])} and the training rows "
                    f"{tuple(self.event_shape)}; all splits need the same."
                )
            check_finite(x, name=self.name, where=f" of the {split} split", columns=self.columns)
            if self.bins is not None:
                check_levels(x, self.bins, name=self.name, where=f" of the {split} split", columns=self.columns)
        if self.labels is not None:
            _check_counts(self)

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one row."""
        return self.train.shape[1:]

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the sha256 of the test rows: two runs compare only on equal test rows.

        Rows are hashed flattened, because a density does not change when its event is reshaped: the same images as
        vectors and as (channels, height, width) have the same fingerprint. Labels, where there are any, belong to them.
        """
        return _digest(self.test, *([self.labels.test] if self.labels else []))

    @property
    def digest(self) -> str:
        """First 16 hex digits of the sha256 of all three splits: a run goes on only on the rows that it began with."""
        labels = self.labels
        classes = [] if labels is None else [labels.train, labels.validation, labels.test]
        return _digest(self.train, self.validation, self.test, *classes)

    @property
    def classes(self) -> int:
        """Number of classes, 0 without labels: the width of a context."""
        return 0 if self.labels is None else self.labels.classes

    def context(self, split: Split) -> Tensor | None:
        """What a model is told of each row of a split: its class as one-hot, `(rows, classes)`; None without labels."""
        return None if self.labels is None else one_hot(getattr(self.labels, split), self.labels.classes)


def _digest(*splits: Tensor) -> str:
    total = hashlib.sha256()
    for split in splits:
        rows = split.flatten(1) if split.ndim > 1 else split
        total.update(str(tuple(rows.shape)).encode())
        for part in rows.split(rows_at_once(rows)):
            total.update(part.cpu().contiguous().numpy())
    return total.hexdigest()[:16]


def rows_at_once(x: Tensor) -> int:
    """As many rows as hold `VALUES` values, 1 or more."""
    return max(1, VALUES // max(1, x[:1].numel()))


def check_finite(
    x: Tensor, *, name: str, where: str = "", columns: Columns = None, places: Places | None = None
) -> None:
    """Refuse NaN and infinity.

    Args:
        x: values, (rows, *event).
        name: what the message calls the data.
        where: which part of the data the rows count in, put after the row's number.
        columns: names of the columns, where they have some.
        places: what the rows count as, where that is not 0, 1, 2, ….

    Raises:
        UserError: names the first row and column that hold such a value.
    """
    places = range(len(x)) if places is None else places
    remedy, size = "remove the row or fill it in", rows_at_once(x)
    for i, part in enumerate(x.split(size)):
        low, high = part.aminmax()
        if not (low.isfinite() and high.isfinite()):  # both are NaN where a value is; and no copy of x is made
            of_part = places[i * size :]
            _refuse(~part.isfinite(), part, name, where=where, remedy=remedy, columns=columns, places=of_part)


def split_rows(
    x: Tensor, *, validation: int | float, test: int | float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Split at random into train, validation and test; the training split takes what the others leave.

    Args:
        x: rows, (rows, *event).
        validation: a float is a fraction of the rows, an int a number of rows.
        test: as `validation`.
        generator: source of the random order.

    Returns:
        The training, validation and test rows.

    Raises:
        UserError: one of the three splits would be empty.

    Example:
        >>> parts = split_rows(torch.arange(10), validation=0.1, test=2, generator=torch.Generator().manual_seed(0))
        >>> [len(part) for part in parts]
        [7, 1, 2]
    """
    sizes = split_sizes(len(x), validation=validation, test=test)
    train, held_out, tested = torch.randperm(len(x), generator=generator).split(sizes)
    return x[train], x[held_out], x[tested]


def split_sizes(rows: int, *, validation: int | float, test: int | float) -> list[int]:
    """Rows of the training, validation and test split, as `split_rows` cuts them.

    Raises:
        UserError: one of the three would be empty.
    """
    counts = [round(part * rows) if isinstance(part, float) else part for part in (validation, test)]
    sizes = [rows - sum(counts), *counts]
    if min(sizes) < 1:
        raise UserError(
            f"validation={validation} and test={test} cut {rows} rows into {sizes[0]} for training, {sizes[1]} for "
            f"validation and {sizes[2]} for test; each needs at least one."
        )
    return sizes


def lay_out(images: Tensor, layout: Layout) -> Tensor:
    """Images as rows of a dataset.

    Args:
        images: grey (rows, height, width), or (rows, channels, height, width).
        layout: "flat" for vectors, "image" for channels first, one of them for grey images.

    Returns:
        (rows, channels * height * width) or (rows, channels, height, width).

    Raises:
        UserError: the layout is neither.
    """
    if layout == "flat":
        return images.flatten(1)
    if layout == "image":
        return images if images.ndim == 4 else images.unsqueeze(1)
    raise UserError(f'layout: found "{layout}"; use "flat" or "image".')


def check_validation_rows(validation_rows: int, name: str, *, rows: int) -> None:
    """Refuses to hold out none of the training rows of a data set, or all of them."""
    if not 0 < validation_rows < rows:
        raise UserError(f"validation_rows: found {validation_rows}; {name} takes 1 to {rows - 1}.")


def _check_counts(data: Dataset) -> None:
    """Refuse splits that have not as many labels as rows."""
    rows, labels = ([len(getattr(x, split)) for split in get_args(Split)] for x in (data, data.labels))
    if rows != labels:
        raise UserError(f"{data.name}: the splits hold {rows} rows, but {labels} labels; each row needs one.")


def check_levels(x: Tensor, bins: int, *, name: str, where: str = "", columns: Columns = None) -> None:
    """Refuse what is not a whole number from 0 to bins-1; arguments as of `check_finite`."""
    remedy = f"data with {bins} levels hold whole numbers from 0 to {bins - 1}"
    bad = (x != x.floor()) | (x < 0) | (x >= bins)
    _refuse(bad, x, name, where=where, remedy=remedy, columns=columns, places=range(len(x)))


def column_name(column: int, columns: Columns) -> str:
    """What a message calls a column: its place, or its name in quotes where it has one that is not a place."""
    name = str(column) if columns is None else columns[column]
    return name if name.isdecimal() else repr(name)


def _refuse(bad: Tensor, x: Tensor, name: str, *, where: str, remedy: str, columns: Columns, places: Places) -> None:
    """Raise a UserError about the first value of `x` that is `bad`, if there is one."""
    if bad.any():
        row, *event = bad.nonzero()[0].tolist()
        column = column_name(event[0], columns) if len(event) == 1 else tuple(event)
        value = x[(row, *event)].item()
        raise UserError(f"{name}: row {places[row]}{where} holds {value} in column {column}; {remedy}.")
