import hashlib
import io
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pooch
import torch
from PIL import Image
from torch import Tensor

from experiment.data.dataset import Dataset
from experiment.errors import UserError

BSDS300_URL = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/bsds/BSDS300-images.tgz"

# Of all images in the order of their names, each as its name in the archive, a zero byte and the file's bytes: what
# counts is the images, not how they are packed.
SHA256 = "44584b06a9d2f22028d345f087f99d2428a5b6c410e8bede069770a60a8a24ef"

FOLDERS = {"BSDS300/images/train": "train", "BSDS300/images/test": "val"}  # in the archive, and here

SIDE = 8


def bsds300_patches(
    root: Path,
    *,
    train_rows: int = 1_000_000,
    validation_rows: int = 50_000,
    test_rows: int = 250_000,
    seed: int = 0,
    url: str = BSDS300_URL,
) -> Dataset:
    """x_i = (k_i + u_i)/256 less the mean over all 64 pixels, i = 1..63: the density benchmark BSDS300.

    k is an 8x8 patch of 256 grey levels, row by row, at a uniform place of a uniformly drawn image; u is uniform on
    [0, 1) and drawn here, once for all models. The 64 centred values sum to zero, so the last one, bottom right, is
    left out and the others have a density in 63 dimensions. Grey is the luma 0.299 R + 0.587 G + 0.114 B, rounded to a
    level. Training patches come from 180 of the 200 training images, validation patches from the other 20, test patches
    from the 100 test images.

    It is a new draw by the published recipe: a Gaussian of full covariance, fitted to the training rows, scores
    96.40 ± 0.25 nats on the test rows (two standard errors), and 96.67 ± 0.25 in print, so published tables apply.

    The images lie in `root/bsds300_images/{train,val}`, where `val` is the folder `test` of the official archive. If
    that folder is absent, the archive is downloaded; images other than the official 300 are refused. They are free for
    non-commercial research and education only.

    References:
        Zoran and Weiss, "From learning models of natural image patches to whole image restoration", ICCV 2011.
        Uria, Murray and Larochelle, "RNADE: the real-valued neural autoregressive density-estimator", NIPS 2013,
        https://arxiv.org/abs/1306.0186: the noise, the 63 pixels, the 180 and 20 images.
        Papamakarios, Pavlakou and Murray, "Masked autoregressive flow for density estimation", NIPS 2017,
        https://arxiv.org/abs/1705.07057: the numbers of rows.
        Martin, Fowlkes, Tal and Malik, "A database of human segmented natural images", ICCV 2001: the images.

    Checked by tests/experiment/data/test_data_bsds300.py.

    Args:
        root: folder of all downloaded data.
        train_rows: number of training patches; the same place may be drawn twice, with other noise.
        validation_rows: number of validation patches.
        test_rows: number of test patches, which do not depend on the other two numbers.
        seed: fixes which images are held out, the patches and their noise.
        url: address of the archive.

    Returns:
        The dataset, with events (63,) in (-1, 1) and no `bins`.

    Raises:
        UserError: the archive cannot be downloaded, or the images are not the official ones.
    """
    folder = root / "bsds300_images"
    files = _read(folder) if folder.exists() else _download(folder, url)
    images, held_out = ([_grey(files[name]) for name in sorted(files) if name.startswith(part)] for part in FOLDERS)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator).tolist()
    tenth = len(images) // 10
    test = _draw(held_out, test_rows, generator)
    validation = _draw([images[index] for index in order[:tenth]], validation_rows, generator)
    train = _draw([images[index] for index in order[tenth:]], train_rows, generator)
    return Dataset("bsds300_patches", train, validation, test)


def _draw(images: list[Tensor], rows: int, generator: torch.Generator) -> Tensor:
    """Patches at uniform places of uniformly drawn images, noisy and centred, (rows, 63)."""
    patches = torch.empty(rows, SIDE * SIDE - 1)
    source = torch.randint(len(images), (rows,), generator=generator)
    for index, image in enumerate(images):
        chosen = (source == index).nonzero().squeeze(1)
        windows = image.unfold(0, SIDE, 1).unfold(1, SIDE, 1)
        top, left = (torch.randint(count, chosen.shape, generator=generator) for count in windows.shape[:2])
        patches[chosen] = _vectors(windows[top, left], generator)
    return patches


def _vectors(levels: Tensor, generator: torch.Generator) -> Tensor:
    """Patches (rows, 8, 8) of whole levels as (k + u)/256 less their mean, without the last, (rows, 63)."""
    k = levels.flatten(1).float()
    x = (k + torch.rand(k.shape, generator=generator, dtype=torch.float32)) / 256
    return (x - x.mean(1, keepdim=True))[:, :-1]


def _grey(content: bytes) -> Tensor:
    """Luma of an image file, (height, width) uint8."""
    with Image.open(io.BytesIO(content)) as image:
        return torch.from_numpy(np.array(image.convert("L")))


def _read(folder: Path) -> dict[str, bytes]:
    """Content of each image file, under its name in the archive."""
    paths = {f"{part}/{path.name}": path for part, name in FOLDERS.items() for path in (folder / name).glob("*.jpg")}
    files = {name: path.read_bytes() for name, path in paths.items()}
    _verify(files, where=str(folder), remedy="delete the folder to download it again")
    return files


def _download(folder: Path, url: str) -> dict[str, bytes]:
    """Fetch and unpack the archive; the folder appears whole and verified, or not at all."""
    remedy = (
        f"unpack the official archive by other means and put its folders train and test into {folder} as train and val"
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        archive, unpacked = Path(scratch, "archive.tgz"), Path(scratch, folder.name)
        try:
            pooch.HTTPDownloader(progressbar=True, chunk_size=2**16)(url, str(archive), None)
            files = _unpack(archive)
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise UserError(f"bsds300_patches could not be downloaded from {url} ({error}); {remedy}.") from error
        _verify(files, where=url, remedy=remedy)
        for name, content in files.items():
            part, image = name.rsplit("/", 1)
            path = unpacked / FOLDERS[part] / image
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        unpacked.rename(folder)
    return files


def _unpack(archive: Path) -> dict[str, bytes]:
    """Content of each image file of the archive, under its name there."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.isfile() and member.name.endswith(".jpg")]
        return {member.name: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]


def _verify(files: dict[str, bytes], *, where: str, remedy: str) -> None:
    """Refuse images that are not the official ones, all of them and under their names."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(name.encode() + b"\0" + files[name])
    if total.hexdigest() != SHA256:
        raise UserError(
            f"{where}: the {len(files)} images there have the common sha256 {total.hexdigest()} and not the official "
            f"{SHA256}; {remedy}."
        )
