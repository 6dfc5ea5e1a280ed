"""The preconditioning of scores in closed form, and what its contracts reject."""

from collections.abc import Callable

import pytest
import torch
from contracts import preconditioning
from helpers import Tooth, normal, rng
from torch import Tensor

from cflows.preconditioning import preconditioned_score

NOISE = normal(6, (3,), rng(0))


def precondition(net: Callable, x: Tensor, scale: Tensor, std: Tensor, data_std: float) -> Tensor:
    return preconditioned_score(net, x, scale, std, data_std=data_std)


CONTRACTS = {
    "zero": lambda p: preconditioning.zero_net_is_the_gaussian_score(p, NOISE, v=0.3),
    "input": lambda p: preconditioning.net_sees_unit_variance(p, NOISE, v=0.3),
    "target": lambda p: preconditioning.loss_is_that_of_the_net(p, NOISE, v=0.3),
}


@pytest.mark.parametrize("name", CONTRACTS)
def test_contract(name: str) -> None:
    CONTRACTS[name](precondition)


def test_levels_of_rows_are_their_own() -> None:
    scale, std = torch.linspace(0.1, 1, 6).double(), torch.linspace(2, 0.1, 6).double()
    together = preconditioned_score(torch.tanh, NOISE, scale, std, data_std=0.5)
    alone = [preconditioned_score(torch.tanh, NOISE[i : i + 1], scale[i], std[i], data_std=0.5) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone))


def formula(
    *, variance: Callable = lambda a, s, d: (a * d) ** 2 + s**2, weight: Callable = lambda a, s, d, r: a * d / (s * r)
) -> preconditioning.Precondition:
    def wrong(net: Callable, x: Tensor, scale: Tensor, std: Tensor, data_std: float) -> Tensor:
        total = variance(scale, std, data_std)
        return -x / total + weight(scale, std, data_std, total.sqrt()) * net(x / total.sqrt())

    return wrong


TEETH = {
    "data variance forgotten": ("zero", {"variance": lambda a, s, d: s**2}),
    "standard deviation for variance": ("zero", {"variance": lambda a, s, d: a**2 * d + s**2}),
    "input not rescaled": ("input", {"variance": lambda a, s, d: 1 + 0 * s}),
    "output not divided by σ": ("target", {"weight": lambda a, s, d, r: a * d / r}),
    "output without √v": ("target", {"weight": lambda a, s, d, r: a / (s * r)}),
    "output without α": ("target", {"weight": lambda a, s, d, r: d / (s * r)}),
    "V for its root": ("target", {"weight": lambda a, s, d, r: a * d / (s * r**2)}),
}


@pytest.mark.parametrize("name", TEETH)
def test_teeth(name: str) -> None:
    contract, change = TEETH[name]
    Tooth(CONTRACTS[contract], lambda: formula(), lambda: formula(**change)).bites()
