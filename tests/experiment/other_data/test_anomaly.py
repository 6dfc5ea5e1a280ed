"""Other rows scored under trained runs of either side, from the library and from the command line."""

import csv
import gzip
import hashlib
import importlib.util
import json
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from core import DiagonalNormal
from experiment import anomalies, cli, evaluate, load_run, train
from experiment.cli import evaluation_options, evaluation_parser
from experiment.config import parse_config
from experiment.data import digits
from experiment.errors import NumericalError, UserError
from experiment.likelihood.evaluation import saved_log_prob
from experiment.other_data import anomaly
from experiment.other_data.anomaly import marginal
from experiment.other_data.detection import area_under_roc, conformal_p_values, typicality_p_values
from experiment.run import Run

ROOT = Path(__file__).parents[3]
TOY = {"kind": "toy", "name": "moons", "train_rows": 500, "validation_rows": 120, "test_rows": 150}
SHORT = {"steps": 2, "batch_size": 64, "validate_every": 2}
SOLVER = {"method": "rk4", "steps": 3}
MODELS = {
    "gaussian": {"kind": "gaussian"},
    "real_nvp": {"kind": "real_nvp", "layers": 2, "hidden": [8]},
    "score_sde": {"kind": "score_sde", "hidden": [8], "solver": SOLVER},
    "flow_matching": {"kind": "flow_matching", "hidden": [8], "solver": SOLVER},
}


def trained(folder: Path, model: dict, data: dict = TOY, **sections: dict) -> Run:
    table = {"data": data, "model": model, "train": SHORT, **sections}
    return train(parse_config(table, source="test"), folder, data_root=folder.parent, threads=1, device="cpu")


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory) -> Run:
    standardized = {"kind": "none", "standardize": True}
    return trained(tmp_path_factory.mktemp("runs") / "gaussian", MODELS["gaussian"], preprocessing=standardized)


def table(run: Run, name: str) -> dict[str, dict[str, np.ndarray]]:
    """Of each set of rows the columns that are numbers."""
    rows = list(csv.DictReader((run.path / f"anomalies_{name}.csv").read_text().splitlines()))
    return {
        part: {
            key: np.array([float(row[key]) for row in rows if row["set"] == part and row[key]])
            for key in rows[0]
            if key != "set"
        }
        for part in ("test", "validation", "other")
    }


def scores_and_p_values_are_what_they_say(gaussian, tmp_path):
    """-log p of the run with its own preprocessing, not that of the new rows, and p-values from validation rows."""
    rows = np.random.default_rng(0).normal(size=(60, 2)) * 3 + 1
    np.save(tmp_path / "far.npy", rows.astype(np.float32))
    found = anomalies(gaussian.path, tmp_path / "far.npy", rate=0.1, threads=1)
    written, data = table(gaussian, "far"), gaussian.load_data()
    model = load_run(gaussian.path)
    scores = {"test": data.test, "validation": data.validation, "other": torch.from_numpy(rows).float()}
    scores = {name: -model.log_prob(x).double().numpy() for name, x in scores.items()}
    for name, part in written.items():
        np.testing.assert_allclose(part["score_nats"], scores[name], rtol=1e-6)
        assert part["row"].tolist() == list(range(len(scores[name])))
        assert not part["error_nats"].any()
    for name in ("test", "other"):
        p, typical = (f(scores[name], scores["validation"]) for f in (conformal_p_values, typicality_p_values))
        np.testing.assert_allclose(written[name]["p_value"], p, rtol=1e-6)
        np.testing.assert_allclose(written[name]["typicality_p_value"], typical, rtol=1e-6)
    assert len(written["validation"]["p_value"]) == 0
    assert (found.unlikely.area, found.unlikely.area_error) == area_under_roc(scores["test"], scores["other"])
    assert found.unlikely.other_share == (written["other"]["p_value"] <= 0.1).mean()
    assert found.unlikely.discoveries == written["other"]["discovery"].sum() > 0
    assert found.untypical.test_share == (written["test"]["typicality_p_value"] <= 0.1).mean()
    saved = json.loads((gaussian.path / "anomalies_far.json").read_text())
    assert saved["unlikely"]["area"] == found.unlikely.area
    assert (gaussian.path / "anomalies_far.png").read_bytes().startswith(b"\x89PNG")
    text = found.text()
    assert text.startswith("gaussian: 60 rows of far against 150 test rows of moons")
    assert "MNIST higher" not in text
    assert "models of Fashion-MNIST do with MNIST (Nalisnick et al., 2019)" in text


def test_scores_and_p_values(gaussian, tmp_path):
    scores_and_p_values_are_what_they_say(gaussian, tmp_path)


WRONG = {
    "p-values from test rows": ("_write", lambda f: lambda stem, found, *a: f(stem, swapped(found), *a)),
    "log p for -log p": ("likelihoods", lambda f: lambda *a, **k: negative(*f(*a, **k))),
    "new rows standardized by themselves": (
        "other_rows",
        lambda f: lambda *a, **k: (lambda o: replace(o, x=(o.x - o.x.mean(0)) / o.x.std(0)))(f(*a, **k)),
    ),
    "test rows compared with validation rows": ("_judged", lambda f: lambda found, *a, **k: f(swapped(found), *a, **k)),
}


def swapped(found):
    return {**found, "validation": found["test"], "test": found["validation"]}


def negative(arrays, kind):
    return {**arrays, "log_prob": -arrays["log_prob"]}, kind


@pytest.mark.parametrize("name", WRONG)
def test_anomalies_that_are_wrong_are_seen(name, gaussian, tmp_path, monkeypatch):
    attribute, change = WRONG[name]
    monkeypatch.setattr(anomaly, attribute, change(getattr(anomaly, attribute)))
    with pytest.raises(AssertionError):
        scores_and_p_values_are_what_they_say(gaussian, tmp_path)


def test_rows_of_the_same_law_are_not_told_apart(gaussian, tmp_path):
    (tmp_path / "more.toml").write_text('[data]\nkind = "toy"\nname = "moons"\ntest_rows = 400\nseed = 9\n')
    found = anomalies(gaussian.path, tmp_path / "more.toml", threads=1)
    for d in (found.unlikely, found.untypical):
        assert abs(d.area - 0.5) < 4 * d.area_error
        assert d.test_chance > 1e-3
        assert d.other_share < 0.2
    assert found.unlikely.discoveries == 0


def test_likelier_rows_are_named_as_such(gaussian, tmp_path):
    x = gaussian.load_data().train.mean(0).expand(50, 2) + 0.01 * torch.randn(50, 2)
    np.save(tmp_path / "middle.npy", x.numpy())
    found = anomalies(gaussian.path, tmp_path / "middle.npy", threads=1)
    assert found.unlikely.area < 0.05
    assert found.untypical.area > found.unlikely.area
    assert "the others are likelier than test rows" in found.text()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "gaussian"])
def test_either_side(name, tmp_path):
    run = trained(tmp_path / name, MODELS[name])
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(20, 2)) + 30)
    found = anomalies(run.path, tmp_path / "rows.npy", rows=30, threads=1)
    assert (found.test_rows, found.validation_rows, found.other_rows) == (30, 30, 20)
    assert found.unlikely.area > 0.9
    assert (found.median_error_nats > 0) == (name != "real_nvp")
    places = table(run, "rows")["test"]["row"]
    assert len(set(places)) == 30
    assert places.max() < 150


def test_integers_have_the_noise_of_the_evaluation(tmp_path):
    """Test rows the same draws as in evaluate, the other sets draws of their own; the error is that of the draws."""
    model = {"kind": "gaussian"}
    run = trained(tmp_path / "digits", model, {"kind": "digits"}, evaluate={"draws": 3})
    evaluate(run.path, audit_rows=0, threads=1)
    data = digits()
    np.save(tmp_path / "same.npy", data.test.numpy())
    found = anomalies(run.path, tmp_path / "same.npy", threads=1)
    assert (found.kind, found.draws) == ("bound", 3)
    written = table(run, "same")
    log_prob = saved_log_prob(run)
    np.testing.assert_allclose(written["test"]["score_nats"], -log_prob.mean(0), rtol=1e-6)
    np.testing.assert_allclose(written["test"]["error_nats"], log_prob.std(0, ddof=1) / 3**0.5, rtol=1e-5)
    assert not np.isclose(written["other"]["score_nats"], written["test"]["score_nats"], rtol=1e-6).any()
    assert abs(found.unlikely.area - 0.5) < 4 * found.unlikely.area_error


def test_a_run_with_labels_is_asked_for_the_density_without(tmp_path):
    """p(x) = Σ_y p(y) p(x | y) with the frequencies of training."""
    data = digits(labels=True)
    model = {"kind": "real_nvp", "layers": 2, "hidden": [8]}
    logit = {"kind": "logit"}
    run = trained(tmp_path / "told", model, {"kind": "digits", "labels": True}, preprocessing=logit)
    told = load_run(run.path)
    x = data.test[:4]
    frequencies = data.labels.train.bincount(minlength=10) / len(data.train)
    each = []
    for y in torch.eye(10):
        each.append(told.log_prob(x, y, generator=torch.Generator().manual_seed(3)))
    expected = (torch.stack(each, 1) + frequencies.log()).logsumexp(1)
    whole = marginal(told, data)
    torch.testing.assert_close(whole.log_prob(x, generator=torch.Generator().manual_seed(3)), expected)
    np.save(tmp_path / "inverted.npy", 16 - data.test[:25].numpy())
    found = anomalies(run.path, tmp_path / "inverted.npy", draws=1, rows=25, threads=1)
    assert found.other_rows == 25


def test_what_cannot_be_scored_is_named(gaussian, tmp_path, monkeypatch):
    np.save(tmp_path / "rows.npy", np.zeros((5, 2)))
    for options, sentence in (
        ({"rows": 0}, "--rows must be 1 or more, but is 0"),
        ({"rate": 1.0}, "--rate must lie between 0 and 1"),
        ({"draws": 0}, "--draws must be 1 or more"),
    ):
        with pytest.raises(UserError, match=sentence):
            anomalies(gaussian.path, tmp_path / "rows.npy", **options)
    scores = trained(tmp_path / "energy", {"kind": "ncsn", "hidden": [4], "ladder": {"levels": 2}})
    with pytest.raises(UserError, match=r"energy has no likelihood to evaluate"):
        anomalies(scores.path, tmp_path / "rows.npy")
    monkeypatch.setattr(
        "experiment.other_data.anomaly.load_density", lambda *_, **__: DiagonalNormal(2, scale=1e-20, learnable=False)
    )
    with pytest.raises(NumericalError, match="the log-likelihood of test row 0 is -inf"):
        anomalies(gaussian.path, tmp_path / "rows.npy", threads=1)


def test_mnist_under_a_run_of_fashion_mnist(tmp_path, monkeypatch):
    """Stand-ins for the official files of both, in their format."""
    random, module = np.random.default_rng(0), sys.modules["experiment.data.mnist"]
    for folder, digests, algorithm in (("fashion_mnist", "FASHION_MD5", "md5"), ("mnist", "SHA256", "sha256")):
        (tmp_path / folder).mkdir()
        for name, rows in zip(getattr(module, digests), (40, 12), strict=True):
            pixels = random.integers(0, 256 if folder == "mnist" else 90, (rows, 28, 28), dtype=np.uint8)
            packed = gzip.compress(struct.pack(">4I", 0x0803, rows, 28, 28) + pixels.tobytes())
            (tmp_path / folder / name).write_bytes(packed)
            monkeypatch.setitem(getattr(module, digests), name, hashlib.new(algorithm, packed).hexdigest())
    (tmp_path / "mnist.toml").write_text('[data]\nkind = "mnist"\nvalidation_rows = 5\n')
    data = {"kind": "fashion_mnist", "validation_rows": 10}
    run = trained(tmp_path / "clothes", {"kind": "gaussian"}, data, evaluate={"draws": 1})
    found = anomalies(run.path, tmp_path / "mnist.toml", threads=1)
    assert (found.other, found.other_rows, found.test_rows, found.validation_rows) == ("mnist", 12, 12, 10)
    assert found.unlikely.area == 1


def test_a_row_without_density_is_the_strangest(gaussian, tmp_path):
    np.save(tmp_path / "beyond.npy", np.full((2, 2), 3e30))
    found = anomalies(gaussian.path, tmp_path / "beyond.npy", threads=1)
    assert found.other_mean_nats is None
    assert found.unlikely.area == found.untypical.area == 1
    assert "infinity of the others" in found.text()


def test_from_the_command_line(gaussian, tmp_path, monkeypatch, capsys):
    (tmp_path / "spirals.toml").write_text('[data]\nkind = "toy"\nname = "2spirals"\ntest_rows = 100\n')
    arguments = [str(gaussian.path), "--anomalies", str(tmp_path / "spirals.toml"), "--rate", "0.2", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments, "--threads", "1", "--device", "cpu"])
    spec = importlib.util.spec_from_file_location("script_anomalies", ROOT / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert cli.run(module.main) == 0
    out = capsys.readouterr().out
    assert out.startswith("gaussian: 100 rows of 2spirals against 150 test rows of moons")
    assert "p ≤ 0.2" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "--rate", "0.1"), "--rate goes with --anomalies"),
        (("run", "--rows", "9"), "--rows goes with --anomalies"),
        (("run", "--anomalies", "x", "--solver-share", "0.1"), "--solver-share does not go with --anomalies"),
        (("run", "--anomalies", "x", "--audit-rows", "0"), "--audit-rows does not go with --anomalies"),
        (("--score", "a:b", "--config", "c", "--out", "o", "--anomalies", "x"), "--score does not go with --anomalies"),
    ],
)
def test_options_that_do_not_go_together_are_named(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        evaluation_options(evaluation_parser().parse_args(arguments))
