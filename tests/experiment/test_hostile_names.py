"""Names that a user gives are text wherever they stand: of a run, a column, a data file; in HTML and in figures."""

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from experiment import compare
from experiment.comparison import contenders
from experiment.comparison.compare import Comparison
from experiment.likelihood import normalization_check

TAKES_OVER = "document.title='taken over'"
RUN = f"<img src=x onerror=\"{TAKES_OVER}\"> & 'run' $x_{{"  # a file name has no slash
COLUMN = f"</title></td></script><script>{TAKES_OVER}</script>\"' $\\frac{{"
FILE = f"<svg onload={TAKES_OVER}>'\"&.npz"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A table of hostile columns in a hostile file, with a hostile run."""
    root = tmp_path_factory.mktemp("hostile")
    x = np.random.default_rng(0).normal(size=(300, 2))
    rows = [",".join(['"' + COLUMN.replace('"', '""') + '"', "b"]), *(f"{a!r},{b!r}" for a, b in x.tolist())]
    table = root / FILE.replace(".npz", ".csv")
    table.write_text("\n".join(rows) + "\n")
    config = root / f"{RUN}.toml"
    config.write_text(
        f"[data]\nkind = 'table'\npath = {json.dumps(str(table))}\n"
        "[model]\nkind = 'real_nvp'\nlayers = 2\nhidden = [8]\n"
        "[train]\nsteps = 4\nbatch_size = 64\nvalidate_every = 2\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiment.run.RUNS", root / "runs")
        patch.setitem(normalization_check.POINTS, 2, 49)
        patch.setitem(contenders.SIZES, "gaussian_mixture", {0: {"components": 2}})
        return compare([config], root / "out", samples=100, threads=1)


class Reader(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_are_text_in_the_page(found: Comparison) -> None:
    reader = Reader((found.folder / "comparison.html").read_text())
    assert RUN in reader.text
    assert FILE.replace(".npz", "") in reader.text
    assert reader.tags.count("script") == 1  # which sorts the table
    assert "svg" not in reader.tags
    assert not {name for name in reader.attributes if name.startswith("on")}


def test_names_are_text_in_the_figures_and_the_other_files(found: Comparison) -> None:
    """A dollar or a brace in a name is no formula of matplotlib; what is written as JSON and CSV is read back."""
    assert {path.suffix for path in found.folder.iterdir() if path.is_file()} >= {".png", ".csv", ".json", ".md"}
    content = json.loads((found.folder / "comparison.json").read_text())
    assert RUN in json.dumps(content, ensure_ascii=False).replace('\\"', '"')
    assert any(s.run == RUN for s in found.summaries)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; .ci/run installs it")
def test_no_name_runs_in_a_browser(found: Comparison, tmp_path: Path) -> None:
    page = (found.folder / "comparison.html").as_uri()
    options = [*QUIET, "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [str(CHROMIUM), *options, "--dump-dom", page], capture_output=True, text=True, timeout=60, check=True
    )
    titles = re.findall(r"<title>(.*?)</title>", done.stdout)
    assert len(titles) == 1
    assert titles[0].startswith("Likelihoods on ")
