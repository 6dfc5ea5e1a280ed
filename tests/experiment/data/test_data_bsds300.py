"""Patches of stand-in images whose greys are known, so that each patch tells from which image and place it comes."""

import hashlib
import io
import os
import re
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from experiment import evaluate, load_config, train
from experiment.building.builder import load_data
from experiment.config import parse_config
from experiment.data import Dataset, bsds300, bsds300_patches
from experiment.data.bsds300 import _draw, _grey
from experiment.errors import UserError
from experiment.sections.data import BSDSData

DATA_ROOT = Path(os.environ.get("CFLOWS_DATA_ROOT", Path(__file__).parents[3].parent / "shared" / "data"))
CONFIGS = Path(__file__).parents[3] / "configs" / "bsds300_patches"
TRAIN, TEST = "BSDS300/images/train", "BSDS300/images/test"
IMAGES = 20  # for training, two of which validate; half as many for the test

Serve = Callable[[Path], str]
ARCHIVE = "/BSDS300-images.tgz"


def stripes(contrast: int) -> NDArray[np.uint8]:
    """Grey columns 100 and 100 + contrast in turn; the contrast of a patch names its image."""
    levels = 100 + contrast * (np.arange(20) % 2)
    return np.broadcast_to(levels[None, :, None], (12, 20, 3)).astype(np.uint8)


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """A lossless image file; the reader goes by the content, not by the name."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def digest(files: dict[str, bytes]) -> str:
    return hashlib.sha256(b"".join(name.encode() + b"\0" + files[name] for name in sorted(files))).hexdigest()


def pack(path: Path, files: dict[str, bytes]) -> None:
    """An archive with what the official one has besides the images: folders and lists of numbers."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"BSDS300/iids_train.txt": b"1\n2\n", **files}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        folder = tarfile.TarInfo("BSDS300/images/folder.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Stand-ins with contrasts 10, 15, ... for training and -100, -95, ... for the test, declared official."""
    contents = {f"{TRAIN}/{index}.jpg": encode(stripes(10 + 5 * index)) for index in range(IMAGES)}
    contents |= {f"{TEST}/{index}.jpg": encode(stripes(-100 + 5 * index)) for index in range(IMAGES // 2)}
    monkeypatch.setattr(bsds300, "SHA256", digest(contents))
    return contents


@pytest.fixture
def root(files: dict[str, bytes], tmp_path: Path) -> Path:
    for name, content in files.items():
        path = tmp_path / "bsds300_images" / name.removeprefix("BSDS300/images/").replace("test/", "val/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


def small(root: Path, **settings: object) -> Dataset:
    return bsds300_patches(root, **{"train_rows": 600, "validation_rows": 80, "test_rows": 300, **settings})  # type: ignore[arg-type]


def contrasts(rows: Tensor) -> set[int]:
    """Contrast of each patch, whose first column is even or odd: noise moves the mean over 28 pixels by 0.08 levels."""
    levels = 256 * torch.cat([rows, -rows.sum(1, keepdim=True)], 1).unflatten(1, (8, 8))
    gaps = levels[..., 1::2].mean((1, 2)) - levels[..., ::2].mean((1, 2))
    return {abs(round(gap / 5)) * 5 for gap in gaps.tolist()}


def test_each_image_serves_one_split(root: Path) -> None:
    """Training and validation share no contrast and have all 20 together; the test has its own folder."""
    data = small(root)
    assert (data.name, data.bins, data.image_shape, data.train.dtype) == ("bsds300_patches", None, None, torch.float32)
    assert (data.train.shape, data.validation.shape, data.test.shape) == ((600, 63), (80, 63), (300, 63))
    training, validation = contrasts(data.train), contrasts(data.validation)
    assert len(validation) == 2
    assert not training & validation
    assert training | validation == {10 + 5 * index for index in range(IMAGES)}
    assert contrasts(data.test) == {100 - 5 * index for index in range(IMAGES // 2)}


def test_the_seed_fixes_every_draw_and_other_splits_leave_the_test_alone(root: Path) -> None:
    data, again, other = small(root), small(root), small(root, seed=1)
    assert data.digest == again.digest
    assert data.fingerprint != other.fingerprint
    fewer = small(root, train_rows=5, validation_rows=3)
    assert fewer.fingerprint == data.fingerprint
    assert torch.equal(small(root, train_rows=5).validation, data.validation)


def test_pixels_run_row_by_row_and_the_last_is_left_out() -> None:
    """k = 10 row + column: x_i + 1/256 > (k_i + 1/2 - mean)/256 > x_i - 1/256, since u and its mean lie in [0, 1)."""
    level = 10 * torch.arange(12).unsqueeze(1) + torch.arange(20)
    x = _draw([level.to(torch.uint8)], 500, torch.Generator().manual_seed(0))
    k = (10 * torch.arange(8).unsqueeze(1) + torch.arange(8)).flatten()
    assert ((256 * x - (k - k.float().mean())[:-1]).abs() < 1).all()


def test_noise_is_uniform_and_centred_with_the_patch() -> None:
    """On a constant image x = (u - mean u)/256, with covariance (I - 1/64)/12/256² and little excess in its tails."""
    rows = 200_000
    x = 256 * _draw([torch.full((9, 9), 7, dtype=torch.uint8)], rows, torch.Generator().manual_seed(0)).double()
    expected = (torch.eye(63, dtype=torch.float64) - 1 / 64) / 12
    assert torch.allclose(x.mean(0), torch.zeros(63, dtype=torch.float64), atol=5 * (1 / 12 / rows) ** 0.5)
    assert torch.allclose(x.T @ x / rows, expected, atol=6 * (1 / 12) / rows**0.5)
    fourth = (x[:, 0] ** 4).mean().item()
    # Σ w_i u_i with w = (63, -1, ..., -1)/64 has fourth moment 3 σ⁴ + κ_4 Σ w_i⁴, and u has σ² = 1/12, κ_4 = -1/120.
    assert fourth == pytest.approx(3 * (63 / 64 / 12) ** 2 - (63**4 + 63) / 64**4 / 120, rel=0.01)


def test_every_place_of_every_image_has_the_same_chance() -> None:
    """A third of the patches for each image; along a ramp of growing steps, a patch's profile tells its place of 13."""
    ramp = torch.arange(20) ** 2 // 4
    wide = ramp.expand(12, 20).to(torch.uint8)
    images = [wide, wide.T.contiguous(), torch.zeros(8, 8, dtype=torch.uint8)]
    x = _draw(images, 60_000, torch.Generator().manual_seed(0))
    patch = 256 * torch.cat([x, -x.sum(1, keepdim=True)], 1).unflatten(1, (8, 8))
    across, down = patch.mean(1), patch.mean(2)
    templates = torch.stack([ramp[left : left + 8] - ramp[left : left + 8].float().mean() for left in range(13)])
    flat = (patch.abs() < 1).all(2).all(1)
    assert flat.float().mean().item() == pytest.approx(1 / 3, abs=0.01)
    for profile, still in ((across, down), (down, across)):
        rows = (still.abs() < 1).all(1) & ~flat
        place = torch.cdist(profile[rows], templates).argmin(1)
        counts = place.bincount(minlength=13) / 20_000
        assert torch.allclose(counts, torch.full((13,), 1 / 13), atol=6 * (1 / 13 / 20_000) ** 0.5)


def test_rows_do_not_come_in_the_order_of_the_images() -> None:
    dark, bright = torch.zeros(8, 8, dtype=torch.uint8), 30 * torch.eye(8, dtype=torch.uint8)
    x = _draw([dark, bright], 2_000, torch.Generator().manual_seed(0))
    chosen = (x[:, 0] > 0.05).float()
    assert chosen[:1_000].mean().item() == pytest.approx(0.5, abs=0.08)
    assert (chosen[1:] * chosen[:-1]).mean().item() == pytest.approx(0.25, abs=0.05)


def test_grey_is_the_rounded_luma() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    luma = colours @ np.array([0.299, 0.587, 0.114])
    grey = _grey(encode(colours))
    assert grey.dtype == torch.uint8
    assert np.abs(grey.numpy() - luma).max() < 0.5 + 1e-3
    assert _grey(encode(np.full((8, 9, 3), 77, dtype=np.uint8))).unique().tolist() == [77]


def test_absent_images_are_downloaded_and_unpacked(files: dict[str, bytes], serve: Serve, tmp_path: Path) -> None:
    web, target = tmp_path / "web", tmp_path / "root"
    web.mkdir()
    pack(web / "BSDS300-images.tgz", files)
    data = small(target, url=serve(web) + ARCHIVE)
    assert [path.name for path in target.iterdir()] == ["bsds300_images"]
    found = {str(path.relative_to(target / "bsds300_images")) for path in target.rglob("*.jpg")}
    assert found == {f"train/{index}.jpg" for index in range(IMAGES)} | {f"val/{index}.jpg" for index in range(10)}
    assert small(target, url="http://nowhere.invalid").digest == data.digest


def test_another_archive_is_refused_and_not_kept(files: dict[str, bytes], serve: Serve, tmp_path: Path) -> None:
    web, target = tmp_path / "web", tmp_path / "root"
    web.mkdir()
    address = serve(web) + ARCHIVE
    files[f"{TEST}/3.jpg"] += b"x"
    pack(web / "BSDS300-images.tgz", files)
    with pytest.raises(
        UserError, match=rf"^{address}: the 30 images there have the common sha256 .*{bsds300.SHA256}; unpack"
    ):
        small(target, url=address)
    (web / "BSDS300-images.tgz").write_bytes((web / "BSDS300-images.tgz").read_bytes()[:-200])
    with pytest.raises(UserError, match=rf"^bsds300_patches could not be downloaded from {address} \("):
        small(target, url=address)
    assert list(target.iterdir()) == []


def test_a_missing_page_and_a_refused_connection_are_reported(
    files: dict[str, bytes], serve: Serve, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"\(404 .*\); unpack .* into {tmp_path}/root/bsds300_images as train and val"):
        small(tmp_path / "root", url=serve(tmp_path) + ARCHIVE)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/BSDS300-images.tgz"
        with pytest.raises(UserError, match=rf"^bsds300_patches could not be downloaded from {address}"):
            small(tmp_path / "root", url=address)
    assert list((tmp_path / "root").iterdir()) == []


@pytest.mark.parametrize("damage", ["changed", "missing", "renamed", "moved", "added"])
def test_other_images_are_refused(root: Path, damage: str) -> None:
    folder = root / "bsds300_images"
    image = folder / "val" / "4.jpg"
    match damage:
        case "changed":
            image.write_bytes(image.read_bytes() + b"x")
        case "missing":
            image.unlink()
        case "renamed":
            image.rename(folder / "val" / "44.jpg")
        case "moved":
            image.rename(folder / "train" / "4b.jpg")
        case "added":
            (folder / "train" / "44.jpg").write_bytes(image.read_bytes())
    with pytest.raises(
        UserError, match=rf"^{re.escape(str(folder))}: the \d\d images there have .*; delete the folder"
    ):
        small(root)


def test_patches_go_through_the_scripts(root: Path) -> None:
    table = {
        "data": {"kind": "bsds300_patches", "train_rows": 200, "validation_rows": 20, "test_rows": 30},
        "preprocessing": {"kind": "none", "standardize": True},
        "model": {"kind": "real_nvp", "layers": 2, "hidden": [8]},
        "train": {"steps": 2, "batch_size": 20},
    }
    run = train(parse_config(table, source="test"), root / "run", data_root=root, device="cpu")
    summary = evaluate(run.path)
    assert (summary.rows, summary.dimensions, summary.kind) == (30, 63, "exact")


@pytest.mark.parametrize("name", ["maf", "maf_small"])
def test_the_ready_made_configs_train(root: Path, name: str) -> None:
    short = [
        "data.train_rows=200",
        "data.validation_rows=20",
        "data.test_rows=30",
        "train.steps=2",
        "train.batch_size=20",
    ]
    config = load_config(CONFIGS / f"{name}.toml", short)
    assert train(config, root / "run", data_root=root, device="cpu", threads=1).best.is_file()


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA_ROOT / "bsds300_images").is_dir(), reason="the BSDS300 images are absent; set CFLOWS_DATA_ROOT"
)
def test_a_gaussian_on_the_real_patches_scores_as_published() -> None:
    """Papamakarios et al., table 1: 96.67 ± 0.25 nats; the error of this draw is as large. The guide quotes it."""
    data = load_data(BSDSData(kind="bsds300_patches"), DATA_ROOT)
    assert (len(data.train), len(data.validation), len(data.test)) == (1_000_000, 50_000, 250_000)
    parts = [part.double() for part in data.train.split(100_000)]
    mean = torch.stack([part.mean(0) for part in parts]).mean(0)
    covariance = torch.stack([(part - mean).T @ (part - mean) / len(part) for part in parts]).mean(0)
    gaussian = torch.distributions.MultivariateNormal(mean, covariance_matrix=covariance)
    validation = torch.cat([gaussian.log_prob(part.double()) for part in data.validation.split(50_000)])
    test = torch.cat([gaussian.log_prob(part.double()) for part in data.test.split(50_000)])
    assert test.mean().item() == pytest.approx(96.67, abs=0.25 + 0.25)
    assert test.mean().item() == pytest.approx(96.40, abs=0.05)
    assert 2 * (test.std() / len(test) ** 0.5).item() == pytest.approx(0.25, abs=0.01)
    assert validation.mean().item() == pytest.approx(99.2, abs=0.1)
