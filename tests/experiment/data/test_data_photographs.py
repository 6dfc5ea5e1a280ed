from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from experiment.building.builder import load_data
from experiment.config import parse_config
from experiment.data import Dataset, photographs
from experiment.errors import UserError


def small(**settings: object) -> Dataset:
    return photographs(**{"train_rows": 400, "validation_rows": 100, "test_rows": 200, **settings})  # type: ignore[arg-type]


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures whose 60 tiles of 71x64 pixels each have one level: 0 to 59, and 60 to 119."""
    level = np.arange(60).reshape(6, 10).repeat(71, 0).repeat(64, 1)
    level = np.pad(level, ((0, 1), (0, 0)), constant_values=255)  # the last line is left over
    pictures = [np.repeat((level + start)[:, :, None], 3, 2).astype(np.uint8) for start in (0, 60)]
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: SimpleNamespace(images=pictures))


def test_no_pixel_serves_two_splits(numbered: None) -> None:
    data = small(train_rows=20_000, validation_rows=3_000, test_rows=3_000)
    tiles = []
    for split in (data.train, data.validation, data.test):
        assert torch.equal(split, split[:, :1].expand(-1, 64)), "each patch lies within one tile"
        tiles.append(set(split[:, 0].tolist()))
    assert [len(part) for part in tiles] == [96, 12, 12]
    assert set().union(*tiles) == set(range(120))
    for part in tiles:
        assert any(tile < 60 for tile in part), "of the first photograph"
        assert any(tile >= 60 for tile in part), "of the second"
    assert set(small(seed=1, test_rows=3_000).test[:, 0].tolist()) != tiles[2]


def test_patches_are_pieces_of_the_photographs() -> None:
    """Each patch of one seed is found, pixel for pixel, in one of the two pictures."""
    data = small(train_rows=5, colour=True, layout="image", side=20)
    assert data.event_shape == torch.Size([3, 20, 20])
    pictures = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
    windows = pictures.unfold(2, 20, 1).unfold(3, 20, 1)
    for patch in data.train.to(torch.uint8):
        candidates = (windows[..., 0, 0] == patch[:, 0, 0].view(1, 3, 1, 1)).all(1).nonzero()
        found = [tuple(place) for place in candidates.tolist()]
        assert any(torch.equal(windows[i, :, top, left], patch) for i, top, left in found)


def test_grey_is_the_rounded_luma_and_levels_are_whole() -> None:
    grey, colour = small(layout="image"), small(colour=True, layout="image")
    assert (grey.bins, grey.image_shape, colour.image_shape) == (256, (8, 8), (3, 8, 8))
    assert (grey.event_shape, colour.event_shape) == (torch.Size([1, 8, 8]), torch.Size([3, 8, 8]))
    luma = torch.einsum("nchw,c->nhw", colour.train, torch.tensor([0.299, 0.587, 0.114]))
    assert (grey.train.squeeze(1) - luma).abs().max() < 0.51
    assert torch.equal(small().train, grey.train.flatten(1))


def test_no_place_is_drawn_twice_and_the_seed_fixes_the_draw() -> None:
    assert small().digest == small().digest != small(seed=1).digest
    every = small(side=62, train_rows=1, validation_rows=12 * (71 - 61) * (64 - 61), test_rows=1).validation
    assert len(every.unique(dim=0)) == len(every) == 360
    places = 12 * (71 - 63) * (64 - 63)
    with pytest.raises(
        UserError, match=rf"^photographs: {places + 1} rows of a split, but its tiles have {places} places"
    ):
        small(side=64, train_rows=1, validation_rows=places + 1, test_rows=1)
    with pytest.raises(UserError, match=r"^photographs: side=65, but a tile has 71x64 pixels\.$"):
        small(side=65)


def test_the_section_reads_them(tmp_path: object) -> None:
    text = {"kind": "photographs", "colour": True, "layout": "image", "train_rows": 400, "validation_rows": 100}
    config = parse_config({"data": text | {"test_rows": 200}, "model": {"kind": "glow"}}, source="test")
    assert load_data(config.data, tmp_path).digest == small(colour=True, layout="image").digest  # type: ignore[arg-type]
