"""p(x | c) where it is known: flows and continuous models learn it, and a known score gives it exactly."""

import math

import pytest
import torch
from helpers import rng, seeded
from torch import Tensor

from cflows import FFJORD, VPSDE, ConditionalFlowMatching, ConditionalScore, FlowMatching, probability_flow_log_prob
from core import AtContext, DensityModel, ExactDivergence, MixtureOfDensities
from discrete import MAF


def mean(c: Tensor) -> Tensor:
    return torch.cat([2 * c, c.square() - 1], -1)


def std(c: Tensor) -> Tensor:
    return torch.cat([0.3 + 0.2 * c.sigmoid(), 0.5 - 0.2 * c.sigmoid()], -1)


def known(x: Tensor, c: Tensor) -> Tensor:
    return torch.distributions.Normal(mean(c), std(c)).log_prob(x).sum(-1)


def drawn(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    c = 2 * torch.rand(rows, 1, generator=generator) - 1
    return mean(c) + std(c) * torch.randn(rows, 2, generator=generator), c


def learned(model: DensityModel, *, steps: int, objective: torch.nn.Module | None = None) -> DensityModel:
    g, optimizer = rng(1), torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, c = drawn(256, g)
        loss = -model.log_prob(x, c).mean() if objective is None else objective(x, c, generator=g)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def flow_matching() -> DensityModel:
    model = FlowMatching(2, context_features=1, hidden=(32, 32))
    return learned(model, steps=800, objective=ConditionalFlowMatching(model))


MODELS = {
    "maf": (lambda: learned(MAF(2, layers=2, hidden=(32,), context_features=1), steps=250), 0.03),
    "flow_matching": (flow_matching, 0.08),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_conditional_density_is_learned(name):
    """KL(p(x | c) || model) over rows whose contexts it never saw; with another row's context it is far off."""
    build, allowed = MODELS[name]
    model = seeded(build)
    x, c = drawn(800, rng(2))
    with torch.no_grad():
        gap = (known(x, c) - model.log_prob(x, c)).mean().item()
        assert -0.01 < gap < allowed, f"KL of {gap:.4f} nats"
        assert (known(x, c) - model.log_prob(x, c.roll(1, 0))).mean() > 1
        draws = model.sample((2000,), context=torch.tensor([0.5]), generator=rng(3))
    at = torch.tensor([0.5])
    torch.testing.assert_close(draws.mean(0), mean(at), rtol=0, atol=0.06)
    torch.testing.assert_close(draws.std(0), std(at), rtol=0.15, atol=0)


def test_a_known_score_has_the_known_density():
    """The score of N(α μ(c), α² s(c)² + σ²) under a VP process, each row at a context of its own."""
    sde = VPSDE(beta_max=40.0)  # whose prior is p_1 to four digits

    def score(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        scale, noise = sde.marginal(t)
        scale, noise = (v.reshape(-1, 1) for v in (scale, noise))
        return -(x - scale * mean(c)) / (scale.square() * std(c).square() + noise.square())

    x, c = (v.double() for v in drawn(8, rng(4)))
    found = probability_flow_log_prob(
        ConditionalScore(score, c), sde, x, t_min=1e-5, divergence=ExactDivergence(), rtol=1e-7, atol=1e-7
    )
    torch.testing.assert_close(found.log_prob, known(x, c), rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["maf", "ffjord"])
def test_a_mixture_over_contexts_is_the_marginal(name):
    """Σ_c p(c) p(x | c) integrates to 1, and Bayes' rule gives the frequencies back on average."""
    made = {"maf": MAF, "ffjord": FFJORD}[name](2, context_features=1, hidden=(8,))
    model = made.double().eval()
    w = torch.tensor([0.3, 0.7])
    whole = MixtureOfDensities([AtContext(model, torch.tensor([c])) for c in (-1.0, 1.0)], w).double()
    axis = torch.linspace(-7, 7, 61, dtype=torch.float64)
    with torch.no_grad():
        joint = whole.log_joint(torch.cartesian_prod(axis, axis))
    cell = (axis[1] - axis[0]).square()
    masses = joint.exp().sum(0) * cell
    torch.testing.assert_close(masses.float(), w, rtol=0, atol=2e-3)
    assert math.isclose(masses.sum().item(), 1, abs_tol=2e-3)
