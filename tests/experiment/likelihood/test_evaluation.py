"""Held-out likelihood: right mean, right errors, the same noise for every model."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from cflows import ODESolver
from cflows.ode.budget import SolverChoice
from core import StandardNormal
from discrete import Compose, Dequantization, Flow
from discrete.bijections.preprocessing import Scaling
from experiment import compare, evaluate, load_run, train
from experiment.config import parse_config
from experiment.errors import NumericalError, UserError
from experiment.likelihood import checks, evaluation, normalization_check
from experiment.likelihood.evaluation import (
    _check_finite,
    _subject,
    _summarise,
    likelihoods,
    saved_log_prob,
    saved_summary,
)
from experiment.likelihood.summary import Summary
from experiment.run import open_run
from experiment.training.checkpoint import load_checkpoint, save_checkpoint

TRAIN = {"steps": 4, "batch_size": 64, "validate_every": 2}
TOY = {"kind": "toy", "name": "8gaussians", "train_rows": 300, "validation_rows": 50, "test_rows": 1200}
FLOW = {"kind": "real_nvp", "layers": 2, "hidden": [8]}
SCORE = {"kind": "score_sde", "hidden": [8], "sampler": {"steps": 5}}


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """The grid of the integral, which the densities of untrained models do not need so fine."""
    monkeypatch.setitem(normalization_check.POINTS, 2, 49)


def fit(folder, *, data, model, **sections):
    table = {"data": data, "model": model, "train": TRAIN, "evaluate": {"draws": 3}, **sections}
    return train(parse_config(table, source="test"), folder, threads=1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    logit = {"kind": "logit", "alpha": 0.05}
    solver = {"method": "euler", "steps": 4}
    score = {**SCORE, "solver": solver, "divergence": {"kind": "hutchinson", "probes": 4}}
    return (
        fit(root / "flow", data={"kind": "digits"}, model=FLOW, preprocessing=logit),
        fit(root / "score", data={"kind": "digits"}, model=score, preprocessing={**logit, "standardize": True}),
    )


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    root = tmp_path_factory.mktemp("toys")
    return fit(root / "flow", data=TOY, model=FLOW), fit(root / "score", data=TOY, model=SCORE)


def test_the_mean_is_the_models_own_log_prob(toys):
    summary = evaluate(toys[0].path, threads=1)
    x = toys[0].load_data().test
    log_prob = load_run(toys[0].path).log_prob(x).double()
    assert summary.log_prob_nats == pytest.approx(log_prob.mean().item(), abs=1e-5)
    assert summary.sampling_error_nats == pytest.approx((log_prob.std() / math.sqrt(len(x))).item(), rel=1e-4)
    assert (summary.kind, summary.rows, summary.draws, summary.nfe) == ("exact", 1200, 1, 0)
    assert summary.bits_per_dim is None
    assert 0 < summary.round_trip_max < 1e-4
    assert f"round trip within {summary.round_trip_max:.1e}" in summary.text()
    assert summary.entropy_nats == pytest.approx(2.83, abs=0.01)
    assert saved_summary(toys[0]) == summary


def test_integer_data_give_a_bound_in_bits_per_dim(digits):
    flow, score = (evaluate(run.path, threads=1) for run in digits)
    for summary in (flow, score):
        assert summary.kind == "bound"
        assert (summary.draws, summary.rows, summary.dimensions) == (3, 360, 64)
        assert summary.bits_per_dim == pytest.approx(-summary.log_prob_nats / (64 * math.log(2)))
        assert summary.bits_per_dim_error == pytest.approx(summary.error_nats / (64 * math.log(2)))
    assert flow.bits_per_dim_log_mean_exp < flow.bits_per_dim
    assert flow.solver_error_nats == flow.trace_error_nats == 0
    assert score.bits_per_dim_log_mean_exp is None
    assert score.trace_error_nats > 0
    assert score.solver_error_nats > 0
    assert score.nfe == 4


def test_both_kinds_of_runs_are_checked(digits, toys):
    flow, score = (evaluate(run.path, threads=1) for run in digits)
    assert (flow.audit_rows, flow.audit_max_std_errors, flow.solver) == (4, None, None)
    assert flow.audit_max_nats < 1e-2
    assert 0 < score.audit_max_std_errors < 20
    assert score.solver == {"method": "euler", "steps": 4}
    assert (flow.prior_mismatch_nats, flow.noise_share, flow.integral, score.integral) == (None, None, None, None)
    assert 0 < score.prior_mismatch_nats < 0.1
    assert 0 <= score.noise_share < 0.05
    assert flow.bits_per_dim_log_mean_exp_error == pytest.approx(flow.bits_per_dim_error, rel=0.5)
    assert f"{flow.bits_per_dim_log_mean_exp:.4f} by log-mean-exp over draws" in flow.text()
    assert flow.notes == score.notes == []
    for run in toys:
        found = evaluate(run.path, threads=1, audit_rows=2)
        assert found.integral == pytest.approx(1.0, abs=1e-3)
        assert found.integral_error < 0.01
        assert found.audit_rows == 2
        assert found.audit_max_nats < 1e-2
        assert 0 < found.round_trip_max < 1e-2
        for part in ("checks: round trip within", "audit of 2 row(s) within", "integral "):
            assert part in found.text()


def test_arrays_of_every_row_and_draw_are_kept(digits):
    evaluate(digits[1].path, threads=1, audit_rows=0)
    with np.load(digits[1].path / "evaluation.npz") as arrays:
        assert set(arrays) == {"log_prob", "std_error", "solver_error", "truncation", "nfe"}
        assert {values.shape for values in arrays.values()} == {(3, 360)}
        assert (arrays["std_error"] > 0).all()
        assert (arrays["solver_error"] > 0).all()


def test_the_solver_of_a_share(toys):
    summary = evaluate(toys[1].path, threads=1, solver_share=0.3)
    assert summary.solver_share == 0.3
    assert summary.solver["rtol"] > 1e-5
    assert summary.solver_error_nats < 0.3 * summary.sampling_error_nats
    assert "chosen for a share of 0.3" in summary.text()
    assert evaluate(toys[0].path, threads=1, solver_share=0.3).solver is None  # a flow has none to choose


def test_a_share_that_no_solver_keeps_is_said(toys, monkeypatch):
    choice = SolverChoice(ODESolver(rtol=1e-2, atol=1e-2), 0.5, 0.1, 20.0)
    monkeypatch.setattr(evaluation, "solver_for_share", lambda *a, **k: choice)
    summary = evaluate(toys[1].path, threads=1, solver_share=0.3)
    assert summary.solver["rtol"] == 1e-2
    assert summary.notes[0] in summary.text()
    assert summary.notes[0].startswith(
        "no solver down to method=dopri5, rtol=0.01, atol=0.01 keeps its error below 0.3"
    )


def test_a_check_that_fails_is_a_note(toys, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("the step vanishes")

    for name in ("audit", "integral", "largest_round_trip_error", "both_ends"):
        monkeypatch.setattr(checks, name, broken)
    summary = evaluate(toys[1].path, threads=1)
    assert len(summary.notes) == 4
    assert (summary.audit_max_nats, summary.integral, summary.round_trip_max, summary.noise_share) == (None,) * 4
    assert "note: the audit could not be made: the step vanishes." in summary.text()


def test_what_an_earlier_version_wrote_is_read(toys):
    run = toys[0]
    found = evaluate(run.path, threads=1)
    names = [field.name for field in dataclasses.fields(Summary)]
    later = names[names.index("conditional") + 1 :]
    table = {key: value for key, value in dataclasses.asdict(found).items() if key not in later}
    (run.path / "evaluation.json").write_text(json.dumps(table))
    assert saved_summary(run).log_prob_nats == found.log_prob_nats
    assert saved_summary(run).text().startswith("flow: log p = ")
    evaluate(run.path, threads=1)


def test_every_model_sees_the_same_noise():
    """Two models that differ after dequantization only: their paired difference is the known constant for every row."""
    event = 5
    x = torch.randint(0, 4, (1500, event), generator=torch.Generator().manual_seed(0)).float()

    def model(*layers):
        return Flow(Compose(Dequantization(event, bins=4), *layers), StandardNormal(event))

    plain, _ = likelihoods(model(), x, 2, run="a", progress_bar=False)
    again, _ = likelihoods(model(Scaling(event)), x, 2, run="b", progress_bar=False)
    np.testing.assert_allclose(plain["log_prob"], again["log_prob"], atol=1e-5)
    assert np.abs(plain["log_prob"][0] - plain["log_prob"][1]).max() > 0.01


def test_dequantization_error_is_what_more_draws_take_away():
    x = torch.randint(0, 4, (1500, 5), generator=torch.Generator().manual_seed(0)).float()
    model = Flow(Dequantization(5, bins=4), StandardNormal(5))
    arrays, kind = likelihoods(model, x, 40, run="a", progress_bar=False)
    means = arrays["log_prob"].mean(1)
    within = math.sqrt((arrays["log_prob"].var(0, ddof=1) / 40).sum()) / 1500
    assert within == pytest.approx(means.std(ddof=1) / math.sqrt(40), rel=0.35)
    assert kind == "bound"


def test_the_error_budget_in_closed_form(digits):
    """Rows, draws and probes of known spread: each part is σ over the root of what it is averaged over."""
    rows, draws, generator = 4000, 5, np.random.default_rng(0)
    row, draw = 3.0 * generator.normal(size=rows), 2.0 * generator.normal(size=(draws, rows))
    full = np.ones((draws, rows))
    arrays = {"log_prob": row + draw, "std_error": 0.5 * full, "solver_error": 0.01 * full}
    arrays |= {"truncation": -0.02 * full, "nfe": 7 * full}

    def summary(std_error):
        changed = {**arrays, "std_error": std_error * full}
        return _summarise(_subject(digits[0]), digits[0].load_data(), changed, "bound", seconds=1.0)

    found = summary(0.5)
    assert found.sampling_error_nats == pytest.approx(math.sqrt((9 + 4 / draws) / rows), rel=0.03)
    assert found.dequantization_error_nats == pytest.approx(2 / math.sqrt(rows * draws), rel=0.03)
    assert found.trace_error_nats == pytest.approx(0.5 / math.sqrt(rows * draws))
    assert found.error_nats == pytest.approx(math.hypot(found.sampling_error_nats, 0.01))
    assert found.bits_per_dim_log_mean_exp is None
    expected = -np.log(np.exp(row + draw).mean(0)).mean() / (64 * math.log(2))
    assert summary(0.0).bits_per_dim_log_mean_exp == pytest.approx(expected)
    assert summary(math.nan).trace_error_nats is None


def test_a_likelihood_that_is_not_finite_names_the_row():
    values = torch.tensor([0.0, 1.0, math.nan])
    with pytest.raises(NumericalError, match="test row 1002 is nan"):
        _check_finite(values, run="r", first_row=1000)


def test_a_summary_of_other_weights_or_draws_is_not_reused(digits):
    run = digits[0]
    evaluate(run.path, threads=1)
    assert saved_summary(run) is not None
    assert saved_summary(run, draws=2) is None
    stale = dataclasses.replace(saved_summary(run), checkpoint_sha256_16="0" * 16)
    (run.path / "evaluation.json").write_text(json.dumps(dataclasses.asdict(stale)))
    assert saved_summary(run) is None


def test_compare_writes_tables_and_figures_of_images(digits, tmp_path):
    found = compare([run.path for run in digits], tmp_path / "out", with_baselines=False, samples=16, threads=1)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    figures = {"likelihoods", "differences", "budget", "scatter", "disagreement", "samples", "learning"}
    tables = {f"comparison.{suffix}" for suffix in ("html", "md", "tex", "csv", "json")}
    assert names == tables | {f"{name}.png" for name in figures}
    assert isinstance(found.summaries[0], Summary)
    assert found.summaries[0].log_prob_nats >= found.summaries[1].log_prob_nats
    rows = [saved_log_prob(open_run(digits[i].path)) for i in range(2)]
    assert abs(found.differences[0].difference_nats) == pytest.approx(abs((rows[0] - rows[1]).mean()))
    for name in ("flow", "score"):
        assert name in found.text()
        assert name in (tmp_path / "out/comparison.md").read_text()


def test_compare_draws_points(toys, tmp_path):
    found = compare([run.path for run in toys], tmp_path, with_baselines=False, threads=1)
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert "bits/dim" not in found.text()


def test_paired_error_is_smaller_than_the_single_ones_for_like_models(toys, tmp_path):
    found = compare([run.path for run in toys], tmp_path, with_baselines=False, threads=1)
    assert found.differences[0].error_nats < found.summaries[0].error_nats + found.summaries[1].error_nats


def test_runs_on_other_rows_are_not_compared(digits, toys, tmp_path):
    with pytest.raises(UserError, match="only runs tested on the same rows"):
        compare([digits[0].path, toys[1].path], tmp_path, threads=1)
    with pytest.raises(UserError, match="two runs are called 'flow'"):
        compare([digits[0].path, toys[0].path], tmp_path, threads=1)
    assert not list(tmp_path.iterdir())


def table_run(folder, rows, model=FLOW):
    np.save(folder / "rows.npy", rows)
    table = {"data": {"kind": "table", "path": "rows.npy"}, "model": model, "train": TRAIN}
    return train(parse_config(table, source="test"), folder / "run", data_root=folder, threads=1)


def test_data_that_changed_since_training_are_refused(tmp_path):
    rows = np.random.default_rng(0).normal(size=(100, 3))
    run = table_run(tmp_path, rows)
    evaluate(run.path, threads=1)
    np.save(tmp_path / "rows.npy", rows[:, :2])
    with pytest.raises(UserError, match=r"trained on rows of shape \(3,\), but rows.* now has \(2,\)"):
        evaluate(run.path, threads=1)
    # One more row reshuffles the split: training rows would stand in the test split.
    np.save(tmp_path / "rows.npy", np.concatenate([rows, rows[:1]]))
    with pytest.raises(UserError, match="trained on other rows"):
        evaluate(run.path, threads=1)
    with pytest.raises(UserError, match="trained on other rows"):
        train(run.config, run.path, data_root=tmp_path, resume=True)
    with pytest.raises(UserError, match="trained on other rows"):
        compare([run.path], tmp_path / "out", with_baselines=False, threads=1)


def test_one_draw_cannot_tell_its_error(digits):
    summary = evaluate(digits[0].path, draws=1, threads=1)
    assert summary.dequantization_error_nats is None
    assert "draws unknown" in summary.text()


@pytest.mark.parametrize("draws", [0, -1])
def test_impossible_draws_are_refused(digits, tmp_path, draws):
    with pytest.raises(UserError, match="--draws must be 1 or more"):
        evaluate(digits[0].path, draws=draws, threads=1)
    with pytest.raises(UserError, match="--draws must be 1 or more"):
        compare([digits[0].path], tmp_path / "out", draws=draws, threads=1)


@pytest.mark.parametrize(("option", "value"), [("solver_share", 0.0), ("solver_share", math.inf), ("audit_rows", -1)])
def test_impossible_options_are_refused(digits, option, value):
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')} must be"):
        evaluate(digits[0].path, threads=1, **{option: value})


@pytest.mark.parametrize("damage", ["truncated", "empty", "of other draws", "no summary"])
def test_a_damaged_evaluation_is_made_again(toys, tmp_path, damage):
    run = toys[0]
    expected = evaluate(run.path, threads=1).log_prob_nats
    path = run.path / "evaluation.npz"
    match damage:
        case "truncated":
            path.write_bytes(path.read_bytes()[:100])
        case "empty":
            path.write_bytes(b"")
        case "of other draws":
            np.savez_compressed(path, log_prob=np.zeros((3, 1200)))
        case "no summary":
            (run.path / "evaluation.json").write_text("{}")
    assert saved_summary(run) is None
    assert compare([run.path], tmp_path, with_baselines=False, threads=1).summaries[0].log_prob_nats == expected


def test_a_single_column_is_compared_and_drawn(tmp_path):
    run = table_run(tmp_path, np.random.default_rng(0).normal(size=(100, 1)), SCORE)
    compare([run.path], tmp_path / "out", with_baselines=False, threads=1)
    assert (tmp_path / "out/samples.png").exists()


def test_an_out_that_is_a_file_is_refused_before_anything_runs(toys, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="cannot be made a folder"):
        compare([toys[0].path], tmp_path / "file", threads=1)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_checkpoint_of_another_kind_or_model_is_refused(toys):
    run = toys[0]
    best = run.best.read_bytes()
    try:
        run.best.write_bytes(run.last.read_bytes())
        with pytest.raises(UserError, match="not one of best weights"):
            load_run(run.path)
        state = load_checkpoint(toys[1].best)
        save_checkpoint(run.best, {**state, "config_sha256_16": run.config.digest})
        with pytest.raises(UserError, match="holds another model"):
            load_run(run.path)
        save_checkpoint(run.best, [1, 2])
        with pytest.raises(UserError, match="holds a list"):
            load_run(run.path)
    finally:
        run.best.write_bytes(best)
