"""The site builds strictly and needs no network, its notebooks run, its examples run, and its reference is whole."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from experiment import load_config

ROOT = Path(__file__).parents[1]
DOCS, HOOKS = ROOT / "docs", ROOT / "docs" / "hooks"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXAMPLES = ("couplings", "autoregressive", "linear", "masses", "distillation", "sdes", "neural_odes")
PACKAGES = ("core", "discrete", "discrete.inference", "cflows", "experiment")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    # In a process of its own: the warnings of other people's packages are not ours.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    arguments = [sys.executable, *map(str, command)]
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)


def run_example(name: str, names: dict[str, Any]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / f"{name}.md").read_text(), re.DOTALL)
    exec(block, names)


class Page(HTMLParser):
    """What a page loads, and its text within equations."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.equations: list[str] = []
        self.inside = False
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.loads.append(values.get("src") or "")
        if tag == "link":
            self.loads.append(values.get("href") or "")
        if tag == "math":
            self.inside, self.equations = True, [*self.equations, ""]

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "math"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.equations[-1] += data


def test_every_public_name_stands_in_the_reference_once():
    named = re.findall(r"^::: ([\w.]+)$", "\n".join(p.read_text() for p in (DOCS / "reference").glob("*.md")), re.M)
    public = [f"{package}.{name}" for package in PACKAGES for name in importlib.import_module(package).__all__]
    assert sorted(named) == sorted(public)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_a_theory_page_run(name, capsys):
    run_example(name, {})
    assert capsys.readouterr().out


def test_examples_show_what_they_say(capsys):
    names: dict[str, Any] = {}

    def normal(x: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)

    run_example("linear", names)
    assert torch.allclose(names["flow"].log_prob(names["x"]), normal(names["x"]))
    run_example("sdes", names)
    assert torch.allclose(names["estimate"].log_prob, normal(names["x"]), atol=1e-4)
    run_example("masses", names)
    assert names["model"].log_prob(names["states"]).exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    run_example("autoregressive", names)
    x, z = names["x"], names["z"]
    assert torch.allclose(names["iaf"].bijection(z)[0], x, atol=1e-4)
    assert not torch.allclose(z, x, atol=1e-2)


def test_commands_of_the_tutorial_name_what_exists():
    page = (DOCS / "tutorial.md").read_text()
    commands = [line.split() for line in re.findall(r"^(?:\$ )?python (\w+\.py .*)$", page, re.M)]
    assert len(commands) > 4
    for script, *arguments in commands:
        assert (ROOT / script).is_file()
        settings = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--set"]
        for config in (a for a in arguments if a.startswith("configs/") and script == "train.py"):
            load_config(ROOT / config, settings)
        known = (ROOT / script).read_text() + (ROOT / "experiment" / "cli.py").read_text()
        assert all(f'"{option}"' in known for option in arguments if option.startswith("--"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}  # nothing of who ran it last


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    done = run(HOOKS / "notebooks.py", path)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "message"),
    [("assert 1 == 2", "AssertionError"), ("import warnings; warnings.warn('odd')", "wrote to standard error")],
)
def test_a_notebook_that_fails_or_warns_is_noticed(tmp_path, cell, message):
    notebook = json.loads(NOTEBOOKS[0].read_text())
    code = {"cell_type": "code", "execution_count": None, "id": "one", "metadata": {}, "outputs": [], "source": cell}
    (tmp_path / "wrong.ipynb").write_text(json.dumps({**notebook, "cells": [code]}))
    done = run(HOOKS / "notebooks.py", tmp_path / "wrong.ipynb")
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.slow
def test_site_builds_strictly_and_needs_no_network(tmp_path):
    done = run("-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site")
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {path.relative_to(tmp_path / "site").as_posix(): Page(path) for path in tmp_path.rglob("*.html")}
    assert not [(n, at) for n, page in pages.items() for at in page.loads if re.match(r"(\w+:)?//", at)]
    css = "\n".join(path.read_text() for path in tmp_path.rglob("*.css"))
    assert not re.search(r"(url\(|@import)\s*['\"]?(\w+:)?//", css)
    assert (tmp_path / "site" / "stylesheets" / "math.woff").stat().st_size < 500_000

    equations = [(n, text) for n, page in pages.items() for text in page.equations]
    assert {"sdes.html", "couplings.html", "residual.html", "notebooks/toy_tour.html"} <= {n for n, _ in equations}
    assert not [found for found in equations if "\\" in found[1]]  # a command that became no sign
    for path in NOTEBOOKS:
        assert any(f"{path.stem}_0.png" in at for at in pages[f"notebooks/{path.stem}.html"].loads)
    if CHROMIUM is not None:
        assert "matching documents" in _searched(tmp_path, "hutchinson")


def _searched(folder: Path, words: str) -> str:
    """The page that is opened from the disk and searched."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", "--virtual-time-budget=10000"]
    profile, page = f"--user-data-dir={folder / 'profile'}", (folder / "site" / "index.html").as_uri()
    command = [str(CHROMIUM), *options, profile, "--dump-dom", f"{page}?q={words}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
