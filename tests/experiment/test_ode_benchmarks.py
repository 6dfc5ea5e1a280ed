import pytest
import torch
from helpers import normal, rng
from torch import nn

from benchmarks import ode_likelihood
from benchmarks.ode_likelihood import Level
from benchmarks.ode_problems import SDE, T_MIN, Costly, Modes, Normal, Problem
from benchmarks.ode_yardstick import yardstick
from benchmarks.tables import TABLES
from core import Hutchinson

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
    score = Costly(law, Idle()).double()
    probe = Hutchinson().draw(x, torch.Generator().manual_seed(0))
    found, nfe = yardstick(score, SDE, x, probe[0], t_min=T_MIN, tolerance=1e-8)
    assert score.calls == 2 * nfe
    problem = Problem(name, law, Idle, 4, 1)
    torch.testing.assert_close(found, ode_likelihood._exact(problem, x, 0), rtol=0, atol=1e-4)
    if name == "normal":
        exact = law.log_prob(x, *SDE.marginal(torch.tensor(T_MIN, dtype=torch.float64)))
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)


def test_a_point_counts_time_error_and_calls() -> None:
    problem = Problem("modes", MODES, Idle, 3, 2)
    score = Costly(MODES, Idle())
    batches = [MODES.sample(3, rng(i)) for i in range(2)]
    exact = [ode_likelihood._exact(problem, x, seed) for seed, x in enumerate(batches)]
    point = ode_likelihood._point(ode_likelihood._ours(score, Level("rk4", steps=24)), score, batches, exact)
    assert point["nfe"] == 96
    assert point["model_calls"] == 97  # one for the truncation
    assert 0 < point["rms_error_nats"] <= point["max_error_nats"] < 0.05
    off = [truth + 1.0 for truth in exact]
    assert ode_likelihood._point(
        ode_likelihood._ours(score, Level("rk4", steps=24)), score, batches, off
    )["rms_error_nats"] == pytest.approx(1.0, abs=0.05)  # fmt: skip


def test_tables_say_what_is_missing() -> None:
    row = {"problem": "a", "method": "rk4", "at": None, "speed_up": None, "points": []}
    assert [cell(row) for _, cell in TABLES["ode_likelihood"]][-1] == "none as close"
