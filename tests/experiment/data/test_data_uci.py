"""Small stand-ins for the published archive in its file formats, and each preparation derived anew with pandas."""

import hashlib
import io
import re
import socket
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiment import evaluate, train
from experiment.building.builder import load_data
from experiment.config import parse_config
from experiment.data import Dataset, uci
from experiment.errors import UserError
from experiment.sections.data import UCIData

module = sys.modules["experiment.data.uci"]
Rows = NDArray[np.float64]
Serve = Callable[[Path], str]

PUBLISHED = {
    "power": (6, (1_659_917, 184_435, 204_928)),
    "gas": (8, (852_174, 94_685, 105_206)),
    "hepmass": (21, (315_123, 35_013, 174_987)),
    "miniboone": (43, (29_556, 3_284, 3_648)),
    "bsds300": (63, (1_000_000, 50_000, 250_000)),
}
SMALL = {
    "power": (6, (178, 19, 21)),
    "gas": (4, (190, 21, 23)),
    "hepmass": (3, (91, 10, 60)),
    "miniboone": (5, (170, 18, 20)),
    "bsds300": (63, (30, 10, 20)),
}
SENSORS = ["Time", "Meth", "Eth", *(f"R{i}" for i in range(1, 8))]


def household(random: np.random.Generator) -> Rows:
    """218 rows, of which 21.8 make a tenth: what is cut is rounded down."""
    return np.round(random.normal(size=(218, 8)) * [1, 1, 5, 9, 20, 20, 20, 3], 2)


def sensors(random: np.random.Generator) -> pd.DataFrame:
    """R1, R2 and R5 follow one source, R3 and R4 another; R2 alone is near R1 and R5, which are apart."""
    x = random.normal(size=(234, 10)) * 7 + 40
    x[:, 3] = x[:, 4] + 1.2 * random.normal(size=234)
    x[:, 7] = x[:, 4] - 1.2 * random.normal(size=234)
    x[:, 6] = 3 * x[:, 5] + 0.1 * random.normal(size=234)
    return pd.DataFrame(x.copy(), columns=pd.Index(SENSORS, dtype=object))


def collisions(random: np.random.Generator, signals: int, rows: int, features: int) -> pd.DataFrame:
    """f1's smallest value occurs six times among the signals and goes; that of f2 five times, and its largest often."""
    x = random.normal(size=(rows, features))
    label = (np.arange(rows) < signals).astype(float)
    x[:6, 1] = x[:, 1].min() - 1
    x[:5, 2] = x[:, 2].min() - 1
    x[10:40, 2] = x[:, 2].max() + 1
    x[signals:, 3] = x[:, 3].min() - 1  # of the background
    order = random.permutation(rows)
    names = ["# label", *(f"f{i}" for i in range(features))]
    return pd.DataFrame(np.column_stack([label, x])[order], columns=names)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `data` of the archive, with what the loader does not need."""
    folder, random = tmp_path_factory.mktemp("unpacked") / "data", np.random.default_rng(0)
    for part in ("power", "gas", "hepmass", "miniboone", "BSDS300", "mnist"):
        (folder / part).mkdir(parents=True)
    np.save(folder / "power" / "data.npy", household(random))
    sensors(random).to_pickle(folder / "gas" / "ethylene_CO.pickle", protocol=2)
    collisions(random, 101, 150, 4).to_csv(folder / "hepmass" / "1000_train.csv", index=False)
    collisions(random, 60, 90, 5).to_csv(folder / "hepmass" / "1000_test.csv", index=False)
    np.save(folder / "miniboone" / "data.npy", 3 + 4 * random.normal(size=(208, 5)))
    with h5py.File(folder / "BSDS300" / "BSDS300.hdf5", "w") as file:
        for split, rows in zip(("train", "validation", "test"), SMALL["bsds300"][1], strict=True):
            file[split] = random.normal(size=(rows, 63)).astype(np.float32)
    (folder / "mnist" / "mnist.pkl.gz").write_bytes(b"not needed")
    return folder


def pack(archive: Path, folder: Path, extra: dict[str, bytes] | None = None) -> str:
    """The archive with its md5."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in (extra or {}).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        tar.add(folder, "data")
    return hashlib.md5(archive.read_bytes()).hexdigest()


@pytest.fixture
def root(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "ARCHIVE_MD5", pack(tmp_path / "maf" / "data.tar.gz", files))
    monkeypatch.setattr(module, "SHAPES", SMALL)
    return tmp_path


def tenths(x: Rows) -> list[Rows]:
    """Cut as in print: N/10 rows, rounded down, from the end, twice."""
    test = int(0.1 * len(x))
    validation = int(0.1 * (len(x) - test))
    return [x[: -test - validation], x[-test - validation : -test], x[-test:]]


def standardized(parts: list[Rows]) -> list[Rows]:
    known = np.vstack(parts[:2])
    return [(part - known.mean(axis=0)) / known.std(axis=0) for part in parts]


def power(folder: Path) -> list[Rows]:
    """Shuffled in place, noise as one array: the draws in the published order."""
    random = np.random.RandomState(42)
    x = np.load(folder / "power" / "data.npy")
    random.shuffle(x)
    x = np.delete(x, [1, 3], axis=1)
    voltage, active = 0.01 * random.rand(len(x), 1), 0.001 * random.rand(len(x), 1)
    noise = [active, voltage, random.rand(len(x), 3), np.zeros((len(x), 1))]
    return standardized(tenths(x + np.hstack(noise)))


def gas(folder: Path) -> list[Rows]:
    """Drops one column at a time and correlates anew."""
    frame = pd.read_pickle(folder / "gas" / "ethylene_CO.pickle").drop(columns=["Time", "Meth", "Eth"])
    while True:
        alike = (frame.corr() > 0.98).sum(axis=1)
        crowded = [name for name in frame.columns if alike[name] > 1]
        if not crowded:
            break
        frame = frame.drop(columns=crowded[0])
    return tenths(((frame - frame.mean()) / frame.std()).to_numpy())


def hepmass(folder: Path) -> list[Rows]:
    """Counts every value of every column."""
    known, test = (pd.read_csv(folder / "hepmass" / f"1000_{part}.csv") for part in ("train", "test"))
    known, test = (frame[frame["# label"] == 1].drop(columns="# label") for frame in (known, test))
    mean, std = known.mean(), known.std()
    kept = []
    for name in known.columns:
        count = Counter(((known[name] - mean[name]) / std[name]).tolist())
        if count[min(count)] <= 5:
            kept.append(name)
    known, test = (((frame[known.columns] - mean) / std)[kept].to_numpy() for frame in (known, test))
    validation = int(0.1 * len(known))
    return [known[:-validation], known[-validation:], test]


def miniboone(folder: Path) -> list[Rows]:
    return standardized(tenths(np.load(folder / "miniboone" / "data.npy")))


def bsds300(folder: Path) -> list[Rows]:
    with h5py.File(folder / "BSDS300" / "BSDS300.hdf5") as file:
        return [np.array(file[split], dtype=np.float64) for split in ("train", "validation", "test")]


DERIVED = {"power": power, "gas": gas, "hepmass": hepmass, "miniboone": miniboone, "bsds300": bsds300}


def splits(data: Dataset) -> Iterator[Tensor]:
    yield from (data.train, data.validation, data.test)


@pytest.mark.parametrize("name", SMALL)
def test_each_benchmark_is_prepared_as_in_print(root: Path, files: Path, name: str) -> None:
    data = uci(name, root)
    assert (data.name, data.bins, data.train.dtype) == (name, None, torch.float32)
    for found, expected in zip(splits(data), DERIVED[name](files), strict=True):
        assert found.shape == expected.shape
        assert np.allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)
    columns, rows = SMALL[name]
    assert [tuple(split.shape) for split in splits(data)] == [(count, columns) for count in rows]


def test_sensors_that_say_the_same_are_left_out_one_after_another(root: Path, files: Path) -> None:
    """R1 goes, for R2; R3 for R4; then R2 for R5. All at once would leave none of the three."""
    x = pd.read_pickle(files / "gas" / "ethylene_CO.pickle")
    corr = x.corr()
    assert corr.loc["R1", "R2"] > 0.98
    assert corr.loc["R2", "R5"] > 0.98 > corr.loc["R1", "R5"]
    assert corr.loc["R3", "R4"] > 0.98
    left = ["R4", "R5", "R6", "R7"]
    expected = ((x[left] - x[left].mean()) / x[left].std()).to_numpy()[:190]
    assert np.allclose(uci("gas", root).train.numpy(), expected, atol=1e-5)


def test_published_numbers_of_rows_follow_from_the_tenths() -> None:
    assert module.SHAPES == PUBLISHED
    for name, total in {"power": 2_049_280, "gas": 1_052_065, "miniboone": 36_488}.items():
        parts = module._cut(np.broadcast_to(np.zeros(1), (total, 1)))
        assert tuple(map(len, parts)) == PUBLISHED[name][1]
    assert sum(PUBLISHED["hepmass"][1][:2]) // 10 == PUBLISHED["hepmass"][1][1]


def test_what_was_prepared_is_mapped_and_needs_no_archive(root: Path) -> None:
    data = uci("power", root)
    assert sorted(path.name for path in (root / "maf").iterdir()) == ["data.tar.gz", "power"]
    (root / "maf" / "data.tar.gz").unlink()
    again = uci("power", root, url="http://nowhere.invalid")
    assert again.digest == data.digest
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(root / "maf" / "power" / "train.npy") in maps.read_text()
    again.train[0] = 0  # in memory only
    assert uci("power", root).digest == data.digest


def test_another_process_may_have_been_faster(root: Path) -> None:
    expected = uci("power", root).digest
    module._convert("power", root / "maf" / "power", "http://nowhere.invalid")
    assert uci("power", root).digest == expected
    assert sorted(path.name for path in (root / "maf").iterdir()) == ["data.tar.gz", "power"]


def test_the_archive_is_downloaded_where_it_is_absent(root: Path, serve: Serve, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    data = uci("miniboone", target, url=serve(root / "maf") + "/data.tar.gz")
    assert data.digest == uci("miniboone", root).digest
    assert (target / "maf" / "data.tar.gz").read_bytes() == (root / "maf" / "data.tar.gz").read_bytes()


def test_offline_the_message_says_what_to_do(root: Path, tmp_path: Path, serve: Serve) -> None:
    target, md5 = tmp_path / "elsewhere", module.ARCHIVE_MD5
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/data.tar.gz"
        with pytest.raises(UserError) as refusal:
            uci("gas", target, url=address)
    assert str(refusal.value).startswith(f"data.tar.gz could not be downloaded from {address} (")
    assert str(refusal.value).endswith(f"); put the file with md5 {md5} into {target / 'maf'} by other means.")
    with pytest.raises(UserError, match=r"^data\.tar\.gz could not be downloaded from .* \(404"):
        uci("gas", target, url=serve(tmp_path) + "/data.tar.gz")
    assert list((target / "maf").iterdir()) == []


def test_another_archive_is_refused_unread(root: Path) -> None:
    archive = root / "maf" / "data.tar.gz"
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(UserError, match=rf"^{re.escape(str(archive))}: md5 is [0-9a-f]{{32}} and not the official .*;"):
        uci("gas", root)
    assert [path.name for path in (root / "maf").iterdir()] == ["data.tar.gz"]


def test_no_path_of_the_archive_is_used(files: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Climbing out, an absolute path and a link in place of the file: nothing is written, nothing read through it."""
    archive, evil = root / "maf" / "data.tar.gz", root / "evil"
    content = {"../evil": b"x", "data/power/../../../evil": b"x", str(evil): b"x"}
    monkeypatch.setattr(module, "ARCHIVE_MD5", pack(archive, files, content))
    uci("power", root)
    assert not evil.exists()
    assert sorted(path.name for path in (root / "maf").iterdir()) == ["data.tar.gz", "power"]
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("data/miniboone/data.npy")
        link.type, link.linkname = tarfile.SYMTYPE, str(files / "miniboone" / "data.npy")
        tar.addfile(link)
    monkeypatch.setattr(module, "ARCHIVE_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    with pytest.raises(UserError, match=r"data\.tar\.gz holds no file data/miniboone/data\.npy; delete it"):
        uci("miniboone", root)


def test_a_damaged_archive_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = root / "maf" / "data.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-3000])
    monkeypatch.setattr(module, "ARCHIVE_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    with pytest.raises(UserError, match=r"data\.tar\.gz cannot be read \(.*; delete it to download it again"):
        uci("power", root)
    assert [path.name for path in (root / "maf").iterdir()] == ["data.tar.gz"]


@pytest.mark.parametrize("name", SMALL)
def test_an_unexpected_shape_is_refused_and_not_kept(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, (train_rows, *others) = SMALL[name]
    monkeypatch.setitem(SMALL, name, (columns, (train_rows + 1, *others)))
    found, expected = f"\\({train_rows}, {columns}\\)", f"\\({train_rows + 1}, {columns}\\)"
    with pytest.raises(
        UserError,
        match=rf"data\.tar\.gz: the train rows of {name} have shape {found}, but the benchmark has {expected}\.$",
    ):
        uci(name, root)
    assert [path.name for path in (root / "maf").iterdir()] == ["data.tar.gz"]


def test_damaged_files_are_refused(root: Path) -> None:
    uci("power", root)
    path = root / "maf" / "power" / "validation.npy"
    np.save(path, np.zeros((18, 6), np.float32))
    with pytest.raises(UserError, match=r"validation\.npy: the validation rows of power have shape \(18, 6\), but"):
        uci("power", root)
    for content in (path.read_bytes()[:200], b"", b"x" * 500):
        path.write_bytes(content)
        with pytest.raises(
            UserError, match=r"validation\.npy is damaged \(.*\); delete .*maf/power to prepare it again"
        ):
            uci("power", root)
    path.unlink()
    with pytest.raises(UserError, match=r"validation\.npy is damaged \(.*No such file"):
        uci("power", root)


@pytest.mark.parametrize(("name", "package"), [("hepmass", "pandas"), ("bsds300", "h5py")])
def test_a_missing_package_is_named_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as refusal:
        uci(name, tmp_path, url="http://nowhere.invalid")
    assert str(refusal.value) == f"{name} needs {package}; install it with: pip install 'cflows[tabular]'."


def test_a_benchmark_goes_through_the_scripts(root: Path) -> None:
    table = {
        "data": {"kind": "gas"},
        "model": {"kind": "real_nvp", "layers": 2, "hidden": [8]},
        "train": {"steps": 2, "batch_size": 20},
    }
    run = train(parse_config(table, source="test"), root / "run", data_root=root, device="cpu")
    assert (evaluate(run.path).rows, evaluate(run.path).dimensions) == (23, 4)
    assert load_data(UCIData(kind="power"), root).event_shape == torch.Size([6])
