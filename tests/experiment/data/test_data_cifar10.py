"""A stand-in for the official archive: the same names and records, fewer of them."""

import hashlib
import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from experiment.building.builder import load_data
from experiment.config import parse_config
from experiment.data import cifar10
from experiment.errors import UserError

module = sys.modules["experiment.data.cifar10"]
Serve = Callable[[Path], str]
NAMES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
ROWS = 4  # of each batch


def pack(path: Path, batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """In another order than they are read, with what else the archive holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in [("readme.html", b"<html>"), *reversed(batches.items())]:
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    monkeypatch.setattr(module, "CIFAR10_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
    """The images, (24, 32, 32, 3), of classes 0, 1, ..., 9, 0, 1, ...; each colour of a record lies by itself."""
    images = np.random.default_rng(0).integers(0, 256, (6 * ROWS, 32, 32, 3), dtype=np.uint8)
    records = [
        bytes([index % 10]) + b"".join(image[:, :, colour].tobytes() for colour in range(3))
        for index, image in enumerate(images)
    ]
    batches = {f"{name}.bin": b"".join(records[ROWS * i : ROWS * (i + 1)]) for i, name in enumerate(NAMES)}
    pack(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", batches, monkeypatch)
    return images


def test_every_level_is_read_and_colours_come_first(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    data = cifar10(tmp_path, validation_rows=3)
    assert (data.name, data.bins, data.image_shape, data.labels) == ("cifar10", 256, (3, 32, 32), None)
    assert (len(data.train), len(data.validation), len(data.test)) == (17, 3, ROWS)
    rows = torch.cat([data.train, data.validation, data.test])
    assert torch.equal(rows, torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32)))
    flat = cifar10(tmp_path, validation_rows=3, layout="flat")
    assert torch.equal(flat.test, data.test.flatten(1))


def test_labels_are_the_first_bytes(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    labels = cifar10(tmp_path, validation_rows=3, labels=True).labels
    assert labels is not None
    assert labels.train.tolist() == [index % 10 for index in range(17)]
    assert (labels.validation.tolist(), labels.test.tolist()) == ([7, 8, 9], [0, 1, 2, 3])


def test_validation_leaves_rows_to_train(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^validation_rows: found 20; cifar10 takes 1 to 19\.$"):
        cifar10(tmp_path, validation_rows=20)


def test_the_archive_is_downloaded_and_no_other_is_used(
    pixels: NDArray[np.uint8], serve: Serve, tmp_path: Path
) -> None:
    target, address = tmp_path / "elsewhere", serve(tmp_path / "cifar10")
    expected = cifar10(tmp_path, validation_rows=3)
    found = cifar10(target, validation_rows=3, url=f"{address}/cifar-10-binary.tar.gz")
    assert found.digest == expected.digest
    path = target / "cifar10" / "cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"binary\.tar\.gz: sha256 is [0-9a-f]{64} and not the official .*; delete it"):
        cifar10(target)
    path.unlink()
    with pytest.raises(
        UserError, match=r"could not be downloaded from .* \(404 .*\); put the file with sha256 .* into"
    ):
        cifar10(target, url=f"{address}/absent.tar.gz")


def test_records_of_another_length_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cifar10" / "cifar-10-binary.tar.gz"
    for content in (b"", bytes(3072), bytes(2 * 3073 - 1)):
        pack(path, {f"{name}.bin": content for name in NAMES}, monkeypatch)
        with pytest.raises(UserError, match=r"data_batch_1\.bin holds \d+ bytes, but a record of cifar10 has 3073"):
            cifar10(tmp_path)
    pack(path, {"data_batch_1.bin": bytes(3073)}, monkeypatch)
    with pytest.raises(UserError, match=r"holds no file cifar-10-batches-bin/data_batch_2\.bin"):
        cifar10(tmp_path)


def test_the_section_reads_it(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    text = {"kind": "cifar10", "validation_rows": 3, "labels": True}
    config = parse_config({"data": text, "model": {"kind": "glow"}}, source="test")
    data = load_data(config.data, tmp_path)
    assert (data.event_shape, data.classes) == (torch.Size([3, 32, 32]), 10)
