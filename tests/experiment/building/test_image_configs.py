"""Every ready-made config of images trains as it stands, at full width, and at full depth but for one."""

import math
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import first_rows

from experiment import evaluate, load_config, load_run, train
from experiment.building.builder import load_data
from experiment.config import parse_config
from experiment.data import Dataset
from experiment.errors import UserError
from experiment.sections.base import Section
from experiment.training.trainer import Trainer

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("CFLOWS_DATA_ROOT", ROOT.parent / "shared" / "data"))
CONFIGS = [*sorted((ROOT / "configs/mnist").glob("*.toml")), *sorted((ROOT / "configs/cifar10_lossless_4k").glob("*"))]


@cache
def few(data: Section) -> Dataset:
    """The first images, of a file that all configs read."""
    if not (DATA / data.kind).is_dir():
        pytest.skip(f"{data.kind} is not on this machine; set CFLOWS_DATA_ROOT")
    return first_rows(load_data(data, DATA), train=64, others=2)


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_image_config_trains(path):
    """A step, and the validation behind it."""
    config = load_config(path, ["train.batch_size=2"])
    if config.model.kind == "residual":  # a pass of all its layers takes a minute here
        config = load_config(path, ["train.batch_size=2", "model.layers=1"])
    trainer = Trainer(config, few(config.data), device=torch.device("cpu"))
    loss, norm = trainer.step()
    assert loss.isfinite()
    assert 0 < norm < math.inf
    assert math.isfinite(trainer.validate())


def digits(**sections):
    base = {"data": {"kind": "digits", "layout": "image"}, "model": {"kind": "real_nvp", "levels": 1, "hidden": [4]}}
    train_section = {"steps": 3, "batch_size": 32}
    return parse_config({**base, "train": train_section, **sections}, source="test")


def test_variational_dequantization_trains_with_the_flow(tmp_path):
    """Its parameters, the last of which start at zero, move; the likelihood is a bound."""
    config = digits(preprocessing={"kind": "logit", "variational": {"layers": 2, "hidden": [4]}})
    run = train(config, tmp_path / "run")
    noise = load_run(run.path).bijection.bijections[0]
    assert type(noise).__name__ == "VariationalDequantization"
    assert all(p.count_nonzero() for p in noise.parameters())
    summary = evaluate(run.path, draws=2)
    assert summary.kind == "bound"
    assert math.isfinite(summary.log_prob_nats)
    assert summary.round_trip_max < 1e-3


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"model": {"kind": "score_sde", "hidden": [4]}}, "which model.kind=score_sde|but model.kind=score_sde"),
        ({"data": {"kind": "toy", "name": "moons"}}, "for integer data"),
        ({"model": {"kind": "glow", "levels": 8, "depth": 1}}, "of 8 gets"),
        ({"model": {"kind": "nice"}}, "takes vectors"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, sections, sentence):
    variational = {"kind": "none", "variational": {"layers": 1}}
    with pytest.raises(UserError, match=sentence):
        train(digits(preprocessing=variational, **sections), tmp_path / "run")
    assert not (tmp_path / "run").exists()
