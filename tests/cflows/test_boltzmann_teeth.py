"""The contracts of the Boltzmann machine bite: each passes what is right and rejects what is wrong in one place."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cases import SPINS
from contracts import boltzmann
from helpers import Tooth, perturb, rng
from torch import Tensor, nn
from torch.nn import functional as F

from cflows import BoltzmannMachine, ContrastiveDivergence, PseudoLikelihood, RatioMatching

W, B = boltzmann.couplings(4), torch.tensor([0.3, 0.0, -0.5, 0.2], dtype=torch.float64)
DATA = SPINS["boltzmann-5-bias"].data(9, (4,), rng(2))


class Half(BoltzmannMachine):
    """The slip of the slides: ½ above, none below."""

    def log_normalizer(self) -> Tensor:
        y = boltzmann.states(self.event_shape).flatten(1)
        return torch.logsumexp((y * (y @ self.W + self.b)).sum(1), 0)


class NoHalf(Half):
    """½ neither above nor below: another law, whose masses do sum to 1."""

    def log_density(self, y: Tensor) -> Tensor:
        return (y.flatten(1) * (y.flatten(1) @ self.W + self.b)).sum(1)


class Repelled(BoltzmannMachine):
    """The sign of an energy."""

    @property
    def W(self) -> Tensor:
        upper = torch.zeros(self.n, self.n, dtype=self.b.dtype).index_put(tuple(self.pairs), -self.couplings)
        return upper + upper.T


class OneSided(BoltzmannMachine):
    """The upper triangle alone, for which ½ is one too many."""

    @property
    def W(self) -> Tensor:
        return torch.zeros(self.n, self.n, dtype=self.b.dtype).index_put(tuple(self.pairs), self.couplings)


class SelfCoupled(BoltzmannMachine):
    """A diagonal: no mass changes, since yᵢ² = 1, but every conditional does."""

    @property
    def W(self) -> Tensor:
        upper = torch.zeros(self.n, self.n, dtype=self.b.dtype).index_put(tuple(self.pairs), self.couplings)
        return upper + upper.T + 0.3 * torch.eye(self.n, dtype=self.b.dtype)


class Frozen(BoltzmannMachine):
    """log Z outside the graph: no negative phase."""

    def log_normalizer(self) -> Tensor:
        return super().log_normalizer().detach()


class Positive(BoltzmannMachine):
    """Both phases with the same sign."""

    def log_normalizer(self) -> Tensor:
        value = super().log_normalizer()
        return 2 * value.detach() - value


class Unbiased(BoltzmannMachine):
    """A bias that only the log-density knows."""

    def conditional_logits(self, y: Tensor) -> Tensor:
        return super().conditional_logits(y) - 2 * self.b.reshape(self.event_shape)


class HalfLogits(BoltzmannMachine):
    """No factor 2."""

    def conditional_logits(self, y: Tensor) -> Tensor:
        return super().conditional_logits(y) / 2


class Anything(BoltzmannMachine):
    """Numbers that are no spins have a mass as well."""

    def log_density(self, y: Tensor) -> Tensor:
        return super().log_density(torch.where(y > 0, 1.0, -1.0))


class Backwards(BoltzmannMachine):
    """The digits of a state read from the other end."""

    def sample(self, *arguments: Any, **keywords: Any) -> Tensor:
        return super().sample(*arguments, **keywords).flip(-1)


class Parallel(BoltzmannMachine):
    """Every spin drawn given the others as they were: another stationary law."""

    def gibbs(self, y: Tensor, *, sweeps: int, generator: Any = None) -> Tensor:
        for _ in range(sweeps):
            up = self.conditional_logits(y).detach().sigmoid()
            y = torch.where(torch.rand(y.shape, generator=generator, dtype=y.dtype) < up, 1.0, -1.0).double()
        return y


class Cold(BoltzmannMachine):
    """Chains with logits of half the size."""

    def gibbs(self, y: Tensor, **keywords: Any) -> Tensor:
        other = copy.deepcopy(self)
        with torch.no_grad():
            other.couplings.mul_(0.5)
            other.b.mul_(0.5)
        return super(Cold, other).gibbs(y, **keywords)


class LastToFirst(BoltzmannMachine):
    """The scan in the other direction: p stays, the sweep does not."""

    def gibbs(self, y: Tensor, **keywords: Any) -> Tensor:
        with torch.no_grad():
            other = BoltzmannMachine(self.n, bias=True, W=self.W.flip(0, 1)).double()
            other.b.copy_(self.b.flip(0))
        return other.gibbs(y.flip(-1), **keywords).flip(-1)


def machine(cls: type[BoltzmannMachine] = BoltzmannMachine) -> BoltzmannMachine:
    model = cls(4, bias=True, W=W).double()
    with torch.no_grad():
        model.b.copy_(B)
    return model


gradient = partial(boltzmann.gradient_is_the_difference_of_moments, data=DATA)
outside = partial(boltzmann.values_outside_have_no_mass, y=DATA)

MODELS: list[tuple[Callable[[Any], None], type[BoltzmannMachine]]] = [
    (boltzmann.equals_the_law, Half),
    (boltzmann.equals_the_law, NoHalf),
    (boltzmann.equals_the_law, Repelled),
    (boltzmann.equals_the_law, OneSided),
    (gradient, Half),
    (gradient, Frozen),
    (gradient, Positive),
    (gradient, OneSided),
    (boltzmann.conditionals_are_those_of_the_law, SelfCoupled),
    (boltzmann.conditionals_are_those_of_the_law, HalfLogits),
    (boltzmann.conditionals_are_those_of_the_law, Unbiased),
    (boltzmann.sweep_keeps_the_law, SelfCoupled),
    (boltzmann.sweep_keeps_the_law, HalfLogits),
    (boltzmann.chains_follow_the_sweep, Parallel),
    (boltzmann.chains_follow_the_sweep, Cold),
    (boltzmann.chains_follow_the_sweep, LastToFirst),
    (boltzmann.draws_follow_the_law, Backwards),
    (outside, Anything),
]


@pytest.mark.parametrize(("contract", "wrong"), MODELS)
def test_model(contract: Callable[[Any], None], wrong: type[BoltzmannMachine]) -> None:
    Tooth(contract, machine, partial(machine, wrong)).bites()


@pytest.mark.parametrize("wrong", [Half, NoHalf])
def test_two_spins(wrong: type[BoltzmannMachine]) -> None:
    Tooth(boltzmann.normalizer_of_two_spins, lambda: BoltzmannMachine, lambda: wrong).bites()


class Conditional(nn.Module):
    """A function of yᵢ times its logit, or of the logit alone."""

    def __init__(self, model: BoltzmannMachine, loss: Callable[[Tensor], Tensor], *, signed: bool = True) -> None:
        super().__init__()
        self.model, self.loss, self.signed = model, loss, signed

    def forward(self, y: Tensor) -> Tensor:
        logits = self.model.conditional_logits(y)
        return self.loss(y * logits if self.signed else logits).sum(1).mean()


CONDITIONALS: dict[str, tuple[type[nn.Module], Callable[..., nn.Module]]] = {
    "ratios not squared": (RatioMatching, partial(Conditional, loss=lambda a: torch.sigmoid(-a))),
    "ratio the other way up": (RatioMatching, partial(Conditional, loss=lambda a: torch.sigmoid(a).square())),
    "ratios without the 2": (RatioMatching, partial(Conditional, loss=lambda a: torch.sigmoid(-a / 2).square())),
    "squared before the sigmoid": (RatioMatching, partial(Conditional, loss=lambda a: torch.sigmoid(-a.square()))),
    "without its logarithm": (PseudoLikelihood, partial(Conditional, loss=lambda a: -torch.sigmoid(a))),
    "without the 2": (PseudoLikelihood, partial(Conditional, loss=lambda a: F.softplus(-a / 2))),
    "of the turned spin": (PseudoLikelihood, partial(Conditional, loss=F.softplus)),
    "of +1 whatever the spin": (
        PseudoLikelihood,
        partial(Conditional, loss=lambda a: F.softplus(-a), signed=False),
    ),
}


@pytest.mark.parametrize("name", CONDITIONALS)
def test_conditional_objective(name: str) -> None:
    right, wrong = CONDITIONALS[name]
    Tooth(partial(boltzmann.minimum_is_at_the_truth, W=W, b=B), lambda: right, lambda: wrong).bites()
    Tooth(partial(boltzmann.recovers_the_couplings, W=W, b=B), lambda: right, lambda: wrong).bites()


class Phases(nn.Module):
    """Contrastive divergence with a sign, or with gradients of one phase alone."""

    def __init__(self, model: BoltzmannMachine, *, data: float = 1.0, negative: float = 1.0, sweeps: int = 2) -> None:
        super().__init__()
        self.model, self.weights, self.sweeps = model, (data, negative), sweeps

    def forward(self, y: Tensor, generator: Any = None) -> Tensor:
        negative = self.model.gibbs(y, sweeps=self.sweeps, generator=generator)
        terms = [
            weight * self.model.log_density(v).mean() for weight, v in zip(self.weights, (y, negative), strict=True)
        ]
        return terms[1] - terms[0]


PHASES: dict[str, dict[str, float]] = {
    "sign of the negative phase": {"negative": -1.0},
    "both signs": {"data": -1.0, "negative": -1.0},
    "no negative phase": {"negative": 0.0},
    "twice the negative phase": {"negative": 2.0},
}


@pytest.mark.parametrize("name", PHASES)
def test_phases(name: str) -> None:
    contract = partial(boltzmann.divergence_has_the_gradient_of_its_phases, model=machine(), data=DATA)
    right, wrong = partial(ContrastiveDivergence, sweeps=2), partial(Phases, **PHASES[name])
    contract(Phases)
    Tooth(contract, lambda: right, lambda: wrong).bites()


@pytest.mark.parametrize(
    "wrong", [{"sweeps": 1}, {"sweeps": 30, "negative": -1.0}, {"sweeps": 30, "data": -1.0, "negative": -1.0}]
)
def test_many_sweeps(wrong: dict[str, Any]) -> None:
    """One sweep from data far from the law is not enough of them."""
    data = SPINS["boltzmann-5-bias"].data(10_000, (4,), rng(3)).abs()
    contract = partial(boltzmann.many_sweeps_give_the_exact_gradient, model=machine(), data=data)
    Tooth(contract, lambda: partial(ContrastiveDivergence, sweeps=30), lambda: partial(Phases, **wrong)).bites()


class Persistent(nn.Module):
    """Persistent chains with one thing wrong."""

    def __init__(self, fault: str, model: BoltzmannMachine, *, sweeps: int, chains: int, **keywords: Any) -> None:
        super().__init__()
        coins = torch.randint(2, (chains, model.n), generator=keywords["generator"])
        self.fault, self.model, self.sweeps, self.chains = fault, model, sweeps, 2 * coins.double() - 1

    def forward(self, y: Tensor, generator: Any = None) -> None:
        start = y[:1].expand_as(self.chains) if self.fault == "restart at the data" else self.chains
        sweeps = 1 if self.fault == "one sweep for two" else self.sweeps
        negative = self.model.gibbs(start, sweeps=sweeps, generator=generator)
        if self.fault != "never move" and (self.training or self.fault == "move in evaluation"):
            self.chains = negative


@pytest.mark.parametrize("fault", ["restart at the data", "one sweep for two", "never move", "move in evaluation"])
def test_persistent(fault: str) -> None:
    contract = partial(boltzmann.persistent_chains_go_on, model=machine())
    contract(partial(Persistent, ""))
    Tooth(contract, lambda: ContrastiveDivergence, lambda: partial(Persistent, fault)).bites()


def test_law_of_the_contracts() -> None:
    """The definition that all is held against, on two spins: e^w or e^-w over 2 e^w + 2 e^-w."""
    w = torch.tensor([[0.0, 0.7], [0.7, 0.0]])
    same, other = (math.exp(s) / (2 * math.exp(0.7) + 2 * math.exp(-0.7)) for s in (0.7, -0.7))
    found = boltzmann.law(w, torch.zeros(2)).tolist()
    assert found == pytest.approx([same, other, other, same], rel=1e-6)
    assert torch.equal(boltzmann.numbers(boltzmann.states((2, 2))), torch.arange(16))
    assert perturb(BoltzmannMachine(3), rng(1)).W.diagonal().count_nonzero() == 0
