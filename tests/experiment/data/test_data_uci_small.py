import gzip
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from experiment.building.builder import load_data
from experiment.config import parse_config
from experiment.data import UCI_SMALL, Dataset, uci_small
from experiment.data.spread import resolution, spread
from experiment.data.uci_small import CSV_SHA256, TXT_FOLDERS, TXT_SHA256, independent
from experiment.errors import UserError

DATA_ROOT = Path(os.environ.get("CFLOWS_DATA_ROOT", Path(__file__).parents[3].parent / "shared" / "data"))
Serve = Callable[[Path], str]
Array = NDArray[np.float64]

# Rows and columns that are left, and the places of those that are not; docs/data.md shows them.
LEFT = {
    "airfoil": (1503, 6, []),
    "bike": (17379, 16, [4, 5]),
    "concrete": (1005, 9, []),
    "elevators": (16599, 19, []),
    "energy": (768, 8, [3]),
    "housing": (506, 14, []),
    "keggdirected": (16341, 19, [13, 15]),
    "kin40k": (40000, 9, []),
    "parkinsons": (5875, 19, [8, 14]),
    "pol": (14958, 27, []),
    "protein": (44018, 10, []),
    "pumadyn32nm": (8192, 33, []),
    "skillcraft": (3338, 20, []),
    "sml": (4137, 23, [2, 20, 21, 22]),
    "tamielectric": (45781, 4, []),
    "wine": (1359, 12, []),
    "kin8nm": (8192, 9, []),
    "naval": (11934, 15, [6, 8, 11]),
    "power_plant_ccpp": (9527, 5, []),
}


def messy(rows: int = 200) -> Array:
    """Columns: normal, whole numbers, constant, 2 a - 3 b + 1 to five digits, normal; and every tenth row twice."""
    random = np.random.default_rng(0)
    a, b, c = random.normal(size=rows).round(4), random.integers(0, 4, rows), random.normal(size=rows).round(4)
    x = np.stack([a, b, np.full(rows, 7.5), 2 * a - 3 * b + 1 + 1e-5 * random.normal(size=rows), c], 1)
    return np.insert(x, rows // 2, x[::10], axis=0)


def write(folder: Path, name: str, x: Array) -> bytes:
    """The table as its file is published."""
    csv = name in CSV_SHA256
    text = "\n".join(("," if csv else "   ").join(f"{value:.7f}" for value in row) for row in x) + "\n"
    content = gzip.compress(text.encode(), mtime=0) if csv else text.encode()
    path = folder / name / "data.csv.gz" if csv else folder / TXT_FOLDERS[name] / "data" / "data.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return content


@pytest.fixture
def web(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of stand-ins of both formats, declared official."""
    for name, digests in (("wine", CSV_SHA256), ("naval", TXT_SHA256)):
        content = write(tmp_path / "web", name, messy())
        monkeypatch.setitem(digests, name, hashlib.sha256(content).hexdigest())
    return serve(tmp_path / "web")


def small(name: str, root: Path, web: str, **settings: object) -> Dataset:
    return uci_small(name, root, csv_url=web, txt_url=web + "/", **settings)  # type: ignore[arg-type]


def all_rows(data: Dataset) -> Array:
    x = torch.cat([data.train, data.validation, data.test]).double().numpy()
    return x[np.lexsort(x.T)]


@pytest.mark.parametrize("name", ["wine", "naval"])
def test_what_would_leave_no_density_is_left_out(tmp_path: Path, web: str, name: str) -> None:
    data = small(name, tmp_path, web, noise=False)
    assert (data.name, data.bins, data.columns) == (name, None, ("0", "1", "4"))
    assert (len(data.train), len(data.validation), len(data.test)) == (160, 20, 20)
    x = np.unique(messy()[:, [0, 1, 4]].astype(np.float32), axis=0).astype(float)
    assert np.array_equal(all_rows(data), x[np.lexsort(x.T)])


def test_no_test_row_is_a_training_row(tmp_path: Path, web: str) -> None:
    data = small("wine", tmp_path, web, noise=False)
    known = {tuple(row) for row in torch.cat([data.train, data.validation]).tolist()}
    assert not known & {tuple(row) for row in data.test.tolist()}


def test_ties_are_spread_by_default_and_the_seed_fixes_all(tmp_path: Path, web: str) -> None:
    plain, noisy, again, other = (
        small("wine", tmp_path, web, **settings) for settings in ({"noise": False}, {}, {}, {"seed": 1})
    )
    assert noisy.digest == again.digest
    assert noisy.fingerprint != other.fingerprint
    assert torch.equal(noisy.train[:, 1].round(), plain.train[:, 1]), "the same rows"
    assert len(noisy.train[:, 1].unique()) == 160
    assert (noisy.train[:, 0] - plain.train[:, 0]).abs().max() < 1e-4


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_of_text_is_kept_in_either_form(tmp_path: Path, web: str, packed: bool) -> None:
    expected = small("naval", tmp_path, web).digest
    path = tmp_path / "uci_small" / "naval.txt"
    if packed:
        path.with_suffix(".txt.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert small("naval", tmp_path, "http://nowhere.invalid").digest == expected
    assert len(list(path.parent.iterdir())) == 1
    found = next(path.parent.iterdir())
    found.write_bytes(gzip.compress(b"1 2 3\n") if packed else b"1 2 3\n")
    with pytest.raises(
        UserError, match=rf"^{re.escape(str(found))}: sha256 (of its text )?is [0-9a-f]{{64}} and not .*; delete it"
    ):
        small("naval", tmp_path, web)


def test_another_table_is_refused(tmp_path: Path, web: str) -> None:
    with pytest.raises(
        UserError, match=r"^protein\.csv\.gz could not be downloaded from .*/protein/data\.csv\.gz \(404"
    ):
        small("protein", tmp_path, web)
    (tmp_path / "uci_small").mkdir(exist_ok=True)
    (tmp_path / "uci_small" / "wine.csv.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"wine\.csv\.gz: sha256 is [0-9a-f]{64} and not the official"):
        small("wine", tmp_path, web)
    with pytest.raises(UserError, match=r"^uci_small: there is no 'protien'; did you mean 'protein'\?"):
        small("protien", tmp_path, web)


@pytest.mark.parametrize("left", [2e-3, 5e-4])
def test_a_column_counts_from_a_thousandth_of_its_own(left: float) -> None:
    """x_2 = x_0 + x_1 + ε: what least squares leaves of it, against its deviation, decides."""
    random = np.random.default_rng(0)
    x = random.normal(size=(5_000, 3)) * [1, 100, 0]
    x[:, 2] = x[:, 0] + x[:, 1] + left * 100 * random.normal(size=5_000)
    design = np.column_stack([np.ones(5_000), x[:, :2]])
    rest = x[:, 2] - design @ np.linalg.lstsq(design, x[:, 2])[0]
    assert (rest.std() / x[:, 2].std() > 1e-3) == (left > 1e-3)
    assert independent(x + 1e4) == ([0, 1, 2] if left > 1e-3 else [0, 1])
    assert independent(x[:, [2, 0, 1]]) == ([0, 1, 2] if left > 1e-3 else [0, 1])


def test_no_more_columns_than_rows_are_left() -> None:
    assert independent(np.random.default_rng(0).normal(size=(4, 6))) == [0, 1, 2]


def test_resolution_is_the_smallest_gap() -> None:
    x = np.array([[0.1, 5, -1, 0], [0.3, 5, 2, 0], [0.2, 5, 0.5, 0], [0.1, 5, 2, 1e-300]])
    assert resolution(x).tolist() == pytest.approx([0.1, 0, 1.5, 1e-300])


def test_noise_is_uniform_between_the_neighbours() -> None:
    """x - k is uniform on [-Δ/2, Δ/2): mean 0, variance Δ²/12, and no value passes the middle to its neighbour."""
    k = 3.0 * np.random.default_rng(0).integers(0, 5, (100_000, 2)) * [1, 10]
    u = spread(k, np.random.default_rng(1)) - k
    assert np.abs(u / [3, 30]).max() <= 0.5
    assert np.abs(u.mean(0) / [3, 30]).max() < 5 / (12 * 100_000) ** 0.5
    assert u.var(0) / [9, 900] == pytest.approx([1 / 12] * 2, rel=0.01)
    assert abs(np.corrcoef(u.T)[0, 1]) < 0.02
    assert np.array_equal(k, 3.0 * np.random.default_rng(0).integers(0, 5, (100_000, 2)) * [1, 10]), "not in place"


def test_the_section_reads_it(tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = small("wine", tmp_path, web, seed=3, test=0.2, noise=False)
    text = {"kind": "uci_small", "name": "wine", "seed": 3, "test": 0.2, "noise": False}
    config = parse_config({"data": text, "model": {"kind": "nice"}}, source="test")
    assert load_data(config.data, tmp_path).digest == expected.digest
    with pytest.raises(UserError, match=r"'data\.name' is 'vine'"):
        parse_config({"data": text | {"name": "vine"}, "model": {"kind": "nice"}}, source="test")


@pytest.mark.skipif(not (DATA_ROOT / "uci_small").is_dir(), reason="the tables are absent; set CFLOWS_DATA_ROOT")
@pytest.mark.parametrize("name", UCI_SMALL)
def test_the_real_tables(name: str) -> None:
    rows, columns, left_out = LEFT[name]
    data = uci_small(name, DATA_ROOT, noise=False)
    assert sum(map(len, (data.train, data.validation, data.test))) == rows
    assert data.event_shape == torch.Size([columns])
    assert data.columns == tuple(str(place) for place in range(columns + len(left_out)) if place not in left_out)
    assert data.train.std(0).min() > 0
