"""A table without a config: what of it is used and said, models that fit it, and the comparison that comes of it."""

import json
import runpy
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from experiment.building.builder import build
from experiment.cli import run
from experiment.comparison import contenders, starter
from experiment.comparison.starter import plan, toml
from experiment.config import load_config, parse_config
from experiment.data import table
from experiment.errors import UserError

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(300, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 1.0]])


def csv(folder: Path, x: np.ndarray = X, names: str = "a,b,c", more: dict[str, list[object]] | None = None) -> Path:
    """A table of numbers, and of further columns."""
    path, extra = folder / "rows.csv", more or {}
    lines = [",".join([names, *extra])]
    lines += [",".join([*map(repr, row), *(str(extra[name][i]) for name in extra)]) for i, row in enumerate(x.tolist())]
    path.write_text("\n".join(lines) + "\n")
    return path


def data_of(path: Path) -> dict[str, object]:
    found = plan(path, minutes=1)
    sections = [section["data"] for section in found.sections.values()]
    assert all(section == sections[0] for section in sections), "all models see the same rows"
    return sections[0]


def test_a_clean_table_is_taken_as_it_is(tmp_path: Path) -> None:
    found = plan(csv(tmp_path), minutes=1)
    assert (found.rows, found.columns, found.notes) == (300, ("a", "b", "c"), ())
    assert found.out == Path("runs/rows")
    assert data_of(found.path) == {"kind": "table", "path": str(found.path), "validation": 0.2, "test": 0.2}
    assert plan(found.path, minutes=1) == found


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (["red"] * 300, "holds 'red' in row 0; code it as numbers to keep it"),
        ([1.5] * 299 + ["1.5x"], "holds '1.5x' in row 299"),
        (["2024-01-02"] * 300, "holds '2024-01-02' in row 0"),
        ([7] * 300, "is 7 in every row"),
        (list(range(300)), "counts the rows"),
        ([*range(5, 304), 304.5], "counts the rows"),
        ([""] * 200 + list(RANDOM.normal(size=100)), "has a value in 100 of 300 rows"),
        ((2 * X[:, 0] - X[:, 1] + 4).tolist(), "is a linear function of others before it"),
    ],
)
def test_a_column_without_a_density_is_left_out_and_named(tmp_path: Path, values: list[object], why: str) -> None:
    path = csv(tmp_path, more={"odd": values})
    found = plan(path)
    assert found.columns == ("a", "b", "c")
    assert [note.startswith(f"left out column 'odd', which {why}") for note in found.notes] == [True]
    assert data_of(path)["drop"] == ["odd"]


def test_rows_that_lack_a_value_or_occurred_before_are_left_out_and_counted(tmp_path: Path) -> None:
    x = np.concatenate([X, X[100:107]])
    x[:20, 1] = np.nan
    path = csv(tmp_path, x)
    found = plan(path)
    assert found.rows == 280
    assert found.notes[0] == "left out 20 of 307 rows, which lack a value"
    assert found.notes[1] == "left out 7 rows that occurred before, so that no test row is a training row"
    assert found.rows == len(np.unique(x[~np.isnan(x).any(1)], axis=0))
    section = data_of(path)
    assert (section["missing"], section["duplicates"]) == ("drop", "drop")
    loaded = table(path, **{key: value for key, value in section.items() if key not in ("kind", "path")})
    rows = torch.cat([loaded.train, loaded.validation, loaded.test])
    assert len(rows) == 280 == len(torch.unique(rows, dim=0))


def test_rows_are_whole_if_they_lack_a_value_of_a_column_left_out(tmp_path: Path) -> None:
    linear = (X[:, 0] + X[:, 1]).tolist()
    linear[:30] = [""] * 30
    found = plan(csv(tmp_path, more={"sum": linear}))
    assert (found.rows, found.columns, len(found.notes)) == (300, ("a", "b", "c"), 1)
    gaps = [""] * 150
    with pytest.raises(UserError, match="0 rows are left"):
        plan(csv(tmp_path, more={"x": [*X[:150, 0], *gaps], "y": [*gaps, *X[150:, 0]]}))


def test_values_that_rows_share_are_spread_and_counts_keep_their_frequencies(tmp_path: Path) -> None:
    path = csv(tmp_path, np.column_stack([X[:, 0], RANDOM.integers(0, 5, 300)]), "x,count")
    assert plan(path).notes == ("column 'count' has 5 values: uniform noise 1 wide makes them a density",)
    assert data_of(path)["noise"] is True
    counts = csv(tmp_path, RANDOM.integers(0, 4, (300, 2)).astype(float), "m,n")
    assert "duplicates" not in data_of(counts), "equal rows of counts are no copies"
    assert plan(counts).rows == 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\nx,y\nx,y\n", "no column of numbers is left: 'a' holds 'x' in row 0.*; 'b' holds 'y'"),
        ("a,a\n" + "1,2\n3,4\n" * 30, "two columns are called 'a'; give each a name of its own"),
        ("a\n" + "\n".join(map(repr, X[:40, 0].tolist())), "40 rows are left, but three models and a test need 50"),
        ("a,b\n" + "\n".join(f"{v},{u}" for v, u in X[:60, :2]) + "\n1,inf\n", "row 60 holds inf in column 'b'"),
        (
            "a\n" + "\n".join(f"{1.7e9 + i**0.7:.3f}" for i in range(100)),
            "'a' varies by 24.9 around 1.7e.09.* subtract a constant from it first",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        plan(path)


def test_time_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--minutes must be above 0, such as 3, but is -1"):
        plan(csv(tmp_path), minutes=-1)


@pytest.mark.parametrize("rows", [60, 300, 30_000])
@pytest.mark.parametrize("columns", [1, 2, 12])
def test_every_model_takes_any_number_of_rows_and_columns(tmp_path: Path, rows: int, columns: int) -> None:
    x = np.random.default_rng(1).normal(size=(rows, columns))
    np.save(tmp_path / "x.npy", x)
    found = plan(tmp_path / "x.npy")
    assert [*found.sections] == ["nsf", "gaussianization", "flow_matching"]
    for name, section in found.sections.items():
        config = parse_config(section, source=name)
        train, rows_left = config.train, round(rows * (1 - 2 * section["data"]["test"]))
        assert train.batch_size <= rows_left
        assert train.steps * train.batch_size <= 250 * rows + 20 * train.batch_size
        assert train.steps % train.validate_every == 0
        assert round(rows * section["data"]["test"]) <= 4000
        some = torch.from_numpy(x[:40]).float()
        model = build(config, (columns,), rows=some).model
        assert model.log_prob(some[:3]).isfinite().all()


def test_steps_grow_with_the_minutes_and_shrink_with_the_columns(tmp_path: Path) -> None:
    def steps(columns: int, minutes: float) -> list[int]:
        np.save(tmp_path / "x.npy", RANDOM.normal(size=(30_000, columns)))
        return [section["train"]["steps"] for section in plan(tmp_path / "x.npy", minutes=minutes).sections.values()]

    few, more, wide = steps(2, 1), steps(2, 3), steps(50, 1)
    assert all(abs(b / a - 3) < 0.1 for a, b in zip(few, more, strict=True))
    assert wide[0] < few[0] / 2
    assert wide[1] < few[1] / 2


def test_a_config_that_is_written_says_the_same_when_it_is_read(tmp_path: Path) -> None:
    section = {
        "data": {"path": 'a "b" \\ é 😀', "drop": ["x,y", "ü"], "noise": True},
        "x": 1e-4,
        "y": {"z": {"w": [64, 64]}},
    }
    assert tomllib.loads(toml(section, comment="any")) == section


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of a few steps, and a small mixture."""
    training = starter._training
    monkeypatch.setattr(starter, "_training", lambda *a, **k: {**training(*a, **k), "steps": 4, "validate_every": 2})
    monkeypatch.setitem(contenders.SIZES, "gaussian_mixture", {0: {"components": 2}})


def test_a_table_becomes_configs_runs_and_a_page(tmp_path: Path, short: None) -> None:
    path = csv(tmp_path, more={"colour": ["red"] * 300})
    chosen = plan(path, tmp_path / "out", minutes=1)
    assert "left out column 'colour'" in chosen.text()
    found = chosen.compare(threads=1, samples=50)
    names = {entry.summary.run for entry in found.entries}
    assert names == {"nsf", "gaussianization", "flow_matching", "gaussian", "gaussian_mixture", "kernel_density"}
    for name in chosen.sections:
        assert load_config(tmp_path / "out" / f"{name}.toml") == parse_config(chosen.sections[name], source=name)
        assert json.loads((tmp_path / "out" / name / "environment.json").read_text())["columns"] == ["a", "b", "c"]
    assert (tmp_path / "out" / "columns.png").read_bytes().startswith(b"\x89PNG")
    assert "Column by column" in (tmp_path / "out" / "comparison.html").read_text()
    report = chosen.report(found)
    best = found.entries[0].run.path
    assert f"python evaluate.py {best} --anomalies new_rows.csv" in report
    assert all(name in report for name in names)
    assert ("cannot tell which" in report) == (sum(entry.rank == 1 for entry in found.entries) > 1)
    parameters = {entry.summary.run: entry.summary.parameters for entry in found.entries}
    assert parameters["gaussian"] == 9
    assert parameters["kernel_density"] == 180 * 3 + 6

    other = plan(path, tmp_path / "out", minutes=1)
    other.sections["nsf"]["train"]["steps"] = 6
    with pytest.raises(UserError, match=r"nsf\.toml is there already and has train\.steps=4, not 6; give another"):
        other.compare(threads=1)


@pytest.mark.parametrize(
    ("text", "told"), [("a\nx\n", "no column of numbers is left"), ("a\n1\n4\n2\n", "3 rows are left")]
)
def test_the_script_takes_a_table_and_says_what_is_wrong_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    monkeypatch.setattr("sys.argv", ["compare.py", str(path), "--minutes", "1"])
    main = runpy.run_path(str(Path(__file__).parents[3] / "compare.py"))["main"]
    assert run(main) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ")
    assert told in error
