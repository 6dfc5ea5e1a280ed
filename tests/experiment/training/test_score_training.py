"""Models of scores and draws through training, sampling, and the refusal of a likelihood that they do not have."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cflows import (
    NCSN,
    CosineWeighting,
    EDMWeighting,
    EnergyModel,
    FixedNoiseDenoising,
    LadderDenoising,
    LearnedWeighting,
    LikelihoodWeighting,
    SlicedScoreMatching,
    VarianceWeighting,
    largest_distance,
)
from cflows.objectives.weightings import Weighting
from experiment import compare, evaluate, load_config, load_run, train
from experiment.building.builder import build
from experiment.comparison.two_sample import two_sample_test
from experiment.config import parse_config
from experiment.data import digits, sample_toy
from experiment.draws.sampling import draw_samples
from experiment.errors import UserError

ROOT = Path(__file__).parents[3]
SMALL_NCSN = {"kind": "ncsn", "hidden": [8], "ladder": {"levels": 3}, "sampler": {"steps": 2}}
OBJECTIVES = [
    {"kind": "implicit"},
    {"kind": "sliced", "projections": 2, "distribution": "sphere", "variance_reduced": False},
    {"kind": "finite_difference", "delta": 0.1},
    {"kind": "denoising", "sigma": 0.3},
]


def config(model: dict[str, Any], **sections: Any) -> Any:
    steps = {"steps": 2, "batch_size": 32, "validate_every": 2}
    return parse_config({"data": {"kind": "digits"}, "model": model, "train": steps, **sections}, source="test")


@pytest.mark.parametrize(
    ("model", "layout", "preprocessing"),
    [
        (SMALL_NCSN, "flat", {"kind": "none"}),
        ({**SMALL_NCSN, "conditioning": "scaling"}, "flat", {"kind": "scale"}),
        ({**SMALL_NCSN, "network": "mlp"}, "image", {"kind": "none", "standardize": True}),
        ({**SMALL_NCSN, "hidden": [4, 4], "depth": 1}, "image", {"kind": "none"}),
        ({**SMALL_NCSN, "network": "refinenet", "conditioning": "instance_norm", "hidden": [4]}, "image", None),
    ],
)
def test_ncsn_trains_and_draws_integers(model: Any, layout: str, preprocessing: Any, tmp_path: Path) -> None:
    sections = {} if preprocessing is None else {"preprocessing": preprocessing}
    run = train(config(model, data={"kind": "digits", "layout": layout}, **sections), tmp_path / "run")
    path, _ = draw_samples(run.path, count=3)
    draws = np.load(path)
    assert draws.shape == (3, *((64,) if layout == "flat" else (1, 8, 8)))
    assert set(draws.flatten().tolist()) <= set(range(17))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o["kind"])
def test_energy_trains_and_draws(objective: Any, tmp_path: Path) -> None:
    model = {"kind": "energy", "hidden": [8], "steps": 3, "objective": objective}
    run = train(config(model, data={"kind": "toy", "name": "moons", "train_rows": 100}), tmp_path / "run")
    path, _ = draw_samples(run.path, count=3)
    assert np.isfinite(np.load(path)).all()
    assert "train_score_matching_loss" in run.metrics.read_text()


def test_what_has_no_likelihood_says_so(tmp_path: Path) -> None:
    run = train(config(SMALL_NCSN), tmp_path / "run")
    for measure in (evaluate, lambda path: compare([path], tmp_path / "out")):
        with pytest.raises(UserError, match=r"run has no likelihood to evaluate: model\.kind=ncsn gives scores"):
            measure(run.path)


def test_the_ladder_starts_at_the_largest_distance_and_comes_back(tmp_path: Path) -> None:
    """As the model sees the data, and from the checkpoint, where there are no rows to measure."""
    ladder = {"sigma_max": "largest_distance", "sigma_min": 0.05, "levels": 3}
    run = train(config({**SMALL_NCSN, "ladder": ladder}, preprocessing={"kind": "scale"}), tmp_path / "run")
    sigmas = load_run(run.path).base.sigmas
    assert sigmas[-1].item() == pytest.approx(0.05)
    assert (sigmas[1] / sigmas[0]).item() == pytest.approx((sigmas[2] / sigmas[1]).item())
    noisy = (digits().train + 0.5) / 17 * 2 - 1  # on [-1, 1)
    assert sigmas[0].item() == pytest.approx(largest_distance(noisy).item(), rel=0.05)


def test_options_arrive() -> None:
    model = {
        "kind": "ncsn",
        "hidden": [8, 9],
        "frequencies": 3,
        "data_std": 0.3,
        "dropout": 0.2,
        "weighting": "uniform",
        "ladder": {"sigma_max": 2.0, "sigma_min": 0.5, "levels": 4},
        "sampler": {"step_size": 0.1, "steps": 7, "denoise": False, "start": "uniform"},
    }
    built = build(config(model, preprocessing={"kind": "logit"}), (64,), bins=17)
    inner, objective = built.model.base, built.objective.objective
    assert isinstance(inner, NCSN)
    assert isinstance(objective, LadderDenoising)
    assert objective.score is inner
    assert objective.weighting == "uniform"
    torch.testing.assert_close(objective.sigmas, inner.sigmas)
    assert inner.sigmas[[0, -1]].tolist() == pytest.approx([2.0, 0.5])
    assert (inner.step_size, inner.steps, inner.denoise, inner.start) == (0.1, 7, False, "uniform")
    assert inner.conditional.data_std == 0.3
    assert inner.conditional.net.embedding.out_features == 7
    assert [block.linear.out_features for block in inner.conditional.net.net.blocks] == [8, 9]
    assert inner.conditional.net.net.blocks[0].dropout.p == 0.2


SCORE_SDE = {"kind": "score_sde", "hidden": [8, 8], "data_std": 0.3}


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("variance", VarianceWeighting()),
        ("likelihood", LikelihoodWeighting()),
        ("edm", EDMWeighting(data_std=0.3)),
        ("cosine", CosineWeighting()),
    ],
)
def test_weightings_arrive(weighting: str, expected: Weighting) -> None:
    built = build(config({**SCORE_SDE, "weighting": weighting}), (64,), bins=17)
    assert built.objective.objective.weighting == expected
    assert built.objective.objective.t_min == built.model.base.t_min


def test_options_of_a_score_sde_arrive() -> None:
    unet = {"network": "unet", "hidden": [4, 8, 4], "depth": 1, "heads": 2, "attention": [0, 1]}
    model = {**SCORE_SDE, **unet, "parametrization": "velocity", "weighting": "learned"}
    built = build(config(model, data={"kind": "digits", "layout": "image"}), (1, 8, 8), bins=17)
    net = built.model.base.net.net
    assert built.model.base.parametrization == "velocity"
    assert isinstance(built.objective.objective.weighting, LearnedWeighting)
    assert [len(stage.attentions) for stage in (*net.encoders, net.middle)] == [1, 1, 0]


@pytest.mark.parametrize("parametrization", ["score", "noise", "data", "velocity"])
def test_every_parametrization_trains(parametrization: str, tmp_path: Path) -> None:
    model = {**SCORE_SDE, "parametrization": parametrization, "weighting": "learned"}
    run = train(config(model, preprocessing={"kind": "scale"}), tmp_path / "run")
    assert load_run(run.path).base.parametrization == parametrization


def test_options_of_an_energy_arrive() -> None:
    model = {"kind": "energy", "hidden": [8, 9], "base_scale": 3.0, "step_size": 0.2, "steps": 11}
    built = build(config({**model, "objective": OBJECTIVES[1]}), (64,), bins=17)
    inner, objective = built.model.base, built.objective.objective
    assert isinstance(inner, EnergyModel)
    assert isinstance(objective, SlicedScoreMatching)
    assert inner.base.log_scale.exp().unique().tolist() == pytest.approx([3.0])
    assert (inner.step_size, inner.steps) == (0.2, 11)
    assert [layer.out_features for layer in inner.net.net.layers if hasattr(layer, "out_features")] == [8, 9, 1]
    assert (objective.trace.probes, objective.trace.distribution, objective.variance_reduced) == (2, "sphere", False)
    denoising = build(config({**model, "objective": OBJECTIVES[3]}), (64,), bins=17).objective.objective
    assert isinstance(denoising, FixedNoiseDenoising)
    assert denoising.sigma == 0.3


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"network": "unet"}, r"model\.kind=ncsn: network='unet' takes images"),
        ({"conditioning": "instance_norm"}, "goes with network refinenet"),
        ({"ladder": {"sigma_max": 0.01, "sigma_min": 0.1}}, "0 < sigma_min < sigma_max"),
    ],
)
def test_what_does_not_go_together_is_named(model: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        train(config({**SMALL_NCSN, **model}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ncsn_learns_the_moons(tmp_path: Path) -> None:
    """A permutation test does not tell 500 draws from 500 of the data; before training it does."""
    data = sample_toy("moons", 500, torch.Generator().manual_seed(1))

    def p_value(steps: int) -> float:
        settings = [f"train.steps={steps}", "train.batch_size=256", "model.hidden=[64,64,64]", "train.ema_decay=0.99"]
        run = train(load_config(ROOT / "configs/moons/ncsn.toml", settings), tmp_path / f"{steps}")
        x = load_run(run.path).sample((500,), generator=torch.Generator().manual_seed(2))
        return two_sample_test(data, x, generator=torch.Generator().manual_seed(3)).p_value

    assert p_value(1) <= 0.001
    assert p_value(1500) > 0.01
