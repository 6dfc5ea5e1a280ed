"""Autoregressive flows and models of probability mass through training, evaluation and sampling."""

from typing import Any

import numpy as np
import pytest
import torch

from discrete import MADE
from discrete.mass import MassModel
from experiment import evaluate, load_run, train
from experiment.building.builder import build
from experiment.config import parse_config
from experiment.draws.sampling import draw_samples
from experiment.errors import UserError

FLOWS: dict[str, dict[str, Any]] = {
    "made": {"conditional": "mixture", "components": 2, "hidden": [64], "order": "random", "masks": 2},
    "maf": {"layers": 2, "hidden": [64]},
    "maf-mog": {"layers": 1, "hidden": [64], "base": {"components": 2, "hidden": [64]}},
    "iaf": {"layers": 2, "hidden": [64], "scale": "gated"},
    "nsf": {"structure": "autoregressive", "layers": 1, "hidden": [64], "bins": 4},
    "transformer_flow": {"layers": 1, "depth": 1, "hidden": 8, "heads": 2},
}
MASSES: dict[str, dict[str, Any]] = {
    "autoregressive_mlp": {"hidden": [64]},
    "pixel_cnn": {"layers": 2, "hidden": [4, 4], "kernel": 3},
    "wave_net": {"layers": 3, "cycles": 1, "hidden": [4, 4, 4], "likelihood": "mixture", "components": 2},
    "autoregressive_transformer": {"layers": 1, "hidden": 8, "heads": 2},
}


def config(name: str, options: dict[str, Any], **sections: Any) -> Any:
    kind = name.partition("-")[0]
    data = {"kind": "digits", "layout": "image" if kind == "pixel_cnn" else "flat"}
    steps = {"steps": 2, "batch_size": 32, "validate_every": 2, "learning_rate": 1e-4}
    return parse_config({"data": data, "model": {"kind": kind, **options}, "train": steps, **sections}, source="test")


@pytest.mark.parametrize("name", FLOWS)
def test_flows(name: str, tmp_path: Any) -> None:
    run = train(config(name, FLOWS[name], preprocessing={"kind": "logit"}), tmp_path / "run")
    summary = evaluate(run.path, draws=2)
    assert (summary.kind, summary.draws) == ("bound", 2)
    assert summary.bits_per_dim == pytest.approx(-summary.log_prob_nats / (64 * torch.tensor(2.0).log().item()))
    path, _ = draw_samples(run.path, count=2)
    assert np.isfinite(np.load(path)).all()


@pytest.mark.parametrize("name", MASSES)
def test_masses(name: str, tmp_path: Any) -> None:
    """Exact for the integers: one draw, nothing from dequantization, close to 17 equal levels at the start."""
    run = train(config(name, MASSES[name]), tmp_path / "run")
    assert isinstance(load_run(run.path), MassModel)
    summary = evaluate(run.path)
    assert (summary.kind, summary.draws, summary.dequantization_error_nats) == ("exact", 1, 0.0)
    assert summary.bits_per_dim_log_mean_exp is None
    assert 3.0 < summary.bits_per_dim < 8.0
    path, _ = draw_samples(run.path, count=2)
    assert set(np.load(path).flatten().tolist()) <= set(range(17))


def test_a_mass_of_dequantized_values_is_refused(tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"integer data without preprocessing, but has preprocessing\.kind=logit"):
        train(config("wave_net", {}, preprocessing={"kind": "logit"}), tmp_path / "run")
    with pytest.raises(UserError, match="but has continuous data"):
        train(config("wave_net", {}, data={"kind": "toy", "name": "moons"}), tmp_path / "run")


def test_the_base_of_a_maf_is_the_mixture_that_is_asked_for() -> None:
    base = {"components": 3, "hidden": [70], "activation": "silu"}
    model = build(config("maf", {"hidden": [64], "base": base}), (64,), bins=17).model
    made = model.base.base
    assert isinstance(made, MADE)
    assert made.likelihood.parameters_per_value == 9
    assert made.network.widths[1] == 70
    assert isinstance(made.network.activation, torch.nn.SiLU)
