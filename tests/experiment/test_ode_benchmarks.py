from pathlib import Path

import pytest
import torch
from helpers import normal, rng
from torch import nn

from benchmarks import ode_growth, ode_likelihood, ode_problems
from benchmarks.ode_likelihood import Level
from benchmarks.ode_problems import SDE, T_MIN, Modes, Normal, costly
from benchmarks.ode_yardstick import yardstick
from benchmarks.tables import TABLES
from core import Hutchinson
from experiment import load_config

MODES = Modes(normal(3, (2,), rng(0)), 0.3)
LAWS = {"normal": Normal(torch.tensor([0.1, 2.0], dtype=torch.float64)), "modes": MODES}


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor, u: torch.Tensor, context: None) -> torch.Tensor:
        return self.linear(x.to(self.linear.weight.dtype))


@pytest.mark.parametrize("name", LAWS)
def test_scores_are_gradients_of_normalized_densities(name: str) -> None:
    law, t = LAWS[name], torch.tensor(0.2, dtype=torch.float64)
    x = normal(5, (2,), rng(1)).requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(x, *SDE.marginal(t)).sum(), x)
    torch.testing.assert_close(law.score(x, *SDE.marginal(t)), gradient)
    axis = torch.linspace(-8, 8, 401, dtype=torch.float64)
    mass = law.log_prob(torch.cartesian_prod(axis, axis), *SDE.marginal(t)).exp().sum() * 0.04**2
    assert mass.item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", LAWS)
def test_the_yardstick_is_right(name: str) -> None:
    """On a diagonal Gaussian one probe is exact; on modes it agrees with ours on the same probe."""
    law, x = LAWS[name], LAWS[name].sample(4, rng(2))
    problem = costly(name, law, Idle(), rows=4)
    score = problem.score
    probe = Hutchinson().draw(x, torch.Generator().manual_seed(0))
    found, nfe = yardstick(score, SDE, x, probe[0], t_min=T_MIN, tolerance=1e-8)
    assert score.calls == 2 * nfe
    torch.testing.assert_close(found, ode_likelihood.reference(problem, x, 0), rtol=0, atol=1e-4)
    if name == "normal":
        exact = law.log_prob(x, *SDE.marginal(torch.tensor(T_MIN, dtype=torch.float64)))
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)


def test_a_point_counts_time_error_and_calls() -> None:
    problem = costly("modes", MODES, Idle(), rows=3)
    score, batches = problem.score, problem.batches
    exact = [ode_likelihood.reference(problem, x, seed) for seed, x in enumerate(batches)]
    point = ode_likelihood.point(ode_likelihood.ours(score, Level("rk4", steps=24)), score, batches, exact)
    assert point["nfe"] == 96
    assert point["model_calls"] == 97  # one for the truncation
    assert 0 < point["rms_error_nats"] <= point["max_error_nats"] < 0.05
    off = [truth + 1.0 for truth in exact]
    assert ode_likelihood.point(
        ode_likelihood.ours(score, Level("rk4", steps=24)), score, batches, off
    )["rms_error_nats"] == pytest.approx(1.0, abs=0.05)  # fmt: skip


@pytest.mark.parametrize(("method", "least"), [("adams", 38), ("rk4", 38), ("dopri5", 2.6e-5)])
def test_the_coarsest_level_within_the_error_is_found(method: str, least: float) -> None:
    """Of errors that fall with cost: within an eighth of the way between two levels."""
    tried: dict[Level, dict[str, float]] = {}

    def error(level: Level) -> dict[str, float]:
        return {"rms_error_nats": 1 / level.steps if method in ode_likelihood.STEPS else level.tolerance}

    bar = least if method == "dopri5" else 1 / least
    found = ode_likelihood.cheapest(ode_likelihood.levels(method), tried, error, bar)
    assert found is not None
    assert error(found)["rms_error_nats"] <= bar < 1.3 * error(found)["rms_error_nats"]
    assert found in tried
    assert ode_likelihood.cheapest(ode_likelihood.levels(method), {}, error, 1e-9) is None


def test_tables_say_what_is_missing() -> None:
    row = {"problem": "a", "method": "rk4", "at": None, "speed_up": None, "points": []}
    assert [cell(row) for _, cell in TABLES["ode_likelihood"]][-1] == "none as close"


def test_a_learned_problem_is_one_score_in_both_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ode_problems, "RUNS", tmp_path)
    short = load_config("configs/8gaussians/vp_sde.toml", ["train.steps=2", "train.validate_every=1"])
    monkeypatch.setattr(ode_problems, "load_config", lambda path: short)
    problem = ode_problems.learned("toy", "8gaussians/vp_sde", rows=3)
    assert [len(x) for x in problem.batches] == [3, 3]
    x, t = problem.batches[0], torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(problem.score(x.float(), t.float()).double(), problem.exact(x, t), rtol=1e-4, atol=1e-4)
    assert problem.score.rows_seen == 3


def test_growth_counts_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ode_growth, "SIZES", (2,))
    monkeypatch.setattr(ode_growth, "SIZE", 2)
    monkeypatch.setattr(ode_growth, "perceptron", lambda size: Idle())
    monkeypatch.setattr(ode_growth, "BATCHES", (1, 4))
    monkeypatch.setattr(ode_likelihood, "ROUNDS", 1)
    _, rows = ode_growth.measure()
    assert {row["along"] for row in rows} == {"D", "rows"}
    alone, four = (r for r in rows if r["along"] == "rows" and r["method"] == "dopri5_per_sample")
    assert 0 < alone["model_rows"] <= four["model_rows"] * 4
    assert all(cell(row) for row in rows for _, cell in TABLES["ode_growth"])
