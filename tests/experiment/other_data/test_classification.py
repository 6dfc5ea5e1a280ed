"""Bayes' rule on a run that was told the labels, from the library and from the command line."""

import json

import numpy as np
import pytest
import torch

from experiment import classify, load_run, train
from experiment.cli import evaluation_options, evaluation_parser
from experiment.config import parse_config
from experiment.data import digits
from experiment.errors import UserError


def trained(folder, *, labels, model=None, draws=2, steps=150):
    model = model or {"kind": "real_nvp", "layers": 4, "hidden": [32]}
    logit = {"kind": "none" if model["kind"] == "autoregressive_mlp" else "logit"}
    settings = {"steps": steps, "batch_size": 64, "learning_rate": 5e-3, "validate_every": steps}
    table = {"data": {"kind": "digits", "labels": labels}, "preprocessing": logit, "model": model, "train": settings}
    config = parse_config({**table, "evaluate": {"draws": draws}}, source="test")
    return train(config, folder, threads=1, device="cpu")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("classified") / "told", labels=True)


def test_classes_are_those_of_bayes_rule(told):
    found, data, model = classify(told.path, threads=1), digits(labels=True), load_run(told.path)
    frequencies = np.bincount(data.labels.train, minlength=10) / 1257
    with torch.no_grad():
        p = np.zeros((360, 10))
        for draw in range(2):
            for y, one_hot in enumerate(torch.eye(10)):
                noise = torch.Generator().manual_seed(10_000_000 + draw)
                p[:, y] += model.log_prob(data.test, one_hot, generator=noise).double().exp().numpy() * frequencies[y]
    p /= p.sum(1, keepdims=True)
    y = data.labels.test.numpy()
    saved = np.load(told.path / "classification.npz")
    np.testing.assert_allclose(np.exp(saved["log_prob"]), p, atol=1e-3)
    assert saved["labels"].tolist() == y.tolist()
    assert found.accuracy == (p.argmax(1) == y).mean()
    assert found.accuracy > 0.3
    right = (p.argmax(1) == y).mean()
    assert found.accuracy_error == pytest.approx((right * (1 - right) / 359) ** 0.5)
    assert found.log_loss_nats == pytest.approx(-np.log(p[np.arange(360), y]).mean(), rel=1e-2)
    assert found.prior_log_loss_nats == pytest.approx(-np.log(frequencies[y]).mean(), rel=1e-5)
    assert (found.rows, found.classes, found.draws) == (360, 10, 2)
    assert json.loads((told.path / "classification.json").read_text())["accuracy"] == found.accuracy
    assert found.text().startswith("told: p(y | x) names ")


def test_masses_take_one_look(tmp_path):
    run = trained(tmp_path / "mass", labels=True, model={"kind": "autoregressive_mlp", "hidden": [64]}, steps=2)
    assert classify(run.path, threads=1).draws == 1


def test_a_run_without_labels_is_named(tmp_path):
    run = trained(tmp_path / "untold", labels=False, model={"kind": "nice", "hidden": [4]}, steps=2)
    with pytest.raises(UserError, match="--classify needs a run that was told the labels, but untold was not"):
        classify(run.path)


def test_options():
    def options(*arguments):
        return evaluation_options(evaluation_parser().parse_args(arguments))

    assert options("run", "--classify", "--draws", "2", "--device", "cpu") == {
        "draws": 2, "device": "cpu", "threads": 0, "progress_bar": True,
    }  # fmt: skip
    for alien in ("--anomalies", "--audit-rows", "--solver-share"):
        with pytest.raises(UserError, match=f"{alien} does not go with --classify"):
            options("run", "--classify", alien, "1")
