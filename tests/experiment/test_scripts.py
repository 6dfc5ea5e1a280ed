"""The four scripts, as a newcomer meets them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiment import cli, load_config, train
from experiment.run import open_run

ROOT = Path(__file__).parents[2]
SCRIPTS = ("train", "evaluate", "sample", "compare")
QUICK = ("steps=4", "batch_size=64", "validate_every=2")


def call(monkeypatch, script, *arguments):
    """Exit status of a script run in this process."""
    spec = importlib.util.spec_from_file_location(f"script_{script}", ROOT / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
    return cli.run(module.main)


def toy_config(folder, **lines):
    data = lines.get("data", 'kind = "toy"\nname = "rings"\ntrain_rows = 200\nvalidation_rows = 50\ntest_rows = 50')
    path = folder / "toy.toml"
    model = lines.get("model", 'kind = "real_nvp"\nlayers = 2\nhidden = [8]')
    path.write_text(f"[data]\n{data}\n[model]\n{model}\n")
    return path


def quick_train(monkeypatch, config, run, *more):
    settings = [part for setting in QUICK for part in ("--set", f"train.{setting}")]
    return call(monkeypatch, "train", config, "--run-dir", run, "--threads", 1, "--quiet", *settings, *more)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_a_real_process_with_an_example(script):
    done = subprocess.run(
        [sys.executable, ROOT / f"{script}.py", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert f"example:\n  {script}.py" in done.stdout


def test_train_evaluate_sample_compare(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    assert quick_train(monkeypatch, toy_config(tmp_path), run) == 0
    assert call(monkeypatch, "evaluate", run, "--threads", 1, "--quiet") == 0
    assert "error budget in nats" in capsys.readouterr().out
    assert call(monkeypatch, "sample", run, "--count", 7, "--threads", 1) == 0
    assert np.load(run / "samples.npy").shape == (7, 2)
    assert call(monkeypatch, "compare", run, "--out", tmp_path / "out", "--threads", 1, "--quiet") == 0
    assert "log p (nats)" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.tmp"))


def test_samples_depend_on_the_seed_alone(tmp_path, monkeypatch):
    quick_train(monkeypatch, toy_config(tmp_path), tmp_path / "run")
    drawn = []
    for seed in (1, 1, 2):
        call(monkeypatch, "sample", tmp_path / "run", "--count", 3, "--seed", seed, "--out", tmp_path / "s.npy")
        drawn.append(np.load(tmp_path / "s.npy"))
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


FLOW_MATCHING = 'kind = "flow_matching"\nhidden = [8]\n[model.solver]\nmethod = "rk4"\nsteps = 20'


@pytest.mark.parametrize("model", [None, FLOW_MATCHING], ids=["discrete", "continuous"])
def test_samples_at_a_temperature_and_ways_between_rows(tmp_path, monkeypatch, model):
    """Zero temperature is the mode alone; a way of one row to itself stays there."""
    run = tmp_path / "run"
    quick_train(monkeypatch, toy_config(tmp_path) if model is None else toy_config(tmp_path, model=model), run)
    assert call(monkeypatch, "sample", run, "--count", 5, "--temperature", 0, "--threads", 1) == 0
    modes = np.load(run / "samples.npy")
    assert np.ptp(modes, 0).max() < 1e-5
    assert call(monkeypatch, "sample", run, "--count", 3, "--interpolate", 4, "--threads", 1) == 0
    ways = np.load(run / "interpolations.npy")
    assert ways.shape == (3, 4, 2)
    test = open_run(run).load_data().test.numpy()
    for end in (ways[:, 0], ways[:, -1]):
        assert all(np.abs(test - point).max(1).min() < 1e-4 for point in end)
    assert (run / "interpolations.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [("--temperature", 0.5), ("--interpolate", 4)])
def test_what_needs_a_flow_says_so(tmp_path, monkeypatch, capsys, arguments):
    quick_train(monkeypatch, toy_config(tmp_path, model='kind = "energy"\nhidden = [8]'), tmp_path / "run")
    assert call(monkeypatch, "sample", tmp_path / "run", *arguments) == 1
    assert f"{arguments[0]} needs a flow, but run is a energy" in capsys.readouterr().err


SCORE_OF_DIGITS = {
    "data": 'kind = "digits"\nlayout = "image"\nlabels = true',
    "model": 'kind = "score_sde"\nhidden = [8]\nlabel_dropout = 0.1\n[model.sampler]\nsteps = 4',
}


@pytest.fixture(scope="module")
def score_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    settings = [f"train.{setting}" for setting in QUICK]
    return train(load_config(toy_config(folder, **SCORE_OF_DIGITS), settings), folder / "run", threads=1).path


def test_every_option_of_a_score_model_from_the_command_line(tmp_path, monkeypatch, capsys):
    run, out = tmp_path / "run", tmp_path / "x.npy"
    assert quick_train(monkeypatch, toy_config(tmp_path, **SCORE_OF_DIGITS), run) == 0
    drawing = ["--seeds", "4,7-9", "--chunk", 3, "--label", "3,7", "--guidance", 2, "--set", "sampler.kind=edm_heun"]
    assert call(monkeypatch, "sample", run, *drawing, "--animate", tmp_path / "a.gif", "--out", out) == 0
    assert np.load(out).shape == (4, 1, 8, 8)
    assert np.load(tmp_path / "x_labels.npy").tolist() == [3, 7, 3, 7]
    assert (tmp_path / "a.gif").read_bytes().startswith(b"GIF89a")
    assert call(monkeypatch, "sample", run, "--count", 5, "--inpaint", "box", "--resample", 2, "--seed", 3) == 0
    assert np.load(run / "inpainted.npy").shape == (5, 1, 8, 8)
    assert call(monkeypatch, "sample", run, "--count", 2, "--interpolate", 3, "--label", 4) == 0
    assert np.load(run / "interpolations.npy").shape == (2, 3, 1, 8, 8)
    written = capsys.readouterr().out
    assert f"wrote {out} and {tmp_path / 'x.png'} and {tmp_path / 'x_labels.npy'} and {tmp_path / 'a.gif'}\n" in written
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--label", "x"), "--label takes whole numbers such as 5,6,7 or 0-63, but was given 'x'."),
        (("--label", 10), "--label must lie within 0 and 9, but is 10."),
        (("--seeds", "9-5"), "--seeds takes whole numbers such as 5,6,7 or 0-63, but was given '9-5'."),
        (("--seeds", "0-4", "--count", 4), "--seeds gives 5 rows a seed, but --count is 4."),
        (("--chunk", 0), "--chunk must be 1 or more, but is 0."),
        (("--animate", "a.webp"), "--animate must end in .gif or .mp4, but is a.webp."),
        (("--guidance", "inf"), "--guidance must be finite, but is inf."),
        (("--inpaint", "middle"), "--inpaint takes left, right, top, bottom, box or a mask as a .npy file"),
        (("--inpaint", "none.npy"), "--inpaint none.npy: there is no such file."),
        (("--resample", 2), "--resample does not go with draws of whole samples."),
        (("--interpolate", 3, "--chunk", 2), "--chunk does not go with --interpolate."),
        (("--interpolate", 3, "--inpaint", "box"), "--interpolate does not go with --inpaint."),
        (("--inpaint", "box", "--temperature", 1), "--temperature does not go with --inpaint."),
        (("--set", "seed=3"), "--set changes the sampler here, as sampler.steps=50 does, but was given 'seed=3'."),
        (("--set", "sampler.kind=ddim"), "'model.sampler.kind' is 'ddim'; it must be one of"),
    ],
)
def test_a_mistake_in_drawing_is_one_sentence_and_leaves_nothing_behind(
    score_run, tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in score_run.rglob("*")}
    assert call(monkeypatch, "sample", score_run, *arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sentence in err
    assert {p: p.stat().st_mtime_ns for p in score_run.rglob("*")} == before
    assert not list(tmp_path.iterdir())


def bad_rows(folder, value):
    rows = np.random.default_rng(0).normal(size=(100, 3))
    rows[17, 1] = value
    np.save(folder / "rows.npy", rows)
    return toy_config(folder, data='kind = "table"\npath = "rows.npy"')


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("unknown key", "unknown key 'train.stepz'; did you mean 'steps'?"),
        ("wrong type", "'train.steps' is 'many'"),
        ("impossible value", "'model.layers' is 0"),
        ("missing config", "none.toml does not exist"),
        ("missing data", "absent.npy"),
        ("nan row", "row 17"),
        ("infinite row", "row 17"),
        ("no gpu", "torch sees no GPU"),
        ("no such device", "device must be cpu, cuda or auto, but is 'mps'"),
        ("text for a number", "'train.steps' is '30'"),
        ("bare word for a switch", "'preprocessing.standardize' is 'yes'"),
        ("negative threads", "--threads must be 0 or more"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys, name, sentence):
    config, more = toy_config(tmp_path), []
    match name:
        case "unknown key":
            more = ["--set", "train.stepz=3"]
        case "wrong type":
            more = ["--set", "train.steps=many"]
        case "impossible value":
            more = ["--set", "model.layers=0"]
        case "missing config":
            config = tmp_path / "none.toml"
        case "missing data":
            config = toy_config(tmp_path, data='kind = "table"\npath = "absent.npy"')
        case "nan row":
            config = bad_rows(tmp_path, np.nan)
        case "infinite row":
            config = bad_rows(tmp_path, np.inf)
        case "no gpu":
            monkeypatch.setattr("torch.cuda.is_available", lambda: False)
            more = ["--device", "cuda"]
        case "no such device":
            more = ["--device", "mps"]
        case "text for a number":
            more = ["--set", 'train.steps="30"']
        case "bare word for a switch":
            more = ["--set", "preprocessing.kind=none", "--set", "preprocessing.standardize=yes"]
        case "negative threads":
            more = ["--threads", "-1"]
    status = quick_train(monkeypatch, config, tmp_path / "run", "--data-root", tmp_path, *more)
    captured = capsys.readouterr()
    assert status == 1
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert sentence in captured.err
    assert not (tmp_path / "run").exists()


def test_evaluate_of_no_run_says_so(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "evaluate", tmp_path, "--quiet") == 1
    assert "is not a run folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [("--out", "a.png"), ("--seed", 10**21), ("--count", 0), ("--temperature", -1), ("--interpolate", 1)]
)
def test_sample_refuses_what_it_cannot_do(tmp_path, monkeypatch, capsys, arguments):
    quick_train(monkeypatch, toy_config(tmp_path), tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    assert call(monkeypatch, "sample", tmp_path / "run", *arguments) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def test_an_interrupt_ends_with_130_and_a_hint(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert cli.run(interrupted) == 130
    assert "--resume" in capsys.readouterr().err
