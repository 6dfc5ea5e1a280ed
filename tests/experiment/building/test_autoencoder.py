"""Variational autoencoders by config: training, resuming, evaluation, draws."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from discrete import Flow
from discrete.inference import VAE
from experiment import evaluate, load_run, train
from experiment.building.builder import load_data
from experiment.config import Config, parse_config
from experiment.draws.sampling import draw_samples
from experiment.errors import UserError
from experiment.likelihood.evaluation import saved_log_prob
from experiment.training.trainer import Trainer

SMALL = {"kind": "vae", "latent": 2, "hidden": [16], "features": 8, "posterior_hidden": [8], "layers": 2}


def config(*, data: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **sections: Any) -> Config:
    table = {
        "data": {"kind": "digits", "binarize": "stochastic", **(data or {})},
        "model": {**SMALL, **(model or {})},
        "train": {"steps": 4, "batch_size": 64, "validate_every": 2},
        "evaluate": {"draws": 5},
        **sections,
    }
    return parse_config(table, source="test")


@pytest.mark.parametrize("posterior", ["diagonal", "planar", "iaf", "sylvester"])
def test_train_evaluate_sample(tmp_path: Path, posterior: str) -> None:
    """The bound in nats and in bits a value, without log2 K; its log-mean-exp over draws is the tighter one."""
    run = train(config(model={"posterior": posterior}), tmp_path / "run", threads=1)
    assert isinstance(load_run(run.path), VAE)
    summary = evaluate(run.path)
    assert (summary.kind, summary.draws, summary.dimensions) == ("bound", 5, 64)
    assert summary.bits_per_dim == pytest.approx(-summary.log_prob_nats / (64 * math.log(2)))
    log_weights = saved_log_prob(run)
    assert log_weights.shape == (5, 360)
    weighted = np.log(np.exp(log_weights - log_weights.max(0)).mean(0)) + log_weights.max(0)
    assert summary.bits_per_dim_log_mean_exp == pytest.approx(-weighted.mean() / (64 * math.log(2)))
    assert summary.bits_per_dim_log_mean_exp < summary.bits_per_dim
    assert summary.dequantization_error_nats > 0
    assert (summary.audit_max_nats, summary.round_trip_max) == (None, None)
    samples, picture = draw_samples(run.path, count=6)[:2]
    assert set(np.unique(np.load(samples))) <= {0.0, 1.0}
    assert picture.is_file()


def test_training_makes_the_bound_better_than_independent_pixels(tmp_path: Path) -> None:
    settings = {"steps": 200, "batch_size": 64, "learning_rate": 5e-3, "validate_every": 200}
    sections = {"data": {"binarize": "static"}, "model": {"latent": 8, "hidden": [64]}, "train": settings}
    trained = train(config(**sections), tmp_path / "run", threads=1)
    data = load_data(trained.config.data, Path())
    p = (data.train.sum(0) + 1) / (len(data.train) + 2)
    independent = torch.distributions.Bernoulli(p).log_prob(data.test).sum(1).mean().item()
    assert evaluate(trained.path).log_prob_nats > independent + 1


def test_resuming_is_exact_to_the_bit_and_keeps_the_count_of_the_warmup(tmp_path: Path) -> None:
    data = load_data(config().data, Path())
    settings = config(model={"beta_warmup_steps": 50, "free_nats": 0.5, "posterior": "iaf"})
    whole, first, second = (Trainer(settings, data, device=torch.device("cpu")) for _ in range(3))
    for _ in range(4):
        whole.step()
    for _ in range(2):
        first.step()
    second.load_state(first.state())
    assert second.built.objective.objective.steps.item() == 2
    for _ in range(2):
        second.step()
    for a, b in zip(whole.built.model.parameters(), second.built.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_validation_is_the_whole_negative_bound_from_the_first_step_on() -> None:
    data = load_data(config().data, Path())
    values = []
    for extra in ({}, {"beta_warmup_steps": 1000, "free_nats": 100.0}):
        values.append(Trainer(config(model=extra), data, device=torch.device("cpu")).validate())
    assert values[0] == values[1]


def test_gaussian_behind_a_preprocessing(tmp_path: Path) -> None:
    """Grey levels dequantized and standardized: a bound on their mass, with the log-determinant of what came before."""
    run = train(
        config(
            data={"binarize": None},
            model={"likelihood": "gaussian"},
            preprocessing={"kind": "logit", "standardize": True},
        ),
        tmp_path / "run",
        threads=1,
    )
    model = load_run(run.path)
    assert isinstance(model, Flow)
    assert isinstance(model.base, VAE)
    summary = evaluate(run.path, draws=2)
    assert (summary.kind, summary.audit_max_nats) == ("bound", None)
    assert math.isfinite(summary.bits_per_dim)


def test_labels_and_images(tmp_path: Path) -> None:
    run = train(config(data={"layout": "image", "labels": True}, model={"hidden": [3]}), tmp_path / "run", threads=1)
    assert evaluate(run.path, draws=2).conditional


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"data": {"binarize": None}}, "likelihood=bernoulli takes values 0 and 1, but the data have 17 levels"),
        ({"preprocessing": {"kind": "logit"}}, "without preprocessing"),
        ({"model": {"likelihood": "gaussian"}, "preprocessing": {"kind": "none", "variational": {}}}, "variational"),
        ({"data": {"binarize": "both"}}, "'data.binarize' is 'both'"),
        ({"model": {"posterior": "full"}}, "'model.posterior' is 'full'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, sections: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train(config(**sections), tmp_path / "run")
