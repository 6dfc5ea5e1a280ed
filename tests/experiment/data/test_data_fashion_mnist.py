"""Stand-ins for the official files: their format and names, fewer images."""

import gzip
import hashlib
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from experiment.building.builder import load_data
from experiment.config import parse_config
from experiment.data import fashion_mnist
from experiment.errors import UserError

module = sys.modules["experiment.data.mnist"]
Serve = Callable[[Path], str]
TRAIN, TEST = 20, 6


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
    """The files in `tmp_path/web`, declared official; the images, (26, 28, 28)."""
    images = np.random.default_rng(0).integers(0, 256, (TRAIN + TEST, 28, 28), dtype=np.uint8)
    labels = np.arange(TRAIN + TEST, dtype=np.uint8) % 10
    (tmp_path / "web").mkdir()
    for part, rows in (("train", slice(TRAIN)), ("t10k", slice(TRAIN, None))):
        pixels, classes = images[rows], labels[rows]
        files = {
            f"{part}-images-idx3-ubyte.gz": struct.pack(">4I", 0x0803, len(pixels), 28, 28) + pixels.tobytes(),
            f"{part}-labels-idx1-ubyte.gz": struct.pack(">2I", 0x0801, len(classes)) + classes.tobytes(),
        }
        for (name, content), digests in zip(
            files.items(), (module.FASHION_MD5, module.FASHION_LABELS_MD5), strict=True
        ):
            packed = gzip.compress(content)
            (tmp_path / "web" / name).write_bytes(packed)
            monkeypatch.setitem(digests, name, hashlib.md5(packed).hexdigest())
    return images


def test_absent_files_are_downloaded_and_read(web: NDArray[np.uint8], serve: Serve, tmp_path: Path) -> None:
    data = fashion_mnist(tmp_path, url=serve(tmp_path / "web"), validation_rows=5)
    assert (data.name, data.bins, data.image_shape) == ("fashion_mnist", 256, (28, 28))
    assert sorted(path.name for path in (tmp_path / "fashion_mnist").iterdir()) == sorted(module.FASHION_MD5)
    rows = torch.cat([data.train, data.validation, data.test])
    assert torch.equal(rows, torch.from_numpy(web.reshape(-1, 784).astype(np.float32)))
    assert (len(data.validation), len(data.test)) == (5, TEST)
    images = fashion_mnist(tmp_path, url="http://nowhere.invalid", validation_rows=5, layout="image")
    assert (images.event_shape, images.digest) == (torch.Size([1, 28, 28]), data.digest)


def test_labels_are_read_on_demand(web: NDArray[np.uint8], serve: Serve, tmp_path: Path) -> None:
    labels = fashion_mnist(tmp_path, url=serve(tmp_path / "web"), validation_rows=5, labels=True).labels
    assert labels is not None
    found = torch.cat([labels.train, labels.validation, labels.test]).tolist()
    assert found == [index % 10 for index in range(TRAIN + TEST)]


def test_other_files_are_refused(web: NDArray[np.uint8], serve: Serve, tmp_path: Path) -> None:
    address = serve(tmp_path / "web")
    fashion_mnist(tmp_path, url=address, validation_rows=5)
    path = tmp_path / "fashion_mnist" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz: md5 is [0-9a-f]{32} and not the official"):
        fashion_mnist(tmp_path, url=address)
    path.unlink()
    with pytest.raises(
        UserError, match=rf"could not be downloaded from .* \(404 .*put the file with md5 .* into {tmp_path}"
    ):
        fashion_mnist(tmp_path, url=f"{address}/elsewhere")
    with pytest.raises(UserError, match=r"^validation_rows: found 20; fashion_mnist takes 1 to 19"):
        fashion_mnist(tmp_path, url=address, validation_rows=20)


def test_the_section_reads_it(web: NDArray[np.uint8], tmp_path: Path) -> None:
    (tmp_path / "web").rename(tmp_path / "fashion_mnist")
    text = {"kind": "fashion_mnist", "validation_rows": 5, "labels": True, "layout": "image"}
    config = parse_config({"data": text, "model": {"kind": "glow"}}, source="test")
    assert load_data(config.data, tmp_path).classes == 10
