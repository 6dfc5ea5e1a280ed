"""evaluate.py from the command line: runs, or a network of one's own, and never a mixture of both."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from experiment import cli
from experiment.cli import evaluation_options, evaluation_parser
from experiment.errors import UserError

ROOT = Path(__file__).parents[3]


def test_a_network_of_ones_own(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32))
    (tmp_path / "data.toml").write_text('[data]\nkind = "table"\npath = "rows.npy"\n')
    (tmp_path / "script_score.py").write_text("def build():\n    return lambda x, t: -x\n")
    monkeypatch.chdir(tmp_path)
    arguments = ["--score", "script_score:build", "--config", "data.toml", "--out", "found", "--data-root", "."]
    settings = ["--method", "rk4", "--steps", "10", "--probes", "2", "--t-min", "1e-3", "--threads", "1", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments, *settings])
    spec = importlib.util.spec_from_file_location("script_evaluate", ROOT / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert cli.run(module.main) == 0
    out = capsys.readouterr().out
    assert out.startswith("found: log p = ")
    assert "by rk4 with steps=10" in out
    assert {p.name for p in (tmp_path / "found").iterdir()} == {"evaluation.json", "evaluation.npz"}


def options(*arguments):
    return evaluation_options(evaluation_parser().parse_args([str(a) for a in arguments]))


def test_only_what_was_given_is_handed_on():
    assert options("run", "--device", "cpu") == {"device": "cpu", "threads": 0, "progress_bar": True}
    found = options("run", "--quiet", "--solver-share", 0.1, "--audit-rows", 0, "--draws", 3, "--device", "cpu")
    expected = {"solver_share": 0.1, "audit_rows": 0, "draws": 3, "device": "cpu", "threads": 0, "progress_bar": False}
    assert found == expected
    own = options("--score", "a:b", "--config", "c.toml", "--out", "o", "--sde", "ve", "--rtol", 1e-3)
    assert (own["score"], own["sde"], own["rtol"]) == ("a:b", "ve", 1e-3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "takes run folders, or --score MODULE:FACTORY, but was given neither"),
        (("run", "--score", "a:b"), "but was given both"),
        (("--score", "a:b", "--out", "o"), "--score needs --config as well: the config file"),
        (("--score", "a:b", "--config", "c"), "--score needs --out as well: the folder"),
        (("run", "--t-min", 1e-3), "--t-min goes with --score, not with runs"),
        (("run", "--steps", 3), "--steps goes with --score, not with runs"),
    ],
)
def test_what_does_not_go_together_is_named(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        options(*arguments)
