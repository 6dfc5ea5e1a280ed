"""Held-out likelihood: right mean, right errors, the same noise for every model."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from core import StandardNormal
from discrete import Compose, Dequantization, Flow
from discrete.bijections.preprocessing import Scaling
from experiment import compare, evaluate, load_run, train
from experiment.config import parse_config
from experiment.errors import NumericalError, UserError
from experiment.evaluation import Summary, _check_finite, _measure, saved_log_prob, saved_summary
from experiment.run import open_run

TRAIN = {"steps": 4, "batch_size": 64, "validate_every": 2}
TOY = {"kind": "toy", "name": "8gaussians", "train_rows": 300, "validation_rows": 50, "test_rows": 1200}
FLOW = {"kind": "real_nvp", "layers": 2, "hidden": [8]}
SCORE = {"kind": "score_sde", "hidden": [8], "sampler": {"steps": 5}}


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


def test_every_model_sees_the_same_noise():
    """Two models that differ after dequantization only: their paired difference is the known constant for every row."""
    event = 5
    x = torch.randint(0, 4, (1500, event), generator=torch.Generator().manual_seed(0)).float()

    def model(*layers):
        return Flow(Compose(Dequantization(event, bins=4), *layers), StandardNormal(event))

    plain, _ = _measure(model(), x, 2, run="a", progress_bar=False)
    again, _ = _measure(model(Scaling(event)), x, 2, run="b", progress_bar=False)
    np.testing.assert_allclose(plain["log_prob"], again["log_prob"], atol=1e-5)
    assert np.abs(plain["log_prob"][0] - plain["log_prob"][1]).max() > 0.01


def test_dequantization_error_is_what_more_draws_take_away():
    x = torch.randint(0, 4, (1500, 5), generator=torch.Generator().manual_seed(0)).float()
    model = Flow(Dequantization(5, bins=4), StandardNormal(5))
    arrays, kind = _measure(model, x, 40, run="a", progress_bar=False)
    means = arrays["log_prob"].mean(1)
    within = math.sqrt((arrays["log_prob"].var(0, ddof=1) / 40).sum()) / 1500
    assert within == pytest.approx(means.std(ddof=1) / math.sqrt(40), rel=0.35)
    assert kind == "bound"


def test_a_likelihood_that_is_not_finite_names_the_row():
    values = torch.tensor([0.0, 1.0, math.nan])
    with pytest.raises(NumericalError, match="test row 1002 is nan"):
        _check_finite(values, run="r", first_row=1000)


def test_a_summary_of_other_weights_or_draws_is_not_reused(digits):
    run = digits[0]
    evaluate(run.path, threads=1)
    assert saved_summary(run) is not None
    assert saved_summary(run, draws=2) is None
    stale = dataclasses.replace(saved_summary(run), train_step=1)
    (run.path / "evaluation.json").write_text(__import__("json").dumps(dataclasses.asdict(stale)))
    assert saved_summary(run) is None


def test_compare_writes_tables_and_figures_of_images(digits, tmp_path):
    found = compare([run.path for run in digits], tmp_path / "out", threads=1)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"comparison.md", "comparison.csv", "comparison.json", "samples.png", "likelihoods.png"}
    assert isinstance(found.summaries[0], Summary)
    assert found.summaries[0].log_prob_nats >= found.summaries[1].log_prob_nats
    rows = [saved_log_prob(open_run(digits[i].path)) for i in range(2)]
    assert abs(found.differences[0].difference_nats) == pytest.approx(abs((rows[0] - rows[1]).mean()))
    for name in ("flow", "score"):
        assert name in found.text()
        assert name in (tmp_path / "out/comparison.md").read_text()


def test_compare_draws_points(toys, tmp_path):
    found = compare([run.path for run in toys], tmp_path, threads=1)
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert "bits/dim" not in found.text()


def test_paired_error_is_smaller_than_the_single_ones_for_like_models(toys, tmp_path):
    found = compare([run.path for run in toys], tmp_path, threads=1)
    assert found.differences[0].error_nats < found.summaries[0].error_nats + found.summaries[1].error_nats


def test_runs_on_other_rows_are_not_compared(digits, toys, tmp_path):
    with pytest.raises(UserError, match="only runs tested on the same rows"):
        compare([digits[0].path, toys[1].path], tmp_path, threads=1)
    with pytest.raises(UserError, match="two runs are called 'flow'"):
        compare([digits[0].path, toys[0].path], tmp_path, threads=1)
    assert not list(tmp_path.iterdir())


def test_data_of_another_shape_than_the_model_is_refused(tmp_path):
    rows = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)).numpy()
    np.save(tmp_path / "rows.npy", rows)
    config = parse_config({"data": {"kind": "table", "path": "rows.npy"}, "model": FLOW, "train": TRAIN}, source="test")
    run = train(config, tmp_path / "run", data_root=tmp_path, threads=1)
    np.save(tmp_path / "rows.npy", rows[:, :2])
    with pytest.raises(UserError, match=r"trained on rows of shape \(3,\), but rows.* now has \(2,\)"):
        evaluate(run.path, threads=1)
