"""Seeded draws, seeded construction, parameters moved away from where they start, and what a tooth is."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)
Draw = Callable[[int, tuple[int, ...], torch.Generator], Tensor]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(rows: int, event_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(rows, *event_shape, generator=generator, dtype=torch.float64)


def unit(rows: int, event_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(rows, *event_shape, generator=generator, dtype=torch.float64)


def seed_everywhere(seed: int) -> None:
    """Seeds the global generators; `torch.manual_seed` would write down the whole stack for each kind of device."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


def seeded(build: Callable[[], T], seed: int = 0) -> T:
    """Builds under a fixed seed of the global generator, which initialises networks, and restores it."""
    with torch.random.fork_rng():
        seed_everywhere(seed)
        return build()


def perturb(module: M, generator: torch.Generator, *, std: float = 0.3) -> M:
    """Adds N(0, std²) to every parameter, in float64 and evaluation mode: nothing is tested at its initial values."""
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


class TanhConditioner(nn.Module):
    """A conditioner of one's own, smooth, called with (x_b, context)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        return torch.tanh(self.linear(x))


class Tooth(NamedTuple):
    """A contract, something right that it must pass, and something wrong that it must reject."""

    contract: Callable[[Any], None]
    right: Callable[[], Any]
    wrong: Callable[[], Any]

    def bites(self) -> None:
        self.contract(self.right())
        with pytest.raises(AssertionError):
            self.contract(self.wrong())


def first_rows(data: Any, *, train: int, others: int) -> Any:
    """The data set of the first rows of each split, with their labels."""
    fields = {"train": data.train[:train], "validation": data.validation[:others], "test": data.test[:others]}
    if getattr(data, "labels", None) is not None:
        fields["labels"] = first_rows(data.labels, train=train, others=others)
    return dataclasses.replace(data, **fields)


def multiply_adds(call: Callable[[], Any]) -> int:
    """Twice the multiply-adds of matrix products and convolutions that a call makes, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()
