import hashlib
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from experiment import compare, evaluate, train
from experiment.building.builder import load_data
from experiment.config import parse_config
from experiment.data import Dataset, cifar, cifar10_lossless_4k
from experiment.data.cifar import SHA256
from experiment.draws.sampling import draw_samples
from experiment.errors import UserError
from experiment.sections.data import CifarData

DATA_ROOT = Path(os.environ.get("CFLOWS_DATA_ROOT", Path(__file__).parents[3].parent / "shared" / "data"))
FIRST, SECOND, *_ = SHA256
LINES = 5


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Eight bits, three colours, no filter: by the PNG specification, with no library that could round."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = pixels.shape
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + line.tobytes() for line in pixels))
    signature = b"\x89PNG\r\n\x1a\n"
    path.write_bytes(signature + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b""))


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
    """Four sheets of 5 images in place of the real ones; the images, (20, 32, 32, 3)."""
    folder = tmp_path / "cifar10_lossless_4k"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, LINES, 1024, 3), dtype=np.uint8)
    pixels[0, 0, :256] = np.arange(256)[:, None]
    for name, sheet in zip(SHA256, pixels, strict=True):
        write_png(folder / name, sheet)
        monkeypatch.setitem(SHA256, name, hashlib.sha256((folder / name).read_bytes()).hexdigest())
    monkeypatch.setattr(cifar, "SHEET_SHAPE", (LINES, 1024, 3))
    return pixels.reshape(-1, 32, 32, 3)


def small(root: Path, **keywords: object) -> Dataset:
    return cifar10_lossless_4k(root, validation_rows=3, test_rows=4, **keywords)  # type: ignore[arg-type]


def test_every_level_is_read_exactly_and_colours_come_first(images: NDArray[np.uint8], tmp_path: Path) -> None:
    data = small(tmp_path)
    assert (data.name, data.bins, data.image_shape) == ("cifar10_lossless_4k", 256, (3, 32, 32))
    assert (data.event_shape, data.train.dtype) == (torch.Size([3, 32, 32]), torch.float32)
    assert data.train[0].unique().tolist() == list(range(256))
    expected = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
    assert torch.equal(torch.cat([data.train, data.validation, data.test]), expected)


def test_the_last_rows_are_held_out_in_file_order(images: NDArray[np.uint8], tmp_path: Path) -> None:
    data = small(tmp_path)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [13, 3, 4]
    assert data.validation[0, 2, 31, 30] == images[13, 31, 30, 2]
    assert data.test[-1, 1, 0, 7] == images[-1, 0, 7, 1]


def test_flat_rows_are_the_same_values_in_the_same_order(images: NDArray[np.uint8], tmp_path: Path) -> None:
    data, flat = small(tmp_path), small(tmp_path, layout="flat")
    assert flat.event_shape == torch.Size([3072])
    assert torch.equal(flat.train, data.train.flatten(1))
    assert (flat.fingerprint, flat.digest, flat.image_shape) == (data.fingerprint, data.digest, data.image_shape)


@pytest.mark.parametrize(("validation", "test"), [(0, 4), (3, 0), (10, 10), (-1, 4)])
def test_no_split_may_be_empty(images: NDArray[np.uint8], tmp_path: Path, validation: int, test: int) -> None:
    with pytest.raises(
        UserError, match=rf"^validation_rows={validation} and test_rows={test} leave .* of the 20 images"
    ):
        cifar10_lossless_4k(tmp_path, validation_rows=validation, test_rows=test)


def test_an_absent_sheet_is_named_with_its_sha256(images: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "cifar10_lossless_4k" / SECOND
    path.unlink()
    with pytest.raises(
        UserError, match=rf"^{re.escape(str(path))}: there is no such file.*sha256 {SHA256[SECOND]} there"
    ):
        small(tmp_path)


def test_a_damaged_sheet_is_refused_before_it_is_read(images: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "cifar10_lossless_4k" / FIRST
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{FIRST}: sha256 is [0-9a-f]{{64}}; replace it by .* {SHA256[FIRST]}\.$"):
        small(tmp_path)


def test_a_sheet_of_another_shape_is_refused(
    images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "SHEET_SHAPE", (1000, 1024, 3))
    with pytest.raises(UserError, match=rf"{FIRST}: the sheet has shape \(5, 1024, 3\); .* \(1000, 1024, 3\)\.$"):
        small(tmp_path)


@pytest.mark.parametrize("layout", ["image", "flat"])
def test_colour_images_go_through_all_scripts(images: NDArray[np.uint8], tmp_path: Path, layout: str) -> None:
    table = {
        "data": {"kind": "cifar10_lossless_4k", "layout": layout, "validation_rows": 3, "test_rows": 4},
        "preprocessing": {"kind": "logit", "standardize": True},
        "model": {
            "kind": "score_sde",
            "hidden": [8],
            "divergence": {"kind": "hutchinson", "probes": 2},
            "solver": {"method": "rk4", "steps": 2},
            "sampler": {"steps": 3},
        },
        "train": {"steps": 2, "batch_size": 4},
        "evaluate": {"draws": 1},
    }
    run = train(parse_config(table, source="test"), tmp_path / "run", data_root=tmp_path, device="cpu")
    assert tuple(run.environment["image_shape"]) == (3, 32, 32)
    summary = evaluate(run.path)
    assert (summary.rows, summary.dimensions) == (4, 3072)
    drawn, picture = draw_samples(run.path, count=2)
    assert np.load(drawn).shape == (2, 3, 32, 32) if layout == "image" else (2, 3072)
    assert picture.read_bytes().startswith(b"\x89PNG")
    compare([run.path], tmp_path / "out", with_baselines=False)
    assert (tmp_path / "out" / "samples.png").is_file()


@pytest.mark.skipif(
    not (DATA_ROOT / "cifar10_lossless_4k").is_dir(), reason="the CIFAR-10 sheets are absent; set CFLOWS_DATA_ROOT"
)
def test_the_real_sheets() -> None:
    """Their first image is the frog that opens the official training set."""
    data = load_data(CifarData(kind="cifar10_lossless_4k"), DATA_ROOT)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [3200, 400, 400]
    assert data.train[0, :, 0, 0].tolist() == [59, 62, 63]
    assert data.train[0, :, 0, 1].tolist() == [43, 46, 45]
    assert (data.train.min(), data.train.max()) == (0, 255)
    # The customary channel means of all 50000 images; the standard error of a mean over 3200 of them is 0.2 %.
    assert (data.train / 255).mean((0, 2, 3)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.01)
