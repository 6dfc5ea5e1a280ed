"""The five density benchmarks of the MAF paper, from its authors' archive."""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiment.data.dataset import Dataset
from experiment.data.download import official, read_members
from experiment.data.frames import read_frame
from experiment.data.optional import optional
from experiment.errors import UserError
from experiment.files import map_rows, write_rows

Array = NDArray[Any]
Splits = tuple[Array, Array, Array]

ARCHIVE_URL = "https://zenodo.org/record/1161203/files/data.tar.gz"
ARCHIVE_MD5 = "9b9c9b0375315ad270eba4ce80c093ab"

SPLITS = ("train", "validation", "test")
SHAPES = {  # columns, and rows of each split
    "power": (6, (1_659_917, 184_435, 204_928)),
    "gas": (8, (852_174, 94_685, 105_206)),
    "hepmass": (21, (315_123, 35_013, 174_987)),
    "miniboone": (43, (29_556, 3_284, 3_648)),
    "bsds300": (63, (1_000_000, 50_000, 250_000)),
}


def uci(name: str, root: Path, *, url: str = ARCHIVE_URL) -> Dataset:
    """POWER, GAS, HEPMASS, MINIBOONE or BSDS300, row for row as the papers use them, from the archive `data.tar.gz`.

    The archive lies in `root/maf`; where it is absent it is downloaded (857 MB), and it is used only if its md5 is the
    published one. What a benchmark needs is read out of it once, prepared, and kept as `.npy` files in
    `root/maf/<name>`, which later runs map into memory.

    - power: a shuffled table of household power; its columns 1 and 3 are left out, and uniform noise as wide as their
      last digit is added to all columns but the time. Scaled by mean and standard deviation of all but the test rows.
    - gas: 16 sensors; of two that correlate by more than 0.98 the first is left out. Scaled as a whole, test included.
    - hepmass: signal of particle mass 1000; columns whose smallest value occurs more than five times are left out.
      Scaled by the training and validation rows.
    - miniboone: signal, already cleaned by the authors. Scaled as power.
    - bsds300: 63 values of noisy 8x8 patches, as they are; `bsds300_patches` draws them anew from the images.

    Test rows are the last tenth, validation rows the last tenth of what is left, in hepmass and bsds300 as given.

    References:
        Papamakarios, Pavlakou and Murray, "Masked autoregressive flow for density estimation", NIPS 2017,
        https://arxiv.org/abs/1705.07057, appendix D.
        Papamakarios, "Preprocessed datasets for MAF experiments", 2018, https://doi.org/10.5281/zenodo.1161203.

    Checked by tests/experiment/data/test_data_uci.py.

    Args:
        name: one of the five.
        root: folder of all downloaded data.
        url: address of the archive.

    Returns:
        The dataset, mapped into memory.

    Raises:
        UserError: no archive, or not the official one; a package is missing; an unexpected number of rows or columns.
    """
    folder = root / "maf" / name
    if not folder.exists():
        _convert(name, folder, url)
    train, validation, test = (_mapped(folder / f"{split}.npy", name) for split in SPLITS)
    return Dataset(name, train, validation, test)


def _convert(name: str, folder: Path, url: str) -> None:
    """Prepares the three splits from the archive; the folder appears whole and checked, or not at all."""
    if name == "hepmass":
        optional("pandas", purpose=name)  # before a long download
    if name == "bsds300":
        optional("h5py", purpose=name)
    archive = official(folder.parent / "data.tar.gz", address=url, digest=f"md5:{ARCHIVE_MD5}")
    prepare, *names = SOURCES[name]
    files = [io.BytesIO(content) for content in read_members(archive, [f"data/{part}" for part in names])]
    splits = dict(zip(SPLITS, prepare(*files), strict=True))
    for split, rows in splits.items():
        _check_shape(rows.shape, name, split, where=str(archive))
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        prepared = Path(scratch, name)
        prepared.mkdir()
        for split, rows in splits.items():
            write_rows(prepared / f"{split}.npy", rows.shape, [rows.astype(np.float32)])
        try:
            prepared.rename(folder)
        except OSError:  # another process may have been faster
            if not folder.exists():
                raise


def _check_shape(shape: tuple[int, ...], name: str, split: str, *, where: str) -> None:
    columns, rows = SHAPES[name]
    expected = (rows[SPLITS.index(split)], columns)
    if shape != expected:
        raise UserError(f"{where}: the {split} rows of {name} have shape {shape}, but the benchmark has {expected}.")


def _mapped(path: Path, name: str) -> Tensor:
    rows = map_rows(path)
    _check_shape(rows.shape, name, path.stem, where=str(path))
    return torch.from_numpy(rows)


def _cut(x: Array) -> Splits:
    """The last tenth for the test, the last tenth of the rest for validation."""
    rest, test = np.split(x, [len(x) - len(x) // 10])
    train, validation = np.split(rest, [len(rest) - len(rest) // 10])
    return train, validation, test


def _scaled(splits: Splits) -> Splits:
    """All rows by mean and standard deviation of the training and validation rows."""
    train, validation, test = splits
    known = np.concatenate([train, validation])
    mean, std = known.mean(0), known.std(0)
    return (train - mean) / std, (validation - mean) / std, (test - mean) / std


def _power(file: IO[bytes]) -> Splits:
    x = np.load(file).astype(float)
    random = np.random.RandomState(42)  # the benchmark is what this generator draws
    order = np.arange(len(x))
    random.shuffle(order)
    x = x[order][:, [0, 2, 4, 5, 6, 7]]
    x[:, 1] += 0.01 * random.rand(len(x))  # voltage first: the order of the draws is part of the benchmark
    x[:, 0] += 0.001 * random.rand(len(x))
    x[:, 2:5] += random.rand(len(x), 3)
    return _scaled(_cut(x))


def _gas(file: IO[bytes]) -> Splits:
    columns = read_frame(file, "gas/ethylene_CO.pickle")
    x = np.stack([values for name, values in columns.items() if name not in {"Time", "Meth", "Eth"}], 1).astype(float)
    alike = np.corrcoef(x, rowvar=False) > 0.98
    left = list(range(len(alike)))
    while len(crowded := np.flatnonzero(alike[np.ix_(left, left)].sum(1) > 1)):
        del left[crowded[0]]
    x = x[:, left]
    return _cut((x - x.mean(0)) / x.std(0, ddof=1))


def _hepmass(training: IO[bytes], testing: IO[bytes]) -> Splits:
    pandas = optional("pandas", purpose="hepmass")
    tables = (pandas.read_csv(file, index_col=False).to_numpy() for file in (training, testing))
    known, test = (table[table[:, 0] == 1][:, 1:] for table in tables)
    test = test[:, :-1]  # one column more than for training
    mean, std = known.mean(0), known.std(0, ddof=1)
    known, test = (known - mean) / std, (test - mean) / std
    continuous = (known == known.min(0)).sum(0) <= 5
    validation = len(known) // 10
    return known[:-validation, continuous], known[-validation:, continuous], test[:, continuous]


def _miniboone(file: IO[bytes]) -> Splits:
    return _scaled(_cut(np.load(file)))


def _bsds300(file: IO[bytes]) -> Splits:
    with optional("h5py", purpose="bsds300").File(file, "r") as splits:
        return splits["train"][:], splits["validation"][:], splits["test"][:]


SOURCES: dict[str, tuple[Callable[..., Splits], *tuple[str, ...]]] = {
    "power": (_power, "power/data.npy"),
    "gas": (_gas, "gas/ethylene_CO.pickle"),
    "hepmass": (_hepmass, "hepmass/1000_train.csv", "hepmass/1000_test.csv"),
    "miniboone": (_miniboone, "miniboone/data.npy"),
    "bsds300": (_bsds300, "BSDS300/BSDS300.hdf5"),
}
