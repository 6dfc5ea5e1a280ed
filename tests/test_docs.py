"""The README's examples run, and every table shows the JSON that it comes from."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks import tables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_examples_of_the_readme_run(capsys):
    torch.manual_seed(0)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert "kind='exact'" in capsys.readouterr().out
    assert names["loss"].isfinite()
    assert names["pixels"].event_shape == (64,)


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_is_measured_and_stands_in_a_page(name):
    assert (tables.RESULTS / f"{name}.json").is_file()
    assert any(f"<!-- table: {name} -->" in page.read_text() for page in tables.PAGES)


def test_tables_show_their_json():
    tables.main(["--check"])


def test_a_changed_figure_is_noticed(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    text = tables.PAGES[0].read_text()
    page.write_text(re.sub(r"\| (VE|VP) \| 2 \|", "| XX | 2 |", text))
    assert page.read_text() != text
    monkeypatch.setattr(tables, "PAGES", (page,))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="does not show its JSON"):
        tables.main(["--check"])


def test_scripts_named_in_the_readme_exist():
    for name in set(re.findall(r"\b\w+\.py\b", README)):
        assert (ROOT / name).is_file()
    for config in set(re.findall(r"configs/[\w/]+\.toml", README)):
        assert (ROOT / config).is_file()
