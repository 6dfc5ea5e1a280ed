"""Rows of other data in the shape, levels and columns of a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experiment.building.builder import load_data
from experiment.config import parse_config
from experiment.data import Dataset
from experiment.errors import UserError
from experiment.other_data.other_rows import OtherRows, other_rows
from experiment.run import Run

FLOW = {"kind": "real_nvp", "layers": 1, "hidden": [4]}


def opened(data: dict[str, Any], root: Path, model: dict[str, Any] = FLOW) -> tuple[Run, Dataset]:
    """A run of these data that was never trained."""
    config = parse_config({"data": data, "model": model}, source="test")
    return Run(root / "run", config, {"data_root": str(root)}), load_data(config.data, root)


def read(source: Path, data: dict[str, Any], root: Path) -> OtherRows:
    run, dataset = opened(data, root)
    return other_rows(source, run, dataset, root=root)


@pytest.fixture
def people(tmp_path: Path) -> dict[str, Any]:
    """Ages of whole years and heights of halves, the second row without a height."""
    ages, heights = np.arange(40) % 7, np.arange(40) % 5 / 2
    lines = [f"{i},{a},{h if i != 1 else ''}" for i, (a, h) in enumerate(zip(ages, heights, strict=True))]
    (tmp_path / "people.csv").write_text("id,age,height\n" + "\n".join(lines) + "\n")
    return {"kind": "table", "path": "people.csv", "drop": ["id"], "missing": "drop"}


def test_a_table_has_the_columns_of_the_run_in_any_order(tmp_path, people):
    new = tmp_path / "new.csv"
    new.write_text("height,colour,age\n1.5,red,30\n,red,31\n2.5,blue,32\n")
    found = read(new, people, tmp_path)
    assert found.name == "new"
    assert found.x.tolist() == [[30.0, 1.5], [32.0, 2.5]]
    assert found.places.tolist() == [0, 2]  # the second lacks a value, as rows of training did
    with pytest.raises(UserError, match=r"new\.csv: row 1 has no value in column 'height'"):
        read(new, dense(tmp_path), tmp_path)


def dense(root: Path) -> dict[str, Any]:
    rows = "\n".join(f"{i},{i * i % 11}" for i in range(40))
    (root / "dense.csv").write_text(f"age,height\n{rows}\n")
    return {"kind": "table", "path": "dense.csv"}


def test_values_are_spread_over_the_gaps_of_the_run_and_not_of_the_rows(tmp_path, people):
    new = tmp_path / "new.csv"
    new.write_text("age,height\n" + "10,0.5\n20,100.5\n" * 500)
    x = read(new, {**people, "noise": True}, tmp_path).x.double()
    moved = x - torch.tensor([[10.0, 0.5], [20.0, 100.5]]).repeat(500, 1)
    for column, gap in enumerate((1.0, 0.5)):
        assert moved[:, column].abs().max() <= gap / 2 + 1e-5
        assert abs(moved[:, column].std() - gap / 12**0.5) < 0.02 * gap
    assert torch.equal(read(new, {**people, "noise": True}, tmp_path).x.double(), x)


def test_events_of_images_are_taken_in_either_shape(tmp_path):
    levels = np.random.default_rng(0).integers(0, 17, (3, 8, 8))
    for name, array in (("image", levels), ("flat", levels.reshape(3, 64)), ("row", levels.reshape(3, 1, 8, 8))):
        np.save(tmp_path / f"{name}.npy", array.astype(np.float32))
    flat, image = ({"kind": "digits", "layout": layout} for layout in ("flat", "image"))
    for source, data in (("image", flat), ("flat", flat), ("image", image), ("flat", image), ("row", image)):
        found = read(tmp_path / f"{source}.npy", data, tmp_path)
        assert torch.equal(found.x.flatten(1), torch.from_numpy(levels).float().flatten(1))
    with pytest.raises(
        UserError, match=r"row\.npy has rows of shape \(1, 8, 8\), but run run was trained on .*\(64,\)"
    ):
        read(tmp_path / "row.npy", flat, tmp_path)


def test_a_folder_of_images_is_cut_as_the_run_cut_its_own(tmp_path):
    random = np.random.default_rng(0)
    for folder, side in (("mine", 6), ("other", 12)):
        (tmp_path / folder).mkdir()
        for i in range(10):
            Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(
                tmp_path / folder / f"{i}.png"
            )
    data = {"kind": "image_folder", "path": "mine", "size": [6, 6]}
    found = read(tmp_path / "other", data, tmp_path)
    assert (found.name, found.x.shape) == ("other", (10, 3, 6, 6))
    assert read(tmp_path / "other", {**data, "colour": False, "layout": "flat"}, tmp_path).x.shape == (10, 36)
    with pytest.raises(UserError, match=r"other has rows of shape \(3, 12, 12\)"):
        read(tmp_path / "other", {"kind": "image_folder", "path": "mine"}, tmp_path)
    with pytest.raises(UserError, match="other is a folder of images, but run run was not trained on images of 256"):
        read(tmp_path / "other", {"kind": "digits"}, tmp_path)


def test_a_config_gives_its_test_split(tmp_path):
    path = tmp_path / "spirals.toml"
    path.write_text('[data]\nkind = "toy"\nname = "2spirals"\ntest_rows = 7\n\n[model]\nkind = "nothing"\n')
    moons = {"kind": "toy", "name": "moons", "train_rows": 10, "validation_rows": 5, "test_rows": 5}
    found = read(path, moons, tmp_path)
    assert (found.name, found.x.shape) == ("2spirals", (7, 2))
    path.write_text('[data]\nkind = "toy"\nname = "moons"\ntest_rows = 7\nseed = 3\n')
    assert read(path, moons, tmp_path).name == "spirals"  # the data have the run's own name


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('[data]\nkind = "digits"\n', r"c\.toml: digits is of 17 levels, but .* moons, which is continuous"),
        ('[data]\nkind = "toy"\nname = "loons"\n', r"c\.toml: 'data\.name' is 'loons'"),
        ('[model]\nkind = "nice"\n', r"c\.toml: 'data' is missing"),
    ],
)
def test_a_config_of_other_data_is_named(tmp_path, content, sentence):
    (tmp_path / "c.toml").write_text(content)
    moons = {"kind": "toy", "name": "moons", "train_rows": 10, "validation_rows": 5, "test_rows": 5}
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / "c.toml", moons, tmp_path)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([[0.0, 17.0] * 32], r"row 0 holds 17\.0 in column 1; data with 17 levels"),
        ([[0.5] * 64], r"holds 0\.5 in column 0; data with 17 levels hold whole numbers"),
        ([[0.0] * 63], r"has rows of shape \(63,\), but run run was trained on rows of shape \(64,\)"),
        ([[0.0] * 63 + [np.inf]], "holds inf in column 63"),
        ([[0.0] * 63 + [np.nan]], "row 0 has no value in column 63"),
        (np.zeros((0, 8, 8)), "holds no rows to score"),
    ],
)
def test_rows_that_the_run_cannot_take_are_named(tmp_path, rows, sentence):
    np.save(tmp_path / "rows.npy", np.array(rows))
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / "rows.npy", {"kind": "digits"}, tmp_path)


def test_a_column_that_is_missing_is_named(tmp_path, people):
    (tmp_path / "new.csv").write_text("age,hight\n1,2\n")
    with pytest.raises(UserError, match=r"there is no column 'height'; did you mean 'hight'"):
        read(tmp_path / "new.csv", people, tmp_path)
    with pytest.raises(UserError, match=r"absent\.csv: there is no such file"):
        read(tmp_path / "absent.csv", people, tmp_path)
    other = tmp_path / "other.toml"
    other.write_text('[data]\nkind = "table"\npath = "dense.csv"\ncolumns = ["height", "age"]\n')
    run, dataset = opened(dense(tmp_path), tmp_path)
    with pytest.raises(UserError, match=r"its columns are height, age, but the run's are age, height"):
        other_rows(other, run, dataset, root=tmp_path)
