import math
from collections.abc import Callable

import pytest
import torch
from cases import CHAINS, COVARIANCES, MEANS, WEIGHTS
from contracts import langevin as contracts
from helpers import perturb, rng, seeded
from torch import Tensor

from cflows import GradientScore, annealed_langevin, geometric_ladder, langevin, mala
from cflows.samplers.mala import log_acceptance
from core import GaussianMixture, StandardUniform
from discrete import MAF, Flow

PLANE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)
# Two modes far apart, 1/5 and 4/5 (Song and Ermon, 2019, section 3.2.2).
EYES = torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
TWO = GaussianMixture(torch.tensor([[-5.0, -5.0], [5.0, 5.0]], dtype=torch.float64), EYES, torch.tensor([0.2, 0.8]))
LADDER = geometric_ladder(10.0, 0.1, levels=10).double()

# (variance, ε) -> stationary variance of unadjusted Langevin.
GOLD = {(1.0, 0.1): 1.0526316, (1.0, 0.01): 1.0050251, (0.25, 0.05): 0.2777778}


def noisy_score(x: Tensor, sigma: Tensor) -> Tensor:
    return TWO.perturbed_score(x, torch.ones_like(sigma), sigma)


def uniform(rows: int) -> Tensor:
    """On [-8, 8]²."""
    return 16 * torch.rand(rows, 2, generator=rng(0), dtype=torch.float64) - 8


def elsewhere(rows: int) -> Tensor:
    """A wide cloud to one side."""
    return 3 * torch.randn(rows, 2, generator=rng(0), dtype=torch.float64) + torch.tensor([4.0, -4.0])


@pytest.mark.parametrize("name", CHAINS)
def test_clean(name: str) -> None:
    run, calls = CHAINS[name]
    contracts.is_clean(run, calls=calls)


@pytest.mark.parametrize("name", CHAINS)
def test_runs_on_meta(name: str) -> None:
    x = CHAINS[name][0](torch.zeros(3, 2, device="meta"))
    assert (x.shape, x.device.type) == ((3, 2), "meta")


def test_langevin_on_gaussians() -> None:
    contracts.follows_the_recursion(langevin)


@pytest.mark.parametrize(("variance", "step_size"), GOLD)
def test_gold_stationary_variance(variance: float, step_size: float) -> None:
    found = contracts.stationary_variance(langevin, variance=variance, step_size=step_size)
    assert found == pytest.approx(GOLD[variance, step_size], abs=1e-7)
    assert found == pytest.approx(variance / (1 - step_size / (2 * variance)), rel=1e-10)


def test_langevin_bias_is_linear_in_the_step() -> None:
    contracts.bias_is_linear(langevin)


def test_langevin_reaches_a_mixture_as_the_step_falls() -> None:
    """From elsewhere, with a bias below the Monte Carlo error."""
    x = langevin(PLANE.score, elsewhere(1000), step_size=0.03, steps=500, generator=rng(1))
    contracts.has_the_law(x, PLANE)


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("sigmas", [[0.1], [2.0, 1.0, 0.3, 0.1]], ids=["one level", "four levels"])
def test_annealed_langevin_on_gaussians(sigmas: list[float], denoise: bool) -> None:
    contracts.anneals_exactly(annealed_langevin, sigmas=sigmas, steps=5, denoise=denoise)


def test_annealed_langevin_hands_out_the_levels() -> None:
    """σ itself, a value a row, in the dtype of x, T times a level."""
    seen: list[Tensor] = []

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        return -x

    x = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    annealed_langevin(score, torch.tensor([1.0, 0.5]), x, step_size=0.01, steps=2, denoise=True, generator=rng(0))
    assert [sigma.tolist() for sigma in seen] == [[1.0] * 3] * 2 + [[0.5] * 3] * 3
    assert all(sigma.dtype == torch.float64 for sigma in seen)


@pytest.mark.parametrize("step_size", [0.05, 0.2, 0.5])
def test_mala_keeps_the_law(step_size: float) -> None:
    contracts.keeps_the_law(mala, PLANE, step_size=step_size)


def test_mala_keeps_gaussians_of_many_dimensions() -> None:
    """The variance is exact where that of Langevin is a third too large."""
    x = torch.randn(4000, 10, generator=rng(0), dtype=torch.float64)
    x, acceptance = mala(lambda x: -0.5 * x.square().sum(1), x, step_size=0.5, steps=50, generator=rng(1))
    assert acceptance.mean() == pytest.approx(0.6, abs=0.15)
    assert (x.mean(0).abs() < 5 / 4000**0.5).all()
    assert (torch.cov(x.T) - torch.eye(10)).abs().max() < 5 * (2 / 4000) ** 0.5


def test_mala_arrives() -> None:
    x, _ = mala(PLANE.log_prob, elsewhere(2000), step_size=0.2, steps=200, generator=rng(1))
    contracts.has_the_law(x, PLANE)


def test_mala_balances() -> None:
    contracts.balances(log_acceptance)


def test_small_steps_are_accepted() -> None:
    """The acceptance rises to 1 as ε falls: 1 - a is of order ε^{3/2}."""
    x = PLANE.sample((4000,), generator=rng(0))
    refused = [
        1 - mala(PLANE.log_prob, x, step_size=step_size, steps=5, generator=rng(1))[1].mean().item()
        for step_size in (0.02, 0.005)
    ]
    assert refused[1] < 0.005
    assert 5 < refused[0] / refused[1] < 13


def test_mala_stays_inside_the_support() -> None:
    """Proposals of density 0 or NaN are refused, on both sides of a wall; the law is uniform then."""
    x = torch.rand(4000, 1, generator=rng(0))

    def log_density(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] < 0, math.nan, StandardUniform(1).log_prob(x) + 0 * x[:, 0])

    x, acceptance = mala(log_density, x, step_size=0.02, steps=50, generator=rng(1))
    assert ((x >= 0) & (x < 1)).all()
    assert 0.5 < acceptance.mean() < 0.95
    assert (x.mean() - 0.5).abs() < 5 * (1 / 12 / 4000) ** 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_mala_refuses_what_is_not_finite(value: float) -> None:
    start = torch.tensor([[0.0]])
    x, acceptance = mala(
        lambda x: torch.where(x[:, 0] == 0, 0.0, value) + 0 * x[:, 0], start, step_size=0.1, steps=3, generator=rng(0)
    )
    assert (x.item(), acceptance.item()) == (0.0, 0.0)


def test_annealing_is_needed() -> None:
    """Plain Langevin leaves each chain at the mode near which it started; annealed, they find the weights."""
    plain = langevin(TWO.score, uniform(2000), step_size=0.1, steps=100, generator=rng(1))
    weight, error = contracts.weight_and_error(plain)
    assert 0.4 < weight < 0.6
    assert (weight - 0.2) / error > 20
    annealed = annealed_langevin(noisy_score, LADDER, uniform(1500), step_size=0.004, steps=100, generator=rng(1))
    weight, error = contracts.weight_and_error(annealed)
    assert abs(weight - 0.2) / error < 4
    near = annealed[annealed.sum(1) > 0]
    assert (near.mean(0) - 5).abs().max() < 5 / len(near) ** 0.5
    assert (near.var(0) - 1.01).abs().max() < 0.15


@pytest.fixture(scope="module")
def flow() -> Flow:
    model = seeded(lambda: MAF(2, layers=2, hidden=(8,), activation="silu"))
    return perturb(model, rng(0), std=0.2)


@pytest.mark.parametrize("sampler", ["langevin", "mala"])
def test_flow_is_drawn_from_by_its_score(flow: Flow, sampler: str) -> None:
    """Started elsewhere, the moments are those of the flow's own draws."""
    x = elsewhere(1000) / 3
    runs: dict[str, Callable[[], Tensor]] = {
        "langevin": lambda: langevin(GradientScore(flow), x, step_size=0.05, steps=240, generator=rng(1)),
        "mala": lambda: mala(flow.log_prob, x, step_size=0.15, steps=100, generator=rng(1))[0],
    }
    end, own = runs[sampler](), flow.sample((50_000,), generator=rng(2))
    moments = [torch.cat([v, v.square(), v[:, :1] * v[:, 1:]], 1) for v in (end, own)]
    error = (moments[0].var(0) / len(end) + moments[1].var(0) / len(own)).sqrt()
    assert ((moments[0].mean(0) - moments[1].mean(0)).abs() < 4.5 * error).all()


@pytest.mark.parametrize("keywords", [{"step_size": 0.0}, {"step_size": math.nan}, {"steps": 0}])
@pytest.mark.parametrize("name", ["langevin", "mala", "annealed_langevin"])
def test_walks_that_make_no_sense(name: str, keywords: dict) -> None:
    options, x = {"step_size": 0.1, "steps": 1, **keywords}, torch.zeros(2, 1)
    with pytest.raises(ValueError, match=f"{name} needs a positive step_size and 1 step or more"):
        {
            "langevin": lambda: langevin(lambda x: -x, x, **options),
            "mala": lambda: mala(lambda x: -x[:, 0], x, **options),
            "annealed_langevin": lambda: annealed_langevin(lambda x, _: -x, [1.0], x, **options),
        }[name]()


@pytest.mark.parametrize("sigmas", [[], [1.0, 1.0], [0.5, 1.0], [1.0, 0.0], [math.nan], [math.inf, 1.0]])
def test_ladders_that_do_not_fall(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="finite and fall strictly"):
        annealed_langevin(lambda x, _: -x, sigmas, torch.zeros(2, 1), step_size=0.1, steps=1)
