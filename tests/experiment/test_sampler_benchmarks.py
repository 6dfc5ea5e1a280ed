"""What the measurements of samplers rest on: counted evaluations, whitened modes, and who is measured."""

import math

import numpy as np
import pytest
import torch
from helpers import rng, seeded

import cflows
from benchmarks import judge, sampler_images, sampler_quality
from benchmarks.sampler_figure import STYLES, figure, quality_panels
from benchmarks.samplers import BASELINE, SOLVERS, points, run
from benchmarks.tables import TABLES
from cflows import VPSDE
from cflows.samplers.sampler import Sampler


def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Of N(0, I) data under VP."""
    return -x


def test_every_public_sampler_is_measured() -> None:
    public = {v for v in vars(cflows).values() if isinstance(v, type) and issubclass(v, Sampler)}
    measured = {type(solver.build(4 if solver.cost else 0.5)) for solver in SOLVERS.values()}
    assert public - measured == {cflows.Inpainting}  # which draws from another law
    assert STYLES.keys() <= SOLVERS.keys()
    assert set(sampler_images.CHOSEN) <= SOLVERS.keys()
    assert sampler_quality.TOLERANCES.keys() == {name for name, solver in SOLVERS.items() if not solver.cost}


@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_are_what_was_asked_for(name: str) -> None:
    """Within the one that EDM saves at its end."""
    solver, x_T = SOLVERS[name], torch.randn(6, 2, generator=rng(0))
    for setting, sampler in points(solver, evaluations=(12, 24), tolerances=(0.5,)):
        x, evaluations = run(sampler, score, VPSDE(), x_T, seed=0, chunk=4)
        assert x.shape == x_T.shape
        if "steps" in setting:
            assert 0 <= solver.cost * setting["steps"] - evaluations <= (name == "EDM Heun")
            assert setting["steps"] in (12 // solver.cost, 24 // solver.cost)
        else:
            assert evaluations > 5


def test_whitened_modes_are_standard_normal() -> None:
    modes = sampler_quality.modes_in_space()
    z, k = sampler_quality.whitened(modes, modes.sample((20_000,), generator=rng(1)))
    torch.testing.assert_close(z.mean(0), torch.zeros(16), rtol=0, atol=5 / 20_000**0.5)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(16), rtol=0, atol=5 * (2 / 20_000) ** 0.5)
    found = torch.bincount(k) / len(k)
    torch.testing.assert_close(found, modes.log_weights.exp(), rtol=0, atol=0.02)


def test_distances_see_width_shift_and_weight() -> None:
    modes = sampler_quality.ring_of_modes()
    see = sampler_quality.Judge(modes)
    x = modes.sample((4000,), generator=rng(2))
    exact = {name: v.mean().item() for name, v in see(x).items()}
    _, k = sampler_quality.whitened(modes, x)
    wide = see(modes.means[k] + 1.3 * (x - modes.means[k]))
    assert wide["within_modes"].mean() > 4 * exact["within_modes"]
    assert wide["weight_error"].mean() == pytest.approx(exact["weight_error"], abs=1e-6)
    half = see(x[k != 1][:2000])
    assert half["weight_error"].mean() > 0.1
    assert half["sliced_wasserstein"].mean() > 2 * exact["sliced_wasserstein"]
    assert half["within_modes"].mean() < 1.5 * exact["within_modes"]


def test_needed_is_the_fewest_evaluations_that_are_as_close() -> None:
    def row(evaluations: int, value: float) -> dict:
        return {"evaluations": evaluations, **{name: [value, 0.1] for name in sampler_quality.CRITERIA}}

    baseline = row(1000, 1.0)
    curve = [row(50, 1.2), row(20, 1.28), row(10, 1.29), {"evaluations": 5}]
    assert sampler_quality.needed(curve, baseline) == 20  # 2 √2 · 0.1 above
    curve[1]["weight_error"] = [2.0, 0.1]
    assert sampler_quality.needed(curve, baseline) == 50
    assert sampler_quality.needed([row(10, 2.0)], baseline) is None
    images = [{"evaluations": n, "frechet": [v, 1.0]} for n, v in ((10, 30.0), (20, 22.0))]
    assert sampler_images.needed(images, {"frechet": [20.0, 1.0]}) == 20


def test_judge_is_decided_by_its_seed() -> None:
    images, classes = np.random.default_rng(0).random((256, 784)), np.arange(256) % 10

    def trained(seed: int) -> torch.Tensor:
        model = seeded(lambda: judge.Judge(widths=(2, 3), features=8))
        seeded(lambda: judge.train(model, (images, classes)), seed)
        return judge.features_of(model, torch.from_numpy(images))

    built = [trained(seed) for seed in (0, 0, 1)]
    assert built[0].shape == (256, 8)
    assert torch.equal(built[0], built[1])
    assert not torch.equal(built[0], built[2])


def test_confident_share() -> None:
    model = judge.Judge(widths=(2, 3), features=2)
    with torch.no_grad():
        model.classes.weight.zero_()[0, 0] = 1.0
        model.classes.bias.zero_()
    sure = math.log(0.9 / (0.1 / 9))  # of ten classes, nine with logit 0
    features = torch.tensor([[sure + 0.01, 5.0], [sure - 0.01, 5.0], [0.0, 9.0], [20.0, 0.0]])
    assert judge.confident_share(model, features) == 0.5


def test_figure_and_tables_show_what_was_measured() -> None:
    point = {"evaluations": 20.0, "within_modes": [0.2, 0.01], "frechet": [30.0, 1.0], "confident": [0.8, 0.02]}
    curve = {"points": [point, {"evaluations": 5.0}], "needed": 20.0}
    names = ("8 modes, D = 2", "4 modes, D = 16", "8gaussians, learned")
    quality = [{"solver": BASELINE, "kind": "stochastic", **dict.fromkeys(names, curve)}]
    floors = {name: {"within_modes": [0.1, 0.01]} for name in names}
    drawn = figure(quality_panels({"floors": floors}, quality))
    assert [axis.get_title() for axis in drawn.axes[:3]] == list(names)
    assert drawn.axes[0].get_lines()[0].get_xydata().tolist() == [[20.0, 0.2]]
    assert [cell(quality[0]) for _, cell in TABLES["sampler_quality"]][2:] == ["20 (50 ×)"] * 3
    images = {"solver": BASELINE, "kind": "stochastic", **curve}
    assert [cell(images) for _, cell in TABLES["sampler_images"]][2:] == [
        "", "30.0 ± 1.0", "", "", "", "20 (50 ×)", "80 ± 2 %",
    ]  # fmt: skip
