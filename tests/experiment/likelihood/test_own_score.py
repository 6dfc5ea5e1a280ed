"""A score network of the user's own, measured without training: right in every form, and its mistakes in a sentence."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cflows
from cflows import SDE, VPSDE
from experiment import evaluate_score
from experiment.data import digits, table
from experiment.errors import NumericalError, UserError
from experiment.files import read_json
from experiment.likelihood import normalization_check

VARIANCES = (4.0, 0.25)
HEAD = '''
import torch
from torch import nn
from cflows import SubVPSDE, VESDE, VPSDE

class Gaussian(nn.Module):
    """A perfect network for data N(0, diag(v)); it is told the time as `shape` says."""

    def __init__(self, sde, kind, v, shape="rows"):
        super().__init__()
        self.sde, self.kind, self.shape = sde, kind, shape
        self.register_buffer("v", torch.tensor(v))
        self.unused = nn.Parameter(torch.zeros(3))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, t):
        if self.shape == "rows" or (self.shape == "either" and t.ndim):
            t = t[:, None]
        if self.shape == "scalar":
            t = torch.tensor(t.item()).to(x)
        scale, std = self.sde.marginal(t)
        total = scale**2 * self.v + std**2
        self.dropout(torch.ones(2))
        assert torch.equal(self.dropout(torch.ones(2)), torch.ones(2)), "not in evaluation mode"
        data, noise = scale * self.v * x / total, std * x / total
        return {"score": -x / total, "noise": noise, "data": data, "velocity": scale * noise - std * data}[self.kind]
'''
COUNT = iter(range(1000))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(normalization_check.POINTS, 2, 25)
    rows = np.random.default_rng(0).normal(size=(300, 2)) * np.sqrt(VARIANCES)
    np.save("rows.npy", rows.astype(np.float32))
    Path("data.toml").write_text('[data]\nkind = "table"\npath = "rows.npy"\n')
    return tmp_path


def measured(folder: Path, code: str, config: str = "data.toml", **options: Any) -> Any:
    """What evaluate_score says of the last lines of a module, which define `build`."""
    name = f"own_score_{next(COUNT)}"
    (folder / f"{name}.py").write_text(HEAD + code)
    options = {"audit_rows": 0, "data_root": folder, "threads": 1, **options}
    return evaluate_score(f"{name}:build", config, folder / "out", **options)


def network(
    kind: str, sde: str = "VPSDE()", v: tuple[float, ...] = VARIANCES, shape: str = "rows", more: str = ""
) -> str:
    made = f"Gaussian({sde}, {kind!r}, {v!r}, {shape!r})"
    return f"def build():\n    return {made}{more}\n"


def exact(folder: Path, sde: SDE, t_min: float) -> np.ndarray:
    """log N(x; 0, α² diag(v) + σ² I) of the test rows."""
    x = table(folder / "rows.npy", validation=0.1, test=0.1, seed=0).test.double()
    scale, std = sde.marginal(torch.tensor(t_min, dtype=torch.float64))
    width = torch.sqrt(scale**2 * torch.tensor(VARIANCES, dtype=torch.float64) + std**2)
    return torch.distributions.Normal(0.0, width).log_prob(x).sum(1).numpy()


@pytest.mark.parametrize("kind", ["score", "noise", "data", "velocity"])
def test_every_prediction_is_the_closed_form(folder: Path, kind: str) -> None:
    audited = 2 if kind == "noise" else 0
    found = measured(folder, network(kind), prediction=kind, t_min=1e-3, rtol=1e-5, atol=1e-5, audit_rows=audited)
    log_prob = np.load(folder / "out/evaluation.npz")["log_prob"]
    np.testing.assert_allclose(log_prob[0], exact(folder, VPSDE(), 1e-3), atol=2e-4)
    assert found.log_prob_nats == pytest.approx(log_prob.mean())
    assert (found.run, found.parameters, found.train_step, found.kind) == ("out", 3, 0, "exact")
    assert found.solver == {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5}
    assert found.integral == pytest.approx(1.0, abs=1e-3)
    assert found.audit_rows == audited
    assert (found.audit_max_nats or 0.0) < 1e-3
    assert found.round_trip_max < 1e-3
    assert read_json(folder / "out/evaluation.json")["model"] == found.model


@pytest.mark.parametrize("shape", ["rows", "scalar", "either"])
@pytest.mark.parametrize("method", ["dopri5", "dopri5_per_sample", "rk4"])
def test_either_shape_of_time_with_every_kind_of_solver(folder: Path, shape: str, method: str) -> None:
    code = network("noise", shape=shape)
    if (shape, method) == ("scalar", "dopri5_per_sample"):
        with pytest.raises(NumericalError, match="takes a 0-dimensional time, but each row has its own"):
            measured(folder, code, prediction="noise", method=method)
        return
    measured(folder, code, prediction="noise", method=method, t_min=1e-3, steps=40)
    np.testing.assert_allclose(np.load("out/evaluation.npz")["log_prob"][0], exact(folder, VPSDE(), 1e-3), atol=2e-3)


def test_the_factory_brings_settings_and_the_command_line_overrules_them(folder: Path) -> None:
    more = ', {"prediction": "noise", "sde": VPSDE(beta_max=30.0), "t_min": 1e-3, "rtol": 1e-4, "steps": 7}'
    found = measured(folder, network("noise", "VPSDE(beta_max=30.0)", more=more), rtol=1e-5)
    assert found.solver == {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5}
    log_prob = np.load("out/evaluation.npz")["log_prob"][0]
    np.testing.assert_allclose(log_prob, exact(folder, VPSDE(beta_max=30.0), 1e-3), atol=2e-3)


@pytest.mark.parametrize(("sde", "made"), [("sub_vp", "SubVPSDE()"), ("ve", "VESDE()")])
def test_other_processes_by_name(folder: Path, sde: str, made: str) -> None:
    measured(folder, network("noise", made), prediction="noise", sde=sde, t_min=1e-2)
    process = getattr(cflows, made[:-2])()
    np.testing.assert_allclose(np.load("out/evaluation.npz")["log_prob"][0], exact(folder, process, 1e-2), atol=0.02)


def test_probes_solver_share_and_precision(folder: Path) -> None:
    code = network("score", more=".double()")
    found = measured(folder, code, probes=4, solver_share=0.2)
    assert found.kind == "estimate"
    assert found.trace_error_nats is not None
    assert found.solver_share == 0.2
    assert found.solver["rtol"] > 1e-5
    assert found.solver_error_nats < 0.2 * found.sampling_error_nats
    assert "chosen for a share of 0.2" in found.text()


def test_integers_are_dequantized_and_bounded(folder: Path) -> None:
    """The digits: preprocessing from the config, whose model section is not read."""
    Path("digits.toml").write_text(
        '[data]\nkind = "digits"\n[preprocessing]\nkind = "scale"\n[model]\nkind = "nonsense"\n'
    )
    code = "def build():\n    return (lambda x, t: -x - 0 * t[:, None]), {'method': 'rk4', 'steps': 4, 'probes': 2}\n"
    found = measured(folder, code, "digits.toml", draws=2, audit_rows=1)
    assert (found.kind, found.draws, found.dimensions, found.parameters) == ("bound", 2, 64, 0)
    assert found.bits_per_dim == pytest.approx(-found.log_prob_nats / (64 * math.log(2)))
    assert found.audit_rows == 1
    assert found.audit_max_nats < 1e-2  # N(0, I) stays N(0, I): nothing to estimate
    # E log N(x; 0, I) of the rows in [-1, 1), and the log-determinants of both layers.
    x = (digits(layout="flat", labels=False).test.double() + 0.5) / 17 * 2 - 1
    second_moment = (x.square().sum(1) + 64 * (2 / 17) ** 2 / 12).mean().item()
    expected = -0.5 * second_moment - 32 * math.log(2 * math.pi) + 64 * math.log(2 / 17)
    assert found.log_prob_nats == pytest.approx(expected, abs=0.1)


def test_labels_are_told_to_the_network(folder: Path) -> None:
    Path("digits.toml").write_text('[data]\nkind = "digits"\nlabels = true\n[preprocessing]\nkind = "scale"\n')
    code = """
def build():
    def net(x, t, context):
        assert context.shape == (len(x), 10)
        return -x
    return net, {'method': 'rk4', 'steps': 2, 'probes': 1}
"""
    assert measured(folder, code, "digits.toml", draws=1).conditional


def test_constant_columns_are_spoken_of_and_crash_nothing(folder: Path) -> None:
    """Two of four columns are borders that never change: half of the dimensions are noise."""
    rows = np.load("rows.npy")
    np.save("rows.npy", np.concatenate([rows, np.full((300, 2), 0.0, np.float32)], 1))
    found = measured(folder, network("noise", v=(*VARIANCES, 0.0, 0.0)), prediction="noise")
    assert found.noise_share == pytest.approx(0.5, abs=0.01)
    assert found.constant_columns == 2
    assert "sets the density in about 2.0 of 4 dimensions (50%)" in found.text()
    assert "2 of 4 columns hold one value in all rows" in found.text()
    assert math.isfinite(found.log_prob_nats)
    # Each of them has the density of the noise of t_min at its middle.
    _, std = VPSDE().marginal(torch.tensor(1e-5, dtype=torch.float64))
    share = found.log_prob_nats - 2 * (-math.log(std.item()) - 0.5 * math.log(2 * math.pi))
    np.save("rows.npy", rows)
    assert share == pytest.approx(exact(folder, VPSDE(), 1e-5).mean(), abs=0.05)


def test_gradients_do_not_leak(folder: Path) -> None:
    code = """
def build():
    build.net = Gaussian(VPSDE(), "score", (4.0, 0.25))
    return build.net
"""
    net = sys.modules[measured(folder, code).model.removesuffix(":build")].build.net
    assert all(p.grad is None for p in net.parameters())
    assert not net.training


def returning(what: str) -> str:
    return f"def build():\n    return {what}"


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("build = 3", "module own_score_.* must hold a function build, but holds a int"),
        ("", "must hold a function build, but has none"),
        ("def build(a):\n    return a", "build must be callable without arguments: missing a required argument: 'a'"),
        (returning("3"), "must return a network, or a network and a dict of settings, but it returned a int"),
        (returning("(lambda x, t: x), 4"), "but it returned a tuple"),
        ("import nothing_of_the_kind", "cannot be imported from .*: ModuleNotFoundError: No module named 'nothing"),
        ("def build(:", "cannot be imported from .*: SyntaxError"),
        (returning("lambda x: x"), r"must take x \(3, 2\), t \(3,\) and return a tensor like x, but it raises Type"),
        (returning("lambda x, t: x[:, :1]"), r"but it returns shape \(3, 1\)"),
        (returning("lambda x, t: 'x'"), "but it returns a str"),
        (returning("lambda x, t: -x * (1 + t.ndim)"), "gives other values for t of shape"),
        (returning("(lambda x, t: x), {'predict': 1}"), "unknown key 'predict'; did you mean 'prediction'"),
        (returning("(lambda x, t: x), {'prediction': 'eps'}"), "'prediction' is 'eps', but"),
        (returning("(lambda x, t: x), {'method': 'foo'}"), "method must be one of dopri5"),
        (returning("(lambda x, t: x), {'t_min': 0}"), "'t_min' is 0"),
    ],
)
def test_a_mistake_of_the_network_is_one_sentence(folder: Path, code: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        measured(folder, code)
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()


def test_a_mistake_of_the_rest_is_one_sentence(folder: Path) -> None:
    good = network("score")
    with pytest.raises(UserError, match="--score takes module:factory, such as my_score:build, but was given 'x'"):
        evaluate_score("x", "data.toml", "out")
    with pytest.raises(UserError, match="does not exist; the ready-made"):
        measured(folder, good, "none.toml")
    Path("bad.toml").write_text("[model]\nkind = 'maf'\n")
    with pytest.raises(UserError, match="'data' is missing"):
        measured(folder, good, "bad.toml")
    Path("learned.toml").write_text('[data]\nkind = "digits"\n[preprocessing]\nkind = "none"\nvariational = {}\n')
    with pytest.raises(UserError, match="is trained with a flow"):
        measured(folder, good, "learned.toml")
    with pytest.raises(UserError, match="--solver-share must be above 0"):
        measured(folder, good, solver_share=0.0)
    (folder / "out").mkdir()
    (folder / "out/config.json").write_text("{}")
    with pytest.raises(UserError, match="is the folder of a trained run"):
        measured(folder, good)
