"""KL(N(α x, σ² I) ‖ prior): right by closed form and by draws, and never below the divergence that it bounds."""

import math
from collections.abc import Callable

import pytest
import torch
from cases import SDES
from helpers import Tooth, normal, rng
from torch import Tensor

from cflows import SDE, VESDE, VPSDE, prior_kl, prior_mismatch

Mismatch = Callable[[SDE, Tensor], Tensor]
ONE = torch.ones((), dtype=torch.float64)


class Short(VPSDE):
    """A prior that fits badly enough for draws to tell: the process ends at t = 0.3."""

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return super().marginal(0.3 * t)


def is_the_mean_log_ratio(mismatch: Mismatch) -> None:
    """Within 5 standard errors of the mean of log N(y; α x, σ²) - log prior(y) over draws y, and more than 0.3 nats."""
    sde, x = Short(), torch.tensor([[0.3, -1.2, 2.0]], dtype=torch.float64)
    scale, std = sde.marginal(ONE)
    y = scale * x + std * normal(200_000, (3,), rng(0))
    ratio = torch.distributions.Normal(scale * x, std).log_prob(y).sum(1) - sde.prior(3).double().log_prob(y)
    found, error = mismatch(sde, x).item(), ratio.std().item() / math.sqrt(len(y))
    assert abs(found - ratio.mean().item()) < 5 * error, f"{found} for {ratio.mean():.4f} ± {error:.4f}"
    assert found > 60 * error


def bounds_the_divergence(mismatch: Mismatch) -> None:
    """Of normal rows, under every process: above the KL of their marginal, by ½ D log(V/σ²) with V = α² v + σ²."""
    for name, (sde, _) in SDES.items():
        x = normal(500, (4,), rng(1))
        x = 0.4 + 1.7 * (x - x.mean(0)) / x.std(0, correction=0)  # of exactly these moments in every column
        scale, std = sde.marginal(ONE)
        gap = 0.5 * 4 * torch.log1p((scale * 1.7 / std).square()).item()
        below = 4 * prior_kl(sde, mean=0.4, variance=1.7**2)
        found = mismatch(sde, x).mean().item()
        assert found > below, f"{name}: {found} is below {below}"
        assert abs(found - below - gap) < 1e-9 + 1e-6 * gap, f"{name}: {found - below} for {gap}"


CONTRACTS = [is_the_mean_log_ratio, bounds_the_divergence]


@pytest.mark.parametrize("contract", CONTRACTS)
def test_contract(contract: Callable[[Mismatch], None]) -> None:
    contract(prior_mismatch)


WRONG: dict[str, Mismatch] = {
    "without ½": lambda sde, x: 2 * prior_mismatch(sde, x),
    "a dimension": lambda sde, x: prior_mismatch(sde, x) / x.shape[1],
    "the other way round": lambda sde, x: reversed_kl(sde, x),
    "scale for its square": lambda sde, x: prior_mismatch(sde, x / sde.marginal(ONE)[0].sqrt()),
    "of the rows' moments": lambda sde, x: torch.full((len(x),), 4 * prior_kl(sde, mean=0.4, variance=1.7**2)),
}


def reversed_kl(sde: SDE, x: Tensor) -> Tensor:
    scale, std = sde.marginal(ONE)
    prior = torch.distributions.Normal(0 * ONE, 1 * ONE)
    return torch.distributions.kl_divergence(prior, torch.distributions.Normal(scale * x, std)).sum(1)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_mismatch_is_noticed(name: str) -> None:
    def both(mismatch: Mismatch) -> None:
        for contract in CONTRACTS:
            contract(mismatch)

    Tooth(both, lambda: prior_mismatch, lambda: WRONG[name]).bites()


def test_images_and_float32_keep_their_digits() -> None:
    """At x = 0 under VP: ½ D (r - 1 - log r) with r - 1 = -α², 4.66e-10 a dimension."""
    found = prior_mismatch(VPSDE(), torch.zeros(2, 1, 4, 4))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([16 * 0.25 * 0.006571586495**4] * 2, rel=1e-3)
    assert prior_mismatch(VESDE(), torch.full((1, 2), 3.0)).item() == pytest.approx(9 / 2500, rel=1e-6)
    assert prior_mismatch(VPSDE(), torch.zeros(0, 3)).shape == (0,)
