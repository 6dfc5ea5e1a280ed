"""A mixture of runs is a run: fitted, evaluated, compared and drawn from, on the data of its parts alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core import DiagonalNormal, MixtureOfDensities
from experiment import compare, evaluate, load_run, train
from experiment.batches import batches
from experiment.building.ensemble import mixed
from experiment.config import Config, parse_config
from experiment.data import digits
from experiment.errors import UserError
from experiment.likelihood.evaluation import saved_log_prob, saved_summary
from experiment.run import Run, open_run
from experiment.training.checkpoint import load_checkpoint, save_checkpoint

TOY = {"kind": "toy", "name": "moons", "train_rows": 500, "validation_rows": 200, "test_rows": 150}
SOLVED = {"kind": "score_sde", "hidden": [8], "solver": {"method": "rk4", "steps": 3}}
NORMALIZED = {"kind": "real_nvp", "layers": 2, "hidden": [8], "normalization": "batch"}


def config(model: dict[str, Any], data: dict[str, Any] = TOY, **sections: Any) -> Config:
    settings = {"steps": 20, "batch_size": 64, "validate_every": 20, **sections.pop("train", {})}
    return parse_config({"data": data, "model": model, "train": settings, **sections}, source="test")


def fitted(made: Config, folder: Path) -> Run:
    return train(made, folder, data_root=folder.parent, threads=1, device="cpu", resume=True)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A closed density behind a standardization, one solved by an ODE without, and a flow that normalizes batches."""
    folder = tmp_path_factory.mktemp("parts")
    standardized = {"kind": "none", "standardize": True}
    made = {
        "gaussian": config({"kind": "gaussian"}, preprocessing=standardized),
        "solved": config(SOLVED),
        "normalized": config(NORMALIZED, preprocessing=standardized),
    }
    return {name: fitted(c, folder / name) for name, c in made.items()}


@pytest.fixture(scope="module")
def whole(parts: dict[str, Run]) -> Run:
    paths = [str(run.path) for run in parts.values()]
    folder = parts["gaussian"].path.parent
    return fitted(config({"kind": "mixture", "runs": paths}), folder / "whole")


def test_the_density_is_that_of_its_runs(parts: dict[str, Run], whole: Run) -> None:
    """Each behind its own preprocessing, in the weights that the validation rows give; nothing else has changed."""
    model, x = load_run(whole.path), whole.load_data().test[:20]
    assert isinstance(model, MixtureOfDensities)
    each = [load_run(run.path).log_prob(x) for run in parts.values()]
    expected = (torch.stack(each, 1) + model.log_weights).logsumexp(1)
    torch.testing.assert_close(model.log_prob(x), expected, rtol=1e-5, atol=1e-5)
    assert model.log_weights.exp().sum().item() == pytest.approx(1, abs=1e-5)
    held_out = whole.load_data().validation
    with torch.no_grad():
        alone = [load_run(run.path).log_prob(held_out).mean().item() for run in parts.values()]
        assert model.log_prob(held_out).mean().item() >= max(alone) - 1e-5


def test_it_is_evaluated_as_any_other(parts: dict[str, Run], whole: Run) -> None:
    found = evaluate(whole.path, audit_rows=2, threads=1)
    solved = evaluate(parts["solved"].path, audit_rows=0, threads=1)
    assert (found.kind, found.model, found.rows) == (solved.kind, "mixture", 150)
    assert found.integral == pytest.approx(1, abs=0.05)
    assert found.nfe == solved.nfe
    counts = [load_checkpoint(run.best)["parameters"] for run in parts.values()]
    assert found.parameters == sum(counts)
    assert saved_summary(whole) == found


def test_a_comparison_gives_it_a_row(parts: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(parts["gaussian"].path.parent)
    (tmp_path / "both.toml").write_text(
        '[data]\nkind = "toy"\nname = "moons"\ntrain_rows = 500\nvalidation_rows = 200\ntest_rows = 150\n\n'
        '[model]\nkind = "mixture"\nruns = ["gaussian", "normalized"]\n'
    )
    contenders = ["gaussian", "normalized", tmp_path / "both.toml"]
    found = compare(contenders, tmp_path / "out", samples=50, with_baselines=False, threads=1)
    assert {s.run for s in found.summaries} == {"gaussian", "normalized", "both"}
    assert next(e for e in found.entries if e.run.name == "both").draws.shape == (50, 2)


def test_bounds_see_one_noise(tmp_path: Path) -> None:
    """Of digits: log p of the mixture from those of its runs, each evaluated alone, draw by draw."""
    data, logit = {"kind": "digits"}, {"kind": "logit", "alpha": 0.01}
    runs = [
        fitted(config({"kind": "gaussian"}, data, preprocessing=logit, evaluate={"draws": 2}), tmp_path / "gaussian"),
        fitted(config(NORMALIZED, data, evaluate={"draws": 2}), tmp_path / "flow"),
    ]
    names = [str(run.path) for run in runs]
    both = fitted(config({"kind": "mixture", "runs": names}, data, evaluate={"draws": 2}), tmp_path / "both")
    found = [evaluate(run.path, audit_rows=0, threads=1) for run in [*runs, both]]
    assert found[-1].kind == "bound"
    log_weights = load_run(both.path).log_weights.double().numpy()
    each = np.stack([saved_log_prob(run) for run in runs], -1) + log_weights
    np.testing.assert_allclose(saved_log_prob(both), np.logaddexp.reduce(each, -1), rtol=1e-6)


def test_masses_stay_exact(tmp_path: Path) -> None:
    data = {"kind": "digits"}
    masses = {width: {"kind": "autoregressive_mlp", "hidden": [width]} for width in (64, 72)}
    runs = [
        fitted(config(m, data, train={"steps": 2, "validate_every": 2}), tmp_path / str(k)) for k, m in masses.items()
    ]
    both = fitted(config({"kind": "mixture", "runs": [str(run.path) for run in runs]}, data), tmp_path / "both")
    found = evaluate(both.path, audit_rows=0, threads=1)
    assert (found.kind, found.draws) == ("exact", 1)
    assert saved_summary(both) == found


def test_labels_go_to_every_part(tmp_path: Path) -> None:
    data = {"kind": "digits", "labels": True}
    flow = {"kind": "real_nvp", "layers": 2, "hidden": [8]}
    runs = [fitted(config({**flow, "layers": n}, data), tmp_path / str(n)) for n in (2, 4)]
    both = fitted(config({"kind": "mixture", "runs": [str(run.path) for run in runs]}, data), tmp_path / "both")
    model, labelled = load_run(both.path), digits(labels=True)
    x, context = labelled.test[:5], labelled.context("test")[:5]
    each = [load_run(r.path).log_prob(x, context, generator=torch.Generator().manual_seed(1)) for r in runs]
    expected = (torch.stack(each, 1) + model.log_weights).logsumexp(1)
    found = model.log_prob(x, context, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, expected)
    with pytest.raises(UserError, match=r"was trained on other rows of digits than those of the mixture's digits"):
        fitted(
            config({"kind": "mixture", "runs": [str(r.path) for r in runs]}, {"kind": "digits"}), tmp_path / "untold"
        )


def test_parts_that_do_not_fit_are_named(parts: dict[str, Run], tmp_path: Path) -> None:
    path = str(parts["gaussian"].path)
    others = {
        "other rows": ({**TOY, "seed": 1}, [path] * 2, r"gaussian was trained on other rows of moons than those"),
        "shape": ({"kind": "digits"}, [path] * 2, r"gaussian was trained on rows of shape \(2,\), .* have \(64,\)"),
        "absent": (TOY, [path, str(tmp_path / "nowhere")], "nowhere is not a run folder"),
    }
    for data, runs, sentence in others.values():
        with pytest.raises(UserError, match=sentence):
            fitted(config({"kind": "mixture", "runs": runs}, data), tmp_path / "out")
    scores = fitted(config({"kind": "ncsn", "hidden": [4], "ladder": {"levels": 2}}), tmp_path / "scores")
    with pytest.raises(UserError, match=r"model\.runs: .*scores has no likelihood"):
        fitted(config({"kind": "mixture", "runs": [path, str(scores.path)]}), tmp_path / "out")
    twice = config({"kind": "mixture", "runs": [path] * 2}, preprocessing={"kind": "none", "standardize": True})
    with pytest.raises(UserError, match=r"leave \[preprocessing\] out"):
        fitted(twice, tmp_path / "out")
    with pytest.raises(UserError, match=r"'model\.runs' is"):
        config({"kind": "mixture", "runs": [path]})


def test_weights_are_kept_where_a_part_is_trained_again(parts: dict[str, Run], whole: Run) -> None:
    """The mixture holds the weights of its parts: it stays what it was evaluated as."""
    x = whole.load_data().test[:5]
    before = load_run(whole.path).log_prob(x)
    run = open_run(parts["normalized"].path)
    kept, state = run.best.read_bytes(), load_checkpoint(run.best)
    try:
        save_checkpoint(run.best, {**state, "model": {k: v + 1 for k, v in state["model"].items()}})
        torch.testing.assert_close(load_run(whole.path).log_prob(x), before)
    finally:
        run.best.write_bytes(kept)


def test_weights_come_from_the_rows_that_are_held_out() -> None:
    """Of two densities one that has no place among them gets no weight."""
    x = torch.randn(2500, 2, generator=torch.Generator().manual_seed(0))
    mixture = mixed([DiagonalNormal(2), DiagonalNormal(2, loc=30.0), DiagonalNormal(2, scale=1.5)], (x, None))
    weights = mixture.log_weights.exp()
    assert weights[1] < 1e-6
    assert weights[0] > 0.9
    assert len(list(batches(x))) == 3
