"""FFJORD and flow matching through config, training, evaluation and sampling."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cflows import FFJORD, ConditionalFlowMatching, FlowMatching, ODESolver, RegularizedLikelihood
from core import ExactDivergence, Hutchinson, HutchPlusPlus
from experiment import evaluate, load_config, load_run, train
from experiment.building.builder import build
from experiment.config import parse_config
from experiment.draws.sampling import draw_samples
from experiment.errors import UserError

ROOT = Path(__file__).parents[3]
RK4 = {"method": "rk4", "steps": 2}
FFJORD_MODEL = {"kind": "ffjord", "hidden": [8], "solver": RK4, "objective": {"solver": RK4}}
MATCHING_MODEL = {"kind": "flow_matching", "hidden": [8], "solver": RK4}
BOTH = pytest.mark.parametrize("model", [FFJORD_MODEL, MATCHING_MODEL], ids=lambda model: model["kind"])
LABELLED = {"kind": "digits", "labels": True}
ADAMS = {"gradient": "adjoint", "solver": {"method": "adams"}}
LOSSES = {"ffjord": "train_regularized_nll_nats", "flow_matching": "train_flow_matching_loss"}


def config(model: dict[str, Any], **sections: Any) -> Any:
    steps = {"steps": 2, "batch_size": 16, "validate_every": 2}
    data = {"kind": "toy", "name": "moons", "train_rows": 100, "validation_rows": 20, "test_rows": 20}
    return parse_config({"data": data, "model": model, "train": steps, **sections}, source="test")


@BOTH
def test_toys_train_evaluate_and_draw(model: dict[str, Any], tmp_path: Path) -> None:
    run = train(config(model, preprocessing={"kind": "none", "standardize": True}), tmp_path / "run")
    assert LOSSES[model["kind"]] in run.metrics.read_text()
    summary = evaluate(run.path)
    assert summary.kind == "exact"
    assert summary.nfe == 8
    assert math.isfinite(summary.log_prob_nats)
    path, *_ = draw_samples(run.path, count=3)
    assert np.isfinite(np.load(path)).all()


@BOTH
def test_labels_reach_the_velocity(model: dict[str, Any], tmp_path: Path) -> None:
    run = train(config(model, data=LABELLED, preprocessing={"kind": "scale"}), tmp_path / "run")
    assert load_run(run.path).base.net.context_features == 10
    path, *_ = draw_samples(run.path, count=2, labels=[3, 7])
    assert np.load(path).shape == (2, 64)


def test_options_of_ffjord_arrive() -> None:
    training = {
        "kinetic": 0.1,
        "jacobian": 0.2,
        "gradient": "adjoint",
        "divergence": {"kind": "hutchinson", "probes": 3, "distribution": "gaussian"},
        "solver": {"method": "dopri5", "rtol": 1e-3, "atol": 1e-4},
    }
    section = {"kind": "ffjord", "hidden": [8, 9], "divergence": {"kind": "hutch++"}, "objective": training}
    built = build(config(section), (2,))
    model, objective = built.model, built.objective.objective
    assert isinstance(model, FFJORD)
    assert isinstance(objective, RegularizedLikelihood)
    assert objective.model is model
    assert [layer.linear.out_features for layer in model.net.net.layers] == [8, 9, 2]
    assert model.divergence == HutchPlusPlus()
    assert model.solver == ODESolver(method="dopri5_per_sample")
    assert (objective.kinetic, objective.jacobian, objective.gradient) == (0.1, 0.2, "adjoint")
    assert objective.divergence == Hutchinson(probes=3, distribution="gaussian")
    assert objective.solver == ODESolver(method="dopri5", rtol=1e-3, atol=1e-4)
    assert build(config({"kind": "ffjord"}), (2,)).objective.objective.divergence == ExactDivergence()


def test_options_of_flow_matching_arrive() -> None:
    section = {
        "kind": "flow_matching",
        "hidden": [8, 9],
        "frequencies": 3,
        "dropout": 0.2,
        "data_std": 0.5,
        "sigma_min": 0.1,
        "coupling": "optimal",
        "times": "uniform",
        "error_factor": 4.0,
    }
    built = build(config(section), (2,))
    model, objective = built.model, built.objective.objective
    assert isinstance(model, FlowMatching)
    assert isinstance(objective, ConditionalFlowMatching)
    assert objective.velocity is model
    assert (model.data_std, model.sigma_min, model.error_factor) == (0.5, 0.1, 4.0)
    assert (objective.sigma_min, objective.coupling, objective.times) == (0.1, "optimal", "uniform")
    assert model.net.embedding.out_features == 7
    assert [block.linear.out_features for block in model.net.net.blocks] == [8, 9]


@pytest.mark.parametrize("model", ["ffjord", "flow_matching"])
@pytest.mark.parametrize("data", ["8gaussians", "moons", "mnist"])
def test_ready_made_configs_build(data: str, model: str) -> None:
    section = load_config(ROOT / f"configs/{data}/{model}.toml")
    shape, bins = ((1, 28, 28), 256) if data == "mnist" else ((2,), None)
    small = {"hidden": (4,) * len(section.model.hidden)}
    if section.model.heads:
        small["attention"] = section.model.attention
    table = section.model_copy(update={"model": section.model.model_copy(update=small)})
    assert build(table, shape, bins=bins).model.event_shape == shape


@pytest.mark.parametrize(
    ("model", "sections", "sentence"),
    [
        (
            {**MATCHING_MODEL, "coupling": "optimal"},
            {"data": {"kind": "digits", "labels": True}},
            "no place for labels",
        ),
        ({**FFJORD_MODEL, "heads": 2}, {}, "are of 'unet', but concat_squash has heads=2"),
        (
            {**FFJORD_MODEL, "objective": {"gradient": "adjoint", "solver": {"method": "adams"}}},
            {},
            "adjoint is solved by",
        ),
        (
            FFJORD_MODEL,
            {"data": {"kind": "digits"}, "preprocessing": {"kind": "none", "variational": {"layers": 1}}},
            "but model.kind=ffjord is none",
        ),
    ],
)
def test_what_does_not_go_together_is_named(model: Any, sections: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        train(config(model, **sections), tmp_path / "run")
    assert not (tmp_path / "run").exists()
