import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from experiment.building.builder import load_data
from experiment.config import parse_config
from experiment.data import image_folder
from experiment.errors import UserError

Pixels = NDArray[np.uint8]


@pytest.fixture
def pixels(tmp_path: Path) -> Pixels:
    """Twenty images of 6x9 pixels in `tmp_path/pictures` and a folder in it, lossless; and a file of another kind."""
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 9, 3), dtype=np.uint8)
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    for index, image in enumerate(images):
        folder = tmp_path / "pictures" / ("more" if index > 9 else "")
        Image.fromarray(image).save(folder / f"{index:02}.{'PNG' if index % 2 else 'png'}")
    (tmp_path / "pictures" / "notes.txt").write_text("not an image")
    return images


def test_every_level_is_read_and_colours_come_first(pixels: Pixels, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "pictures", validation=3, test=0.2)
    assert (data.name, data.bins, data.image_shape) == ("pictures", 256, (3, 6, 9))
    assert (len(data.train), len(data.validation), len(data.test)) == (13, 3, 4)
    rows = torch.cat([data.train, data.validation, data.test]).permute(0, 2, 3, 1).flatten(1)
    assert sorted(rows.tolist()) == sorted(pixels.reshape(20, -1).astype(float).tolist())
    flat = image_folder(tmp_path / "pictures", validation=3, test=0.2, layout="flat")
    assert torch.equal(flat.test, data.test.flatten(1))
    other = image_folder(tmp_path / "pictures", validation=3, test=0.2, seed=1)
    assert other.fingerprint != data.fingerprint


def test_grey_is_the_rounded_luma(pixels: Pixels, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "pictures", colour=False)
    assert (data.event_shape, data.image_shape) == (torch.Size([1, 6, 9]), (6, 9))
    colour = image_folder(tmp_path / "pictures")
    luma = torch.einsum("nchw,c->nhw", colour.train, torch.tensor([0.299, 0.587, 0.114]))
    assert (data.train.squeeze(1) - luma).abs().max() < 0.51


def test_other_sizes_are_cut_around_the_middle_and_resized(tmp_path: Path) -> None:
    """A wide image with a white middle, a little wider than it is high: what is left is white."""
    wide = np.zeros((8, 40, 3), np.uint8)
    wide[:, 13:27] = 255
    for index, image in enumerate([wide, np.full((12, 12, 3), 90, np.uint8), np.full((30, 4, 3), 90, np.uint8)]):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    with pytest.raises(UserError, match=r"1\.png has 12x12 pixels and 0\.png 8x40; give size = \[height, width\]"):
        image_folder(tmp_path)
    data = image_folder(tmp_path, size=(4, 4), validation=1, test=1)
    assert data.image_shape == (3, 4, 4)
    rows = torch.cat([data.train, data.validation, data.test]).flatten(1)
    assert sorted(row.unique().tolist() for row in rows) == [[90], [90], [255]]
    assert image_folder(tmp_path, size=(2, 5), validation=1, test=1).image_shape == (3, 2, 5)


def test_jpeg_and_palettes_are_read(tmp_path: Path) -> None:
    for index, suffix in enumerate(["jpg", "jpeg", "JPG", "png", "png"]):
        image = Image.fromarray(np.full((8, 8, 3), 20 * index + 50, np.uint8))
        (image.quantize(2) if suffix == "png" else image).save(tmp_path / f"{index}.{suffix}")
    data = image_folder(tmp_path, colour=False, validation=1, test=1)
    levels = torch.cat([data.train, data.validation, data.test]).flatten(1).mean(1)
    assert sorted(levels.tolist()) == pytest.approx([50, 70, 90, 110, 130], abs=1.5)


def test_what_cannot_be_used_is_named(pixels: Pixels, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    deep, broken = folder / "a.png", folder / "b.png"
    Image.fromarray(np.full((6, 9), 40_000, np.uint16)).save(deep)
    with pytest.raises(UserError, match=rf"^{re.escape(str(deep))} holds pixels of mode I;16; images here have 256"):
        image_folder(folder)
    deep.unlink()
    for content in (b"", b"GIF89a", (folder / "01.PNG").read_bytes()[:60]):
        broken.write_bytes(content)
        with pytest.raises(UserError, match=rf"^{re.escape(str(broken))} cannot be read as an image \("):
            image_folder(folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none: the folder holds no \.png or \.jpg images"):
        image_folder(tmp_path / "none")
    with pytest.raises(UserError, match=r"absent: there is no such folder"):
        image_folder(tmp_path / "absent")


def test_an_image_that_unpacks_to_gigabytes_is_refused(
    pixels: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(UserError, match=r"00\.png cannot be read as an image \(Image size \(54 pixels\) exceeds limit"):
        image_folder(tmp_path / "pictures")


def test_the_section_reads_them(pixels: Pixels, tmp_path: Path) -> None:
    text = {"kind": "image_folder", "path": "pictures", "size": [4, 4], "colour": False, "layout": "flat", "test": 0.2}
    config = parse_config({"data": text, "model": {"kind": "nice"}}, source="test")
    data = load_data(config.data, tmp_path)
    assert (data.event_shape, data.image_shape, len(data.test)) == (torch.Size([16]), (4, 4), 4)
