"""The contracts of networks on images bite: each passes what is right and rejects what is wrong in one place."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from contracts import modules, networks
from helpers import Tooth, normal, perturb, rng, seeded
from torch import Tensor, nn

from core.nets import RefineNet, UNet
from core.nets.refinenet import InstanceNormPlus

X = 2 * normal(4, (3, 4, 5), rng(2)) + torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)[:, None, None]
INDEX = torch.tensor([2, 0, 1, 1])


class FaultyInstanceNorm(nn.Module):
    """InstanceNorm++ written once more, with one fault."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.gamma, self.alpha = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
        self.beta = nn.Parameter(torch.zeros(3, 3))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        level = (index + 1) % 3 if self.fault == "off by one level" else index
        gamma, beta, alpha = (p[level][:, :, None, None] for p in (self.gamma, self.beta, self.alpha))
        dims = (0, 2, 3) if self.fault == "statistics over the batch" else (2, 3)
        correction = int(self.fault == "unbiased")
        s = (x.var(dims, correction=correction, keepdim=True) + 1e-5).sqrt()
        mu = x.mean(dims, keepdim=True)
        v = (mu.var(1, correction=correction, keepdim=True) + 1e-5).sqrt()
        v = v.square() if self.fault == "variance of the means" else v
        m = 0.0 if self.fault == "means not centred" else mu.mean(1, keepdim=True)
        alpha = 0.0 if self.fault == "no alpha" else alpha
        return gamma * (x - mu) / s + beta + alpha * (mu - m) / v


class DetachedNorm(nn.Module):
    """InstanceNorm++ and a term through whose mean no gradient flows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = InstanceNormPlus(3, levels=3)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return self.norm(x, index) + x.mean((2, 3), keepdim=True).detach() * x.square()


class Told(nn.Module):
    """A network whose embedding or index is changed on its way in."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        return self.network(x, self.change(told))


def norm(fault: str = "") -> nn.Module:
    return perturb(FaultyInstanceNorm(fault), rng(1))


def unet(hidden: tuple[int, ...] = (8, 8), embedding_features: int = 2) -> UNet:
    net = UNet(3, 2, hidden=hidden, blocks=1, embedding_features=embedding_features)
    return perturb(net, rng(1))


def refinenet() -> RefineNet:
    return perturb(RefineNet(3, 2, hidden=4, levels=3), rng(1), std=0.1)


def batch_norms(network: nn.Module) -> nn.Module:
    """The same network, its norms over pixels made norms over pixels and rows."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, nn.BatchNorm2d(child.num_channels, track_running_stats=False).double())
    return network


def call(net: nn.Module, x: Tensor, told: Tensor | None) -> tuple[Tensor]:
    return (net(x, told),)


def first_row_only(embedding: Tensor) -> Tensor:
    return embedding[:1].expand_as(embedding)


IS_THE_FORMULA = partial(networks.instance_norm_is_the_formula, x=X, index=INDEX)
ROWS_STAY_APART = partial(modules.rows_are_independent, call, x=X, context=INDEX)
EMBEDDINGS = [normal(4, (2,), rng(i)) for i in (3, 4)]
EMBEDDING_MATTERS = partial(networks.every_pixel_sees_what_it_is_told, x=X, told=EMBEDDINGS[0], other=EMBEDDINGS[1])
LEVEL_MATTERS = partial(networks.every_pixel_sees_what_it_is_told, x=X, told=INDEX, other=(INDEX + 1) % 3)
REACHES_ACROSS = partial(networks.pixels_reach_across, x=normal(1, (3, 12, 12), rng(5)))
U_ROWS_STAY_APART = partial(modules.rows_are_independent, call, x=X, context=EMBEDDINGS[0])
SECOND_DERIVATIVES = partial(networks.second_derivatives_are_right, x=X, told=INDEX)


TEETH = {
    "InstanceNorm++ without the term in alpha": Tooth(IS_THE_FORMULA, norm, lambda: norm("no alpha")),
    "the level of the next row of parameters": Tooth(IS_THE_FORMULA, norm, lambda: norm("off by one level")),
    "means divided by their variance": Tooth(IS_THE_FORMULA, norm, lambda: norm("variance of the means")),
    "means that keep their mean": Tooth(IS_THE_FORMULA, norm, lambda: norm("means not centred")),
    "unbiased variances": Tooth(IS_THE_FORMULA, norm, lambda: norm("unbiased")),
    "statistics over the batch": Tooth(ROWS_STAY_APART, norm, lambda: norm("statistics over the batch")),
    "a UNet with BatchNorm": Tooth(U_ROWS_STAY_APART, unet, lambda: batch_norms(unet()).train()),
    "embedding ignored": Tooth(EMBEDDING_MATTERS, unet, lambda: Told(unet(), torch.zeros_like)),
    "one embedding for all rows": Tooth(EMBEDDING_MATTERS, unet, lambda: Told(unet(), first_row_only)),
    "level ignored": Tooth(LEVEL_MATTERS, refinenet, lambda: Told(refinenet(), torch.zeros_like)),
    "no coarser level": Tooth(
        REACHES_ACROSS, lambda: unet((8, 8, 8), embedding_features=0), lambda: unet((8,), embedding_features=0)
    ),
    "second derivatives cut off": Tooth(
        SECOND_DERIVATIVES,
        lambda: perturb(InstanceNormPlus(3, levels=3), rng(1)),
        lambda: perturb(DetachedNorm(), rng(1)),
    ),
}


@pytest.mark.parametrize("name", TEETH)
def test_teeth(name: str) -> None:
    seeded(TEETH[name].bites)
