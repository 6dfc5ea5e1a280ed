import gzip
import os
import re
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiment.data import mnist
from experiment.data.idx import read_images, read_labels
from experiment.data.mnist import LABELS_SHA256, SHA256
from experiment.errors import UserError

DATA_ROOT = Path(os.environ.get("CFLOWS_DATA_ROOT", Path(__file__).parents[3].parent / "shared" / "data"))
TRAIN, TEST = SHA256

Serve = Callable[[Path], str]


@pytest.fixture(scope="module")
def root() -> Path:
    if not all((DATA_ROOT / "mnist" / name).is_file() for name in SHA256):
        pytest.skip("the MNIST files are absent; set CFLOWS_DATA_ROOT to the folder that holds mnist/")
    return DATA_ROOT


def write_idx(path: Path, *, magic: int = 0x0803, shape: tuple[int, ...] = (2, 28, 28), extra: bytes = b"") -> Path:
    pixels = bytes(index % 256 for index in range(2 * 28 * 28))
    path.write_bytes(gzip.compress(struct.pack(">4I", magic, *shape) + pixels + extra))
    return path


def test_the_official_files(root: Path) -> None:
    data = mnist(root)
    assert (data.train.shape, data.validation.shape, data.test.shape) == ((50_000, 784), (10_000, 784), (10_000, 784))
    assert (data.name, data.bins, data.image_shape, data.train.dtype) == ("mnist", 256, (28, 28), torch.float32)
    assert data.train.max() == 255
    official = torch.cat([data.train, data.validation])
    assert (official / 255).mean().item() == pytest.approx(0.1307, abs=5e-5), "the customary normalisation"
    assert (official / 255).std().item() == pytest.approx(0.3081, abs=5e-5)
    image = mnist(root, layout="image", validation_rows=5)
    assert image.event_shape == torch.Size([1, 28, 28])
    assert image.fingerprint == data.fingerprint
    assert torch.equal(image.validation.flatten(1), data.validation[-5:])
    with pytest.raises(UserError, match=r"^validation_rows: found 60000; mnist takes 1 to 59999"):
        mnist(root, validation_rows=60_000)


def test_the_official_labels(root: Path) -> None:
    """The first of the training and test sets as everybody knows them, and how many there are of each."""
    data = mnist(root, labels=True, validation_rows=5)
    assert data.labels is not None
    assert data.labels.train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.labels.validation.tolist() == [8, 3, 5, 6, 8]
    assert data.labels.test[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert data.labels.test.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.classes == 10
    assert mnist(root, validation_rows=5).labels is None


def test_absent_labels_are_downloaded(root: Path, serve: Serve, tmp_path: Path) -> None:
    mnist(tmp_path, url=serve(root / "mnist"), labels=True)
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == sorted(SHA256 | LABELS_SHA256)


def test_labels_that_are_not_the_official_ones_are_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "mnist", tmp_path / "mnist")
    path = tmp_path / "mnist" / next(iter(LABELS_SHA256))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    assert mnist(tmp_path).labels is None, "not read unless asked for"
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: sha256 is [0-9a-f]{{64}} and not the official"):
        mnist(tmp_path, labels=True)


def test_the_header_of_labels_is_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "labels.gz"
    for magic, rows, ok in ((0x0801, 3, True), (0x0803, 3, False), (0x0801, 4, False)):
        path.write_bytes(gzip.compress(struct.pack(">2I", magic, rows) + bytes([7, 2, 1])))
        if ok:
            assert read_labels(path, "mnist").tolist() == [7, 2, 1]
        else:
            with pytest.raises(
                UserError, match=r"labels\.gz: the header promises magic 0x080[13] and [34] rows for 3 by"
            ):
                read_labels(path, "mnist")


def test_absent_files_are_downloaded(root: Path, serve: Serve, tmp_path: Path) -> None:
    data = mnist(tmp_path, url=serve(root / "mnist"))
    assert data.test.shape == (10_000, 784)
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == sorted(SHA256)
    for name in SHA256:
        assert (tmp_path / "mnist" / name).read_bytes() == (root / "mnist" / name).read_bytes()


def test_other_content_is_refused_and_not_kept(serve: Serve, tmp_path: Path) -> None:
    web = tmp_path / "web"
    web.mkdir()
    write_idx(web / TRAIN)
    address = serve(web)
    with pytest.raises(UserError, match=rf"^{TRAIN} could not be downloaded from {address}/{TRAIN} .*{SHA256[TRAIN]}"):
        mnist(tmp_path / "root", url=address)
    assert list((tmp_path / "root" / "mnist").iterdir()) == []


def test_a_missing_page_is_refused(serve: Serve, tmp_path: Path) -> None:
    address = serve(tmp_path)
    with pytest.raises(UserError, match=rf"^{TRAIN} could not be downloaded from {address}/{TRAIN} \(404 .*\); put"):
        mnist(tmp_path / "root", url=f"{address}/")
    assert list((tmp_path / "root" / "mnist").iterdir()) == []


def test_a_refused_connection_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"^{TRAIN} could not be downloaded from {address}/.*{SHA256[TRAIN]}"):
            mnist(tmp_path, url=address)
    assert list((tmp_path / "mnist").iterdir()) == []


def test_a_truncated_file_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    shutil.copyfile(root / "mnist" / TRAIN, tmp_path / "mnist" / TRAIN)
    path = tmp_path / "mnist" / TEST
    path.write_bytes((root / "mnist" / TEST).read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: sha256 is [0-9a-f]{{64}} and not .*{SHA256[TEST]}"):
        mnist(tmp_path)


def test_the_header_is_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    images = read_images(write_idx(path), "mnist")
    assert (images.shape, images.dtype) == ((2, 28, 28), torch.float32)
    assert (images[0, 0, 5], images[0, 9, 3], images[1, 0, 0]) == (5, 255, 784 % 256)
    for change in ({"magic": 0x0801}, {"shape": (2, 28, 14)}, {"shape": (3, 28, 28)}, {"extra": b"x"}):
        with pytest.raises(UserError, match=r"images\.gz: the header promises magic 0x080[13] and shape"):
            read_images(write_idx(path, **change), "mnist")  # type: ignore[arg-type]
