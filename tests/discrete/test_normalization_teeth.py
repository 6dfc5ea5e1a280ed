"""The contracts of normalization bite: each passes what is right and rejects what is wrong in one place."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from contracts import bijections, normalizations
from helpers import Tooth, normal, perturb, rng, seeded
from torch import Tensor, nn

from discrete import AffineCoupling, BatchNorm, Bijection, Compose, set_batch_statistics

EVENT = (3, 2, 2)
BATCHES = [3.0 * (i + 1) * normal(5, EVENT, rng(i)) - 2.0 for i in range(3)]
X = BATCHES[0]


class FaultyBatchNorm(Bijection):
    """Batch normalization written once more, with one fault."""

    def __init__(
        self, event_shape: tuple[int, ...], fault: str = "", *, momentum: float = 0.3, eps: float = 0.1
    ) -> None:
        super().__init__(event_shape)
        self.fault, self.momentum, self.eps = fault, momentum, eps
        shape = (event_shape[0], *(1 for _ in event_shape[1:]))
        self.gamma, self.beta = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
        start = torch.zeros if fault == "running variance starts at zero" else torch.ones
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_var", start(shape))
        self.register_buffer("initialised", torch.tensor("starts at" in fault or fault == "first batch averaged in"))

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return self.running_mean, self.running_var
        dims = [d for d in range(x.ndim) if d != 1]
        m, v = x.mean(dims, keepdim=True)[0], x.var(dims, correction=0, keepdim=True)[0]
        unbiased = x.var(dims, keepdim=True)[0]
        share = self.momentum if self.initialised else 1.0
        share = 1 - share if self.fault == "momentum of the old" and self.initialised else share
        kept = unbiased if "unbiased" in self.fault else v
        with torch.no_grad():
            self.running_mean += share * (m - self.running_mean)
            self.running_var += share * (kept - self.running_var)
            self.initialised.fill_(True)
        if self.fault == "buffers in training":
            return self.running_mean, self.running_var
        return m, unbiased if self.fault == "unbiased" else v

    def _log_det(self, x: Tensor, v: Tensor) -> Tensor:
        eps = 0.0 if self.fault == "log-det without eps" else self.eps
        positions = 1 if self.fault == "log-det of one position" else x[0, 0].numel()
        half = 1.0 if self.fault == "log-det without the half" else 0.5
        gamma = 0.0 * self.gamma if self.fault == "log-det without gamma" else self.gamma
        return (positions * (gamma - half * torch.log(v + eps)).sum()).expand(len(x))

    def forward(self, x: Tensor, context: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor]:
        m, v = self._statistics(x)
        sign = -1 if self.fault == "log-det with the sign flipped" else 1
        z = self.gamma.exp() * (x - m) / torch.sqrt(v + self.eps) + self.beta
        return z, sign * self._log_det(x, v)

    def inverse(self, z: Tensor, context: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor]:
        sign = 1 if self.fault in ("log-det with the sign flipped", "inverse log-det of the forward") else -1
        x = (z - self.beta) * torch.sqrt(self.running_var + self.eps) / self.gamma.exp() + self.running_mean
        return x, sign * self._log_det(z, self.running_var)


def right() -> Bijection:
    return perturb(BatchNorm(EVENT, momentum=0.3, eps=0.1), rng(4))


def faulty(fault: str = "") -> Bijection:
    return perturb(FaultyBatchNorm(EVENT, fault), rng(4))


def _settled(norm: Bijection) -> Bijection:
    norm.train()(X)
    return norm.eval()


def forward_log_det(norm: Bijection) -> None:
    bijections.forward_log_det_is_that_of_the_jacobian(_settled(norm), X)


def inverse_log_det(norm: Bijection) -> None:
    bijections.inverse_log_det_is_that_of_the_jacobian(_settled(norm), X)


def training(norm: Bijection) -> None:
    normalizations.training_takes_the_batch(norm, X)


def training_log_det(norm: Bijection) -> None:
    normalizations.training_log_det_is_that_of_one_row(norm, X)


def following(norm: Bijection) -> None:
    normalizations.evaluation_follows_training(norm, BATCHES)


CONTRACTS = (forward_log_det, inverse_log_det, training, training_log_det, following)
FAULTS = [
    ("log-det without eps", CONTRACTS),
    ("log-det without the half", CONTRACTS),
    ("log-det without gamma", CONTRACTS),
    ("log-det of one position", CONTRACTS),
    ("log-det with the sign flipped", CONTRACTS),
    ("inverse log-det of the forward", (inverse_log_det,)),
    ("unbiased", (training, training_log_det, following)),
    ("unbiased buffers", (following,)),
    ("running variance starts at zero", (following,)),
    ("first batch averaged in", (following,)),
    ("momentum of the old", (following,)),
]


@pytest.mark.parametrize("contract", CONTRACTS)
def test_the_second_writing_is_right_without_a_fault(contract: Callable[[Bijection], None]) -> None:
    contract(faulty())


@pytest.mark.parametrize(
    ("fault", "contract"),
    [pytest.param(fault, c, id=f"{fault}: {c.__name__}") for fault, contracts in FAULTS for c in contracts],
)
def test_batch_norm(fault: str, contract: Callable[[Bijection], None]) -> None:
    Tooth(contract, right, partial(faulty, fault)).bites()


def test_buffers_of_many_batches_in_training() -> None:
    """With a history: the first batch alone cannot tell buffers from its own statistics."""

    def later(norm: Bijection) -> None:
        norm.train()(BATCHES[2])
        training(norm)

    Tooth(later, right, partial(faulty, "buffers in training")).bites()


def stack() -> Compose:
    def build() -> Compose:
        return Compose(BatchNorm(4), AffineCoupling(4, hidden=(8,), activation="silu"), BatchNorm(4))

    return perturb(seeded(build), rng(4))


def averaged(module: nn.Module, batches: Sequence[Tensor], *, combine: str) -> None:
    """Statistics of a whole training set in the ways that are nearly right."""
    layers = [layer for layer in module.eval().modules() if isinstance(layer, BatchNorm)]
    seen: dict[nn.Module, list[Tensor]] = {}

    def see(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.setdefault(layer, []).append(inputs[0])

    for group in [layers] if combine == "all layers in one pass" else [[layer] for layer in layers]:
        hooks = [layer.register_forward_pre_hook(see) for layer in group]
        for x in batches:
            module(x)
        for layer, hook in zip(group, hooks, strict=True):
            hook.remove()
            _set(layer, seen[layer], combine)


def _set(layer: BatchNorm, seen: list[Tensor], combine: str) -> None:
    rows = torch.cat(seen)
    m, v = rows.mean(0), rows.var(0, correction=0)
    if combine == "mean of the variances":
        v = sum(len(x) * x.var(0, correction=0) for x in seen) / len(rows)
    if combine == "batches of unequal size alike":
        m = torch.stack([x.mean(0) for x in seen]).mean(0)
        v = torch.stack([x.square().mean(0) for x in seen]).mean(0) - m.square()
    if combine == "unbiased":
        v = rows.var(0)
    if combine == "last batch":
        m, v = seen[-1].mean(0), seen[-1].var(0, correction=0)
    layer.running_mean.copy_(m.detach())
    layer.running_var.copy_(v.detach())


def statistics(setter: normalizations.Setter) -> None:
    normalizations.statistics_are_those_of_all_rows(setter, stack, 3.0 * normal(45, (4,), rng(7)) - 2.0)


def test_statistics_set_in_another_way_are_right_too() -> None:
    statistics(partial(averaged, combine="all rows at once"))


@pytest.mark.parametrize(
    "combine",
    ["mean of the variances", "batches of unequal size alike", "unbiased", "last batch", "all layers in one pass"],
)
def test_set_batch_statistics(combine: str) -> None:
    Tooth(statistics, lambda: set_batch_statistics, lambda: partial(averaged, combine=combine)).bites()
