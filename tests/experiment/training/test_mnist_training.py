"""MNIST through the same scripts: it starts, trains for some hundred steps and gets better."""

import json
import os
from pathlib import Path

import pytest
import torch

from experiment import evaluate, load_config, train
from experiment.data import mnist
from experiment.training.trainer import Trainer

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("CFLOWS_DATA_ROOT", ROOT.parent / "shared" / "data"))
SHORT = ["train.steps=300", "train.batch_size=128", "train.validate_every=50", "train.warmup_steps=20"]

needs_mnist = pytest.mark.skipif(
    not (DATA / "mnist").is_dir(),
    reason="MNIST is not on this machine; set CFLOWS_DATA_ROOT",
)


def losses(run, metric):
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [line[metric] for line in lines if metric in line]


@pytest.mark.slow
@needs_mnist
def test_real_nvp_trains_on_mnist(tmp_path):
    config = load_config(ROOT / "configs/mnist/real_nvp.toml", [*SHORT, "train.steps=150", "model.hidden=[64, 64]"])
    run = train(config, tmp_path / "run", data_root=DATA)
    nll = losses(run, "validation_nll_nats")
    assert nll[-1] < nll[0] - 100
    summary = evaluate(run.path)
    assert summary.kind == "bound"
    assert summary.rows == 10_000
    # A uniform density on 256 levels costs 8 bits; 150 steps are well below it, and the published 1.06 is out of reach.
    assert 1.06 < summary.bits_per_dim < 4.0


@pytest.mark.slow
@needs_mnist
def test_vp_sde_trains_on_mnist(tmp_path):
    config = load_config(ROOT / "configs/mnist/vp_sde.toml", [*SHORT, "model.hidden=[128, 128]"])
    untrained = Trainer(config, mnist(DATA), device=torch.device("cpu")).validate()
    run = train(config, tmp_path / "run", data_root=DATA)
    loss = losses(run, "validation_denoising_loss")
    assert loss == sorted(loss, reverse=True)
    # An untrained network is the score of independent Gaussians, 6.892 here; 300 steps bring 0.06 nats per dimension.
    # The noise is the same for both, so the difference carries almost none.
    assert loss[-1] < untrained - 0.05
