"""Trained scores are right where the data are, and wrong where they are not."""

from collections.abc import Callable

import pytest
import torch
from helpers import rng, seeded
from torch import nn

from cflows import FiniteDifferenceScoreMatching, FixedNoiseDenoising, ImplicitScoreMatching, SlicedScoreMatching
from core import GaussianMixture
from core.nets import MLP

MEANS = torch.tensor([[-5.0, -5.0], [5.0, 5.0]])
DATA = GaussianMixture(MEANS, torch.eye(2).expand(2, 2, 2), torch.tensor([0.2, 0.8]))


def relative_error(net: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        off = (net(x) - DATA.score(x)).square().sum()
    return (off / DATA.score(x).square().sum()).sqrt().item()


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        ImplicitScoreMatching,
        SlicedScoreMatching,
        FiniteDifferenceScoreMatching,
        lambda net: FixedNoiseDenoising(net, sigma=0.2),
    ],
    ids=["implicit", "sliced", "finite-difference", "denoising"],
)
def test_low_density_regions(objective: Callable[[nn.Module], nn.Module]) -> None:
    net = seeded(lambda: MLP(2, 2, hidden=(64, 64), activation="silu"))
    loss, optimizer, generator = objective(net), torch.optim.Adam(net.parameters()), rng(0)
    for step in range(1200):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 1200)
        optimizer.zero_grad()
        loss(DATA.sample((512,), generator=generator), generator=generator).backward()
        optimizer.step()
    assert relative_error(net, DATA.sample((5000,), generator=rng(1))) < 0.15
    # On the line between the modes, half way, no data ever are.
    between = torch.linspace(-8, 8, 200)[:, None] * torch.tensor([1.0, -1.0]) + torch.tensor([0.7, 0.7])
    assert relative_error(net, between) > 0.4
