"""The contracts of Langevin chains bite: each passes what is right and rejects what is wrong in one place."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from cases import CHAINS, COVARIANCES, MEANS, WEIGHTS
from contracts import langevin as contracts
from helpers import Tooth
from torch import Tensor

from cflows import annealed_importance_sampling, annealed_langevin, effective_sample_size, langevin, mala, r_hat
from cflows.samplers.annealed_importance import NormalizingConstant
from cflows.samplers.mala import Point, log_acceptance
from core import DensityModel, DiagonalNormal, GaussianMixture

Score = Callable[..., Tensor]
PLANE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)


def walk(
    score: Score,
    x: Tensor,
    *,
    step_size: float,
    steps: int,
    sign: float = 1.0,
    noise: Callable[[float], float] = lambda e: math.sqrt(2 * e),
    generator: Any = None,
) -> Tensor:
    """Langevin with a sign on its score and another scale of its noise."""
    for _ in range(steps):
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x + sign * step_size * score(x) + noise(step_size) * z
    return x


WALKS: dict[str, dict[str, Any]] = {
    "√ε in the noise": {"noise": math.sqrt},
    "ε for its root": {"noise": lambda e: 2 * e},
    "score reversed": {"sign": -1.0},
    "half the score": {"sign": 0.5},
}


@pytest.mark.parametrize("name", WALKS)
def test_langevin(name: str) -> None:
    Tooth(contracts.follows_the_recursion, lambda: langevin, lambda: partial(walk, **WALKS[name])).bites()


@pytest.mark.parametrize("name", ["√ε in the noise", "ε for its root"])
def test_bias(name: str) -> None:
    Tooth(contracts.bias_is_linear, lambda: langevin, lambda: partial(walk, **WALKS[name])).bites()


def anneal(
    score: Score,
    sigmas: list[float],
    x: Tensor,
    *,
    step_size: float,
    steps: int,
    denoise: bool = False,
    power: int = 2,
    half: float = 0.5,
    warm: bool = True,
    last: Callable[[float], float] = lambda s: s**2,
) -> Tensor:
    """Annealed Langevin with another law of αᵢ, half a step, cold starts or another last step."""
    start = x
    for sigma in sigmas:
        alpha, level = step_size * (sigma / sigmas[-1]) ** power, x.new_full((len(x),), sigma)
        x = x if warm else start
        for _ in range(steps):
            x = x + half * alpha * score(x, level) + math.sqrt(alpha) * torch.randn(x.shape, dtype=x.dtype)
    return x + last(sigmas[-1]) * score(x, level) if denoise else x


LADDERS: dict[str, dict[str, Any]] = {
    "αᵢ with σᵢ": {"power": 1},
    "αᵢ all the same": {"power": 0},
    "α for α/2": {"half": 1.0},
    "no warm start": {"warm": False},
    "σ in the last step": {"last": lambda s: s},
    "no last step": {"last": lambda s: 0.0},
}


@pytest.mark.parametrize("name", LADDERS)
def test_annealed_langevin(name: str) -> None:
    contract = partial(contracts.anneals_exactly, sigmas=[1.0, 0.4, 0.1], steps=4, denoise=True)
    Tooth(contract, lambda: annealed_langevin, lambda: partial(anneal, **LADDERS[name])).bites()


def without_proposal(here: Point, there: Point, *, step_size: float) -> Tensor:
    return there.log_density - here.log_density


def with_proposal_reversed(here: Point, there: Point, *, step_size: float) -> Tensor:
    plain = without_proposal(here, there, step_size=step_size)
    return 2 * plain - log_acceptance(here, there, step_size=step_size)


def with_half_the_variance(here: Point, there: Point, *, step_size: float) -> Tensor:
    plain = without_proposal(here, there, step_size=step_size)
    return plain + 2 * (log_acceptance(here, there, step_size=step_size) - plain)


@pytest.mark.parametrize("wrong", [without_proposal, with_proposal_reversed, with_half_the_variance])
def test_balance(wrong: contracts.Acceptance) -> None:
    Tooth(contracts.balances, lambda: log_acceptance, lambda: wrong).bites()


def adjusted(monkeypatch: pytest.MonkeyPatch, acceptance: contracts.Acceptance) -> contracts.Adjusted:
    """`mala` with another acceptance."""
    monkeypatch.setattr("cflows.samplers.mala.log_acceptance", acceptance)
    return mala


def test_law(monkeypatch: pytest.MonkeyPatch) -> None:
    contract = partial(contracts.keeps_the_law, mixture=PLANE, step_size=0.2)
    Tooth(contract, lambda: mala, lambda: adjusted(monkeypatch, without_proposal)).bites()


def test_law_of_the_unadjusted() -> None:
    def everything(log_density: Any, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        return langevin(PLANE.score, x, **options), torch.ones(len(x))

    Tooth(partial(contracts.keeps_the_law, mixture=PLANE, step_size=0.2), lambda: mala, lambda: everything).bites()


def accepts_by_the_batch(x: Tensor, **keywords: Any) -> Tensor:
    """One decision for all rows."""
    y = CHAINS["mala"][0](x, **keywords)
    return x + (y - x) * (y.mean() > x.mean())


def one_call_short(x: Tensor, *, callback: Any = None, **keywords: Any) -> Tensor:
    seen = callback and (lambda step, value: callback(step, value) if step else None)
    return CHAINS["mala"][0](x, callback=seen, **keywords)


def in_place(x: Tensor, **keywords: Any) -> Tensor:
    return x.detach().copy_(CHAINS["mala"][0](x, **keywords)).clone()


@pytest.mark.parametrize("wrong", [accepts_by_the_batch, one_call_short, in_place])
def test_clean(wrong: contracts.Run) -> None:
    run, calls = CHAINS["mala"]
    Tooth(partial(contracts.is_clean, calls=calls), lambda: run, lambda: wrong).bites()


def bell(x: Tensor) -> Tensor:
    """exp(-2 ‖x - 1‖²), Z = π/2 in two dimensions."""
    return -2 * (x - 1).square().sum(1)


WIDE = DiagonalNormal(2, scale=2.0, learnable=False).double()
SETTINGS = {"particles": 150, "temperatures": 6, "step_size": 0.15}


def right_weights(log_density: Callable, base: DensityModel, *, generator: Any) -> NormalizingConstant:
    return annealed_importance_sampling(log_density, base, **SETTINGS, generator=generator)


def own_weights(
    log_density: Callable,
    base: DensityModel,
    *,
    generator: Any,
    late: bool = False,
    power: Callable[[float, float], float] = lambda before, beta: beta - before,
) -> NormalizingConstant:
    """Weights taken before or after the transition of their temperature, to some power."""
    n = SETTINGS["particles"]
    x, log_w = base.sample((n,), generator=generator), torch.zeros(n, dtype=torch.float64)
    for before, beta in pairwise(k / 6 for k in range(7)):
        early = log_density(x) - base.log_prob(x)
        target = lambda x, b=beta: (1 - b) * base.log_prob(x) + b * log_density(x)  # noqa: E731
        x, acceptance = mala(target, x, step_size=0.15, steps=1, generator=generator)
        log_w += power(before, beta) * (log_density(x) - base.log_prob(x) if late else early)
    share = log_w.softmax(0)
    return NormalizingConstant(
        log_w.logsumexp(0) - math.log(n), share.std() * n**0.5, 1 / share.square().sum(), acceptance.mean()
    )


def scaled(error: float = 1.0, shift: float = 0.0) -> contracts.Weighted:
    def weighted(log_density: Callable, base: DensityModel, *, generator: Any) -> NormalizingConstant:
        found = right_weights(log_density, base, generator=generator)
        return replace(found, log_z_nats=found.log_z_nats + shift, std_error_nats=error * found.std_error_nats)

    return weighted


def test_normalizer_of_own_weights() -> None:
    contracts.normalizer_is_covered(own_weights, bell, WIDE, log_z=math.log(math.pi / 2), repeats=30)


@pytest.mark.parametrize(
    "wrong",
    [
        partial(own_weights, late=True),
        partial(own_weights, power=lambda before, beta: beta),
        scaled(error=150**0.5),
        scaled(shift=math.log(150)),
    ],
    ids=["after the transition", "temperature for its difference", "no 1/√n", "sum for mean"],
)
def test_normalizer(wrong: contracts.Weighted) -> None:
    contract = partial(
        contracts.normalizer_is_covered, log_density=bell, base=WIDE, log_z=math.log(math.pi / 2), repeats=30
    )
    Tooth(contract, lambda: right_weights, lambda: wrong).bites()


def plain_r_hat(chains: Tensor, *, split: bool, folded: bool) -> Tensor:
    """R-hat of draws as they are, with or without halves, with or without distances from the median."""
    halves = chains.unflatten(0, (2, -1)).transpose(0, 1).flatten(1) if split else chains
    parts = [halves, (halves - halves.median()).abs()] if folded else [halves]
    return torch.stack([(v.mean(0).var() / v.var(0).mean() + 1 - 1 / len(v)).sqrt() for v in parts]).max()


@pytest.mark.parametrize(
    "wrong", [{"split": False, "folded": True}, {"split": True, "folded": False}], ids=["not split", "not folded"]
)
def test_r_hat(wrong: dict[str, bool]) -> None:
    contracts.sees_what_differs(partial(plain_r_hat, split=True, folded=True))
    Tooth(contracts.sees_what_differs, lambda: r_hat, lambda: partial(plain_r_hat, **wrong)).bites()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: torch.tensor(float(x.numel())),
        lambda x: 2 * effective_sample_size(x),
        lambda x: effective_sample_size(x.sort(0).values),
    ],
    ids=["every draw", "τ without its 2", "in another order"],
)
def test_effective_sample_size(wrong: Callable[[Tensor], Tensor]) -> None:
    Tooth(contracts.counts_draws, lambda: effective_sample_size, lambda: wrong).bites()
