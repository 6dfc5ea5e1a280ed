"""A comparison from configs to the page, and what is drawn from a model beside test rows."""

import csv
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from experiment import compare, evaluate, train
from experiment.comparison import contenders
from experiment.comparison.compare import Comparison, _check_same_rows
from experiment.comparison.contenders import Options, open_or_train
from experiment.comparison.figures import disagreeing, histogram
from experiment.comparison.published import published
from experiment.comparison.quality import Draws, draws_of, floor, quality
from experiment.config import parse_config
from experiment.data import Dataset
from experiment.errors import UserError
from experiment.likelihood import normalization_check
from experiment.likelihood.evaluation import saved_summary

TOY = 'kind = "toy"\nname = "moons"\ntrain_rows = 400\nvalidation_rows = 50\ntest_rows = 300'
TRAIN = "steps = 4\nbatch_size = 64\nvalidate_every = 2"
MODELS = {
    "flow": 'kind = "real_nvp"\nlayers = 2\nhidden = [8]',
    "ode": 'kind = "flow_matching"\nhidden = [8]\nsolver = {method = "rk4", steps = 4}',
}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """One model from its config, one from its run, and the baselines."""
    root = tmp_path_factory.mktemp("comparison")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiment.run.RUNS", root / "runs")
        patch.setitem(normalization_check.POINTS, 2, 49)
        patch.setitem(contenders.SIZES, "gaussian_mixture", {0: {"components": 4}})
        for name, model in MODELS.items():
            (root / f"{name}.toml").write_text(f"[data]\n{TOY}\n[model]\n{model}\n[train]\n{TRAIN}\n")
        (run,) = open_or_train([root / "ode.toml"], Options(threads=1))
        return compare([root / "flow.toml", run.path], root / "out", samples=200, threads=1)


class Reader(html.parser.HTMLParser):
    """Addresses that a page would fetch, its tags, and the cells of its first table's first column."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]


def test_models_baselines_tables_and_figures_are_all_there(found: Comparison) -> None:
    names = {s.run for s in found.summaries}
    assert names == {"flow", "ode", "gaussian", "gaussian_mixture", "kernel_density"}
    assert len(found.differences) == 10
    assert found.summaries[0].log_prob_nats == max(s.log_prob_nats for s in found.summaries)
    files = {path.name for path in found.folder.iterdir() if path.is_file()}
    figures = ("likelihoods", "differences", "budget", "scatter", "samples", "densities", "learning")
    assert files >= {f"{name}.png" for name in (*figures, "motion-flow", "motion-ode")}
    text = found.text()
    assert all(name in text for name in names)
    assert "entropy gap" in text
    with (found.folder / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [s.run for s in found.summaries]
    assert float(rows[0]["log_prob_nats"]) == found.summaries[0].log_prob_nats
    content = json.loads((found.folder / "comparison.json").read_text())
    assert len(content["paired_differences"]) == 10
    latex = (found.folder / "comparison.tex").read_text()
    assert latex.count(r"\\") == 6
    assert r"gaussian\_mixture" in latex
    assert "±" not in latex


def test_ranks_and_letters_agree_with_the_pairs(found: Comparison) -> None:
    entries = {e.summary.run: e for e in found.entries}
    for d in found.differences:
        shared = set(entries[d.first].tied) & set(entries[d.second].tied)
        assert bool(shared) != d.significant
    assert entries["gaussian_mixture"].rank < entries["flow"].rank  # after four steps


def test_the_page_needs_nothing_else(found: Comparison) -> None:
    page = (found.folder / "comparison.html").read_text()
    reader = Reader(page)
    assert reader.fetched
    assert all(address.startswith("data:image/png;base64,") for address in reader.fetched)
    assert not re.search(r"\burl\(|@import|https?://", page)
    assert reader.tags.count("img") == 9
    assert 'name="viewport"' in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; .ci/run installs it")
def test_a_click_sorts_the_table_in_a_browser(found: Comparison, tmp_path: Path) -> None:
    page = (found.folder / "comparison.html").read_text()
    clicks = """<script>
      const name = () => [...document.querySelectorAll("tbody tr")].map(row => row.cells[0].textContent).join();
      const click = title => [...document.querySelectorAll("th button")].find(b => b.textContent === title).click();
      const seen = [name()];
      click("log p (nats)"); seen.push(name());
      click("log p (nats)"); seen.push(name());
      click("model"); seen.push(name());
      document.title = seen.join(";") + ";" + (document.documentElement.scrollWidth <= window.innerWidth);
    </script>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", clicks + "</body>"))
    options = [*QUIET, "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [str(CHROMIUM), *options, "--window-size=400,800", "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    titles = re.search(r"<title>(.*?)</title>", done.stdout)
    assert titles is not None
    first, rising, falling, by_name, narrow = titles[1].split(";")
    best_first = ",".join(s.run for s in found.summaries)
    assert first == falling == best_first
    assert rising == ",".join(reversed(best_first.split(",")))
    assert by_name.split(",") == sorted(best_first.split(","))
    assert narrow == "true"  # nothing is wider than a phone but what scrolls by itself


def test_configs_are_read_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiment.run.RUNS", tmp_path / "runs")
    (tmp_path / "good.toml").write_text(f"[data]\n{TOY}\n[model]\n{MODELS['flow']}\n")
    (tmp_path / "bad.toml").write_text(f"[data]\n{TOY}\n[model]\nkind = 'glowworm'\n")
    with pytest.raises(UserError, match="glowworm"):
        compare([tmp_path / "good.toml", tmp_path / "bad.toml"], tmp_path / "out")
    with pytest.raises(UserError, match="at least one run folder or config file"):
        compare([], tmp_path / "out")
    assert not (tmp_path / "runs").exists()


def test_baselines_take_images_as_vectors_and_leave_labels_alone(tmp_path: Path) -> None:
    model, train_ = {"kind": "glow", "levels": 1, "depth": 1, "hidden": [4]}, {"steps": 1, "batch_size": 32}
    data = {"kind": "digits", "layout": "image"}
    table = {"data": data, "model": model, "train": train_, "evaluate": {"draws": 1}}
    run = train(parse_config(table, source="test"), tmp_path / "glow", threads=1)
    (gaussian, *_), kinds = contenders.baselines(run, tmp_path, Options(threads=1)), contenders.SIZES
    assert gaussian.config.data.layout == "flat"
    assert [path.name for path in sorted(tmp_path.iterdir())] == sorted(["glow", *kinds])
    told = {**table, "data": {**data, "labels": True}, "model": {"kind": "real_nvp", "hidden": [4]}}
    labelled = train(parse_config(told | {"data": {"kind": "digits", "labels": True}}, source="test"), tmp_path / "l")
    assert contenders.baselines(labelled, tmp_path / "none", Options()) == []


def test_a_mass_stands_beside_bounds_of_several_draws(tmp_path: Path) -> None:
    """It has no dequantization noise to draw: one draw is all of them."""
    models = {
        "mass": ({"kind": "digits"}, {"kind": "autoregressive_mlp", "hidden": [64]}),
        "bound": ({"kind": "digits", "layout": "image"}, {"kind": "glow", "levels": 1, "depth": 1, "hidden": [4]}),
        "other": ({"kind": "digits"}, {"kind": "real_nvp", "layers": 2, "hidden": [8]}),
    }
    runs = {}
    for name, (data, model) in models.items():
        preprocessing = {"kind": "none" if name == "mass" else "logit"}
        table = {"data": data, "model": model, "preprocessing": preprocessing, "train": {"steps": 2, "batch_size": 32}}
        runs[name] = train(parse_config(table | {"evaluate": {"draws": 2}}, source=name), tmp_path / name, threads=1)
    found = compare([run.path for run in runs.values()], tmp_path / "out", samples=0, with_baselines=False, threads=1)
    assert {s.run: s.draws for s in found.summaries} == {"mass": 1, "bound": 2, "other": 2}
    assert len(found.differences) == 3
    evaluate(runs["other"].path, draws=3, threads=1)
    with pytest.raises(UserError, match="bound was evaluated with 2 dequantization draws and other with 3"):
        _check_same_rows([saved_summary(run, draws=n) for run, n in zip(runs.values(), (2, 2, 3), strict=True)])


def points(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed)) * torch.tensor([1.0, 100.0])


def test_quality_is_blind_to_the_units_of_a_column_and_sees_a_shift() -> None:
    data = Dataset("x", train=points(500, 0), validation=points(5, 1), test=points(500, 2))
    near = floor(data, 500)
    assert near.sliced_wasserstein < 0.15
    assert abs(near.mmd) < 0.01
    shifted = quality(Draws((points(500, 3) + torch.tensor([1.0, 0.0])).double().numpy(), 2.0), data)
    assert shifted.sliced_wasserstein == pytest.approx(1 / 2**0.5, abs=0.1)  # ‖m‖/√D, in standard deviations
    assert shifted.mmd > 0.05
    assert shifted.sample_ms == pytest.approx(4.0)


def test_draws_are_kept_for_the_same_weights_and_number(found: Comparison) -> None:
    run, dataset, cpu = found.entries[0].run, found.dataset, torch.device("cpu")
    before = (run.path / "draws.npz").stat().st_mtime_ns
    first = draws_of(run, dataset, 200, device=cpu)
    assert (run.path / "draws.npz").stat().st_mtime_ns == before
    np.testing.assert_allclose(first.x, found.entries[0].draws, rtol=1e-6, atol=1e-6)
    assert len(draws_of(run, dataset, 50, device=cpu).x) == 50


def test_what_disagrees_most_comes_first(found: Comparison) -> None:
    a, b = found.entries[:2]
    difference = a.log_prob.mean(0) - b.log_prob.mean(0)
    liked, disliked = disagreeing(a, b)
    assert difference[liked[0]] == difference.max()
    assert difference[disliked[0]] == difference.min()


def test_a_histogram_is_a_density() -> None:
    x, extent = points(4000, 4).numpy() / [1, 100], (-6.0, 6.0, -5.0, 5.0)
    grid = histogram(x, extent)
    assert grid.sum() * (12 / grid.shape[1]) * (10 / grid.shape[0]) == pytest.approx(1.0)
    shifted = histogram(x + np.array([3, 0]), extent)
    assert shifted.sum(0).argmax() > grid.sum(0).argmax()  # x runs along columns


def test_numbers_in_print() -> None:
    assert {p.model: p.value for p in published("bsds300_patches")}["MAF(5)"] == 155.69
    assert published("moons") == ()
