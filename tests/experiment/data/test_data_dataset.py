import math

import pytest
import torch
from torch import Tensor

from experiment.data import Dataset
from experiment.data.dataset import lay_out, split_rows
from experiment.errors import UserError


def rows(count: int, *event: int) -> Tensor:
    return torch.arange(count * math.prod(event), dtype=torch.float32).reshape(count, *event)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_event_shape_is_the_shape_of_one_row() -> None:
    data = Dataset("images", rows(5, 1, 2, 3), rows(1, 1, 2, 3), rows(2, 1, 2, 3))
    assert data.event_shape == torch.Size([1, 2, 3])


def test_fingerprint_depends_on_the_test_rows_alone() -> None:
    data = Dataset("a", rows(5, 6), rows(1, 6), rows(2, 6))
    assert len(data.fingerprint) == 16
    assert int(data.fingerprint, 16) > 0
    assert Dataset("b", rows(7, 6) + 1, rows(3, 6), rows(2, 6), bins=100).fingerprint == data.fingerprint
    assert Dataset("a", rows(5, 6), rows(1, 6), rows(2, 6).flip(0)).fingerprint != data.fingerprint
    assert Dataset("a", rows(5, 4), rows(1, 4), rows(3, 4)).fingerprint != data.fingerprint, "same bytes, other rows"


def test_fingerprint_is_that_of_the_values_whatever_layout_and_memory_order() -> None:
    data = Dataset("a", rows(5, 6), rows(1, 6), rows(2, 6))
    images = Dataset("a", rows(5, 1, 2, 3), rows(1, 1, 2, 3), rows(2, 1, 2, 3))
    strided = Dataset("a", rows(5, 6), rows(1, 6), rows(2, 6).T.contiguous().T)
    assert images.fingerprint == strided.fingerprint == data.fingerprint


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_named(value: float) -> None:
    bad = rows(6, 8)
    bad[3, 7] = value
    with pytest.raises(UserError, match=rf"^digits: row 3 of the training split holds {value} in column 7; remove the"):
        Dataset("digits", bad, rows(1, 8), rows(1, 8))
    with pytest.raises(UserError, match=r"^digits: row 3 of the test split holds"):
        Dataset("digits", rows(1, 8), rows(1, 8), bad)


def test_a_bad_pixel_is_named_by_its_place() -> None:
    bad = rows(4, 1, 2, 3)
    bad[2, 0, 1, 2] = math.nan
    with pytest.raises(UserError, match=r"row 2 of the validation split holds nan in column \(0, 1, 2\)"):
        Dataset("images", rows(1, 1, 2, 3), bad, rows(1, 1, 2, 3))


@pytest.mark.parametrize("value", [-1.0, 2.5, 17.0])
def test_integer_data_hold_levels_only(value: float) -> None:
    good, bad = torch.full((4, 3), 16.0), torch.full((4, 3), 16.0)
    Dataset("digits", good, good, good, bins=17)
    bad[1, 2] = value
    with pytest.raises(UserError, match=rf"row 1 of the test split holds {value} in column 2; .* from 0 to 16\.$"):
        Dataset("digits", good, good, bad, bins=17)


def test_splits_share_one_event_shape_and_none_is_empty() -> None:
    with pytest.raises(UserError, match=r"^a: the test rows have shape \(3,\) and the training rows \(2,\)"):
        Dataset("a", rows(4, 2), rows(4, 2), rows(4, 3))
    with pytest.raises(UserError, match=r"^a: the validation split is empty"):
        Dataset("a", rows(4, 2), rows(4, 2)[:0], rows(4, 2))


def test_split_rows_uses_every_row_once() -> None:
    x = rows(100, 2)
    parts = split_rows(x, validation=0.1, test=25, generator=seeded(0))
    assert [len(part) for part in parts] == [65, 10, 25]
    merged = torch.cat(parts)
    assert not torch.equal(merged, x), "the order is random"
    assert torch.equal(merged[merged[:, 0].argsort()], x)


def test_split_rows_follows_the_generator() -> None:
    first, same, other = (
        split_rows(rows(100, 2), validation=10, test=10, generator=seeded(seed))[2] for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("validation", "test"), [(0.6, 0.4), (0.01, 5), (-1, 5), (2, 0), (9, 9)])
def test_split_rows_refuses_an_empty_split(validation: float, test: float) -> None:
    with pytest.raises(UserError, match=rf"^validation={validation} and test={test} cut 10 rows into"):
        split_rows(rows(10, 2), validation=validation, test=test, generator=seeded(0))


def test_lay_out_keeps_pixel_order() -> None:
    images = rows(5, 2, 3)
    assert torch.equal(lay_out(images, "flat"), images.reshape(5, 6))
    assert torch.equal(lay_out(images, "image"), images.reshape(5, 1, 2, 3))
    colours = rows(5, 3, 2, 4)
    assert torch.equal(lay_out(colours, "flat"), colours.reshape(5, 24))
    assert torch.equal(lay_out(colours, "image"), colours)
    with pytest.raises(UserError, match=r'^layout: found "round"; use "flat" or "image"'):
        lay_out(images, "round")  # type: ignore[arg-type]


def test_a_column_is_called_by_its_name() -> None:
    bad = rows(4, 2)
    bad[1, 1] = math.nan
    with pytest.raises(UserError, match=r"^people: row 1 of the test split holds nan in column 'age'; remove the row"):
        Dataset("people", rows(4, 2), rows(1, 2), bad, columns=("height", "age"))
    with pytest.raises(UserError, match=r"holds nan in column 7; remove"):
        Dataset("people", rows(4, 2), rows(1, 2), bad, columns=("3", "7"))
    with pytest.raises(UserError, match=r"row 0 of the training split holds -1\.0 in column 'age'; data with 9 levels"):
        Dataset("people", -torch.ones(1, 1), rows(1, 1), rows(1, 1), bins=9, columns=("age",))


def test_each_column_needs_a_name() -> None:
    for columns in (("a",), ("a", "b", "c")):
        with pytest.raises(UserError, match=rf"^people: there are {len(columns)} names of columns for rows of shape"):
            Dataset("people", rows(4, 2), rows(1, 2), rows(1, 2), columns=columns)
    with pytest.raises(UserError, match=r"^people: there are 2 names of columns for rows of shape \(2, 1\)"):
        Dataset("people", rows(4, 2, 1), rows(1, 2, 1), rows(1, 2, 1), columns=("a", "b"))
