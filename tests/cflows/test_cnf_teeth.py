"""The contracts of continuous flows and their objectives bite: each passes what is right and rejects what is wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from contracts import continuous_flows as contracts
from helpers import Tooth
from torch import Tensor, nn

from cflows import FFJORD, ConditionalFlowMatching, FlowMatching, ODESolver, ode_log_prob, optimal_pairing
from cflows.objectives.cnf import PenalisedField
from core import StandardNormal
from core.divergence import value_and_vjp
from core.shapes import align, sum_event

SOLVER = {"method": "rk4", "steps": 40}


@dataclass(frozen=True, eq=False)
class WrongField(PenalisedField):
    """Velocity and rates with one fault, none for an empty one."""

    fault: str = ""

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.fault == "time flipped":
            t = 1 - t
        v, vjp = value_and_vjp(lambda y: self.velocity(y, t), x)
        products = vjp(self.directions)
        trace = self.weight * (products * self.directions).flatten(2).sum((0, 2))
        squares = products.square()
        if self.fault == "first column":  # of the Jacobian, taken for its diagonal
            squares = squares[:, :, :1]
        if self.fault == "diagonal":
            squares = (products * self.directions).square()
        frobenius = self.weight * squares.flatten(2).sum((0, 2))
        kinetic = sum_event(v.square())
        if self.fault == "divergence with the other sign":
            trace = -trace
        if self.fault == "half the kinetic energy":
            kinetic = 0.5 * kinetic
        if self.fault == "kinetic energy a dimension":
            kinetic = kinetic / x.shape[1]
        if self.fault == "speed for kinetic energy":
            kinetic = kinetic.sqrt()
        if self.fault == "norm for its square":
            frobenius = frobenius.sqrt()
        if self.fault == "sum over probes":
            frobenius = frobenius / self.weight
        if self.fault == "trace squared":
            frobenius = trace.square()
        return v, torch.stack([trace, self.kinetic * kinetic, self.jacobian * frobenius], 1)


INTEGRALS = [
    "time flipped",
    "divergence with the other sign",
    "half the kinetic energy",
    "kinetic energy a dimension",
    "speed for kinetic energy",
    "norm for its square",
    "first column",
    "diagonal",
    "trace squared",
]
ESTIMATES = ["divergence with the other sign", "first column", "diagonal", "trace squared", "sum over probes"]


@pytest.mark.parametrize("fault", INTEGRALS)
def test_integrals(fault: str) -> None:
    Tooth(contracts.penalised_integrals, lambda: WrongField, lambda: partial(WrongField, fault=fault)).bites()


@pytest.mark.parametrize("fault", ESTIMATES)
def test_estimates(fault: str) -> None:
    contract = contracts.penalised_estimates_are_unbiased
    Tooth(contract, lambda: WrongField, lambda: partial(WrongField, fault=fault)).bites()


def flow(velocity: contracts.Velocity) -> FFJORD:
    net = lambda x, u, context: velocity(x, (u + 1) / 2)  # noqa: E731
    return FFJORD(3, net=net, solver=ODESolver(**SOLVER)).double()


def log_prob(velocity: contracts.Velocity, x: Tensor) -> Tensor:
    return flow(velocity).log_prob(x)


def backwards(velocity: contracts.Velocity) -> contracts.Velocity:
    return lambda x, t: velocity(x, 1 - t)


def without_trace(velocity: contracts.Velocity, x: Tensor) -> Tensor:
    model = flow(velocity)
    return model.base.log_prob(model.encode(x))


def at_the_start(velocity: contracts.Velocity, x: Tensor) -> Tensor:
    """The base's density of x(0) in place of x(1)."""
    return log_prob(velocity, x) - without_trace(velocity, x) + flow(velocity).base.log_prob(x)


LIKELIHOODS: dict[str, Callable[[contracts.Velocity, Tensor], Tensor]] = {
    "time flipped": lambda velocity, x: log_prob(backwards(velocity), x),
    "velocity reversed": lambda velocity, x: log_prob(lambda y, t: -velocity(y, t), x),
    "no divergence": without_trace,
    "divergence with the other sign": lambda velocity, x: 2 * without_trace(velocity, x) - log_prob(velocity, x),
    "at the start": at_the_start,
}


@pytest.mark.parametrize("fault", LIKELIHOODS)
def test_likelihood(fault: str) -> None:
    contract = contracts.log_prob_is_that_of_the_affine_field
    Tooth(contract, lambda: log_prob, lambda: LIKELIHOODS[fault]).bites()


def encode(velocity: contracts.Velocity, x: Tensor) -> Tensor:
    return flow(velocity).encode(x)


def decode(velocity: contracts.Velocity, z: Tensor) -> Tensor:
    return flow(velocity).decode(z)


WAYS = {
    "swapped": (decode, encode),
    "encode with time flipped": (lambda velocity, x: encode(backwards(velocity), x), decode),
    "decode with time flipped": (encode, lambda velocity, z: decode(backwards(velocity), z)),
    "decode by the velocity reversed": (encode, lambda velocity, z: encode(lambda x, t: -velocity(x, t), z)),
}


@pytest.mark.parametrize("fault", WAYS)
def test_both_ways(fault: str) -> None:
    def contract(ways: tuple) -> None:
        contracts.encode_follows_the_affine_field(*ways)

    Tooth(contract, lambda: (encode, decode), lambda: WAYS[fault]).bites()


class Matching(nn.Module):
    """Flow matching with one fault, none for an empty one."""

    def __init__(self, velocity: contracts.Velocity, sigma: float, *, fault: str = "", optimal: bool = False) -> None:
        super().__init__()
        self.velocity, self.sigma, self.fault, self.optimal = velocity, sigma, fault, optimal

    def forward(self, x_0: Tensor, *, generator: torch.Generator) -> Tensor:
        t = torch.rand(len(x_0), generator=generator, dtype=x_0.dtype)
        x_1 = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)
        if self.optimal:
            x_1 = self.paired(x_0, x_1)
        slope = 1.0 if self.fault == "noise grows by 1" else 1 - self.sigma
        a, b = align(1 - t, x_0), align(self.sigma + (1 - self.sigma) * t, x_0)
        if self.fault == "time flipped":
            a, b = 1 - a, 1 - b
        if self.fault == "noise at the data end left out":
            b = align(t, x_0)
        x_t, target = a * x_0 + b * x_1, slope * x_1 - x_0
        if self.fault == "target with the other sign":
            target = -target
        if self.fault == "target is the noise":
            target = x_1
        if self.fault == "noise doubled":
            x_t = x_t + b * x_1
        off = (self.velocity(x_t, t) - target).square().flatten(1)
        return (off.sum(1) if self.fault == "sum over dimensions" else off.mean(1)).mean()

    def paired(self, x_0: Tensor, x_1: Tensor) -> Tensor:
        order = optimal_pairing(x_0, x_1)
        if self.fault == "inverse permutation":
            return x_1[order.argsort()]
        if self.fault == "dearest pairing":
            return x_1[optimal_pairing(-x_0, x_1)]
        if self.fault == "not paired":
            return x_1
        if self.fault == "shifted by one":
            return x_1[order].roll(1, 0)
        if self.fault == "nearest, with repetition":
            return x_1[torch.cdist(x_0, x_1).argmin(1)]
        return x_1[order]


MINIMISERS = [
    "time flipped",
    "target with the other sign",
    "target is the noise",
    "noise doubled",
    "noise grows by 1",
    "noise at the data end left out",
]


@pytest.mark.parametrize("fault", MINIMISERS)
def test_minimiser(fault: str) -> None:
    contract = partial(contracts.minimiser_is_the_velocity, data=contracts.GAUSSIAN, sigma=0.2)
    Tooth(contract, lambda: ConditionalMatching, lambda: partial(Matching, fault=fault)).bites()


@pytest.mark.parametrize("fault", [*MINIMISERS, "sum over dimensions"])
def test_value(fault: str) -> None:
    contract = partial(contracts.loss_at_the_exact_velocity, sigma=0.2)
    Tooth(contract, lambda: Matching, lambda: partial(Matching, fault=fault)).bites()


def ConditionalMatching(velocity: contracts.Velocity, sigma: float) -> nn.Module:
    return ConditionalFlowMatching(velocity, sigma_min=sigma)


@pytest.mark.parametrize("fault", ["inverse permutation", "dearest pairing", "not paired", "shifted by one"])
def test_pairing(fault: str) -> None:
    right, wrong = partial(Matching, optimal=True), partial(Matching, optimal=True, fault=fault)
    Tooth(contracts.pairing_is_the_cheapest, lambda: right, lambda: wrong).bites()


def test_a_pairing_that_repeats_noise() -> None:
    right, wrong = partial(Matching, optimal=True), partial(Matching, optimal=True, fault="nearest, with repetition")
    Tooth(contracts.pairing_keeps_the_noise, lambda: right, lambda: wrong).bites()


def reflow_pairs(fault: str) -> tuple[Tensor, Tensor]:
    v = contracts.LINE.velocity()
    model = FFJORD(1, net=lambda x, u, context: v(x, (u + 1) / 2), solver=ODESolver(method="rk4", steps=60)).double()
    x_1 = torch.randn(10, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_0 = model.decode(x_1)
    return {"": (x_0, x_1), "swapped": (x_1, x_0), "encoded": (model.encode(x_1), x_1), "reversed": (x_0, -x_1)}[fault]


@pytest.mark.parametrize("fault", ["swapped", "encoded", "reversed"])
def test_reflow_pairs(fault: str) -> None:
    contract = partial(contracts.pairs_are_those_of_the_flow, data=contracts.LINE)
    Tooth(contract, lambda: reflow_pairs(""), lambda: reflow_pairs(fault)).bites()


def velocity_of(F: contracts.Velocity, data_std: float, sigma: float, *, fault: str) -> contracts.Velocity:
    """The preconditioned velocity with one fault."""

    def v(x: Tensor, t: Tensor) -> Tensor:
        a, b, c = 1 - t, sigma + (1 - sigma) * t, data_std**2
        if fault == "deviation for variance":
            c = data_std
        V = a**2 * c + b**2
        slope = 1.0 if fault == "noise grows by 1" else 1 - sigma
        wrong = {"output of the target": torch.ones_like(V), "output without V": torch.full_like(V, data_std)}
        output = wrong.get(fault, (c / V).sqrt())
        inside = x if fault == "input as it is" else x / V.sqrt()
        drift = (slope * b - a * c) / V * x
        return (-drift if fault == "drift with the other sign" else drift) + output * F(inside, 2 * t - 1, None)

    return v


@pytest.mark.parametrize(
    "fault",
    [
        "deviation for variance",
        "noise grows by 1",
        "output of the target",
        "output without V",
        "input as it is",
        "drift with the other sign",
    ],
)
def test_preconditioning(fault: str) -> None:
    def right(F: contracts.Velocity, data_std: float, sigma: float) -> contracts.Velocity:
        return FlowMatching(1, net=F, data_std=data_std, sigma_min=sigma).double()

    Tooth(contracts.gaussian_data_are_no_work, lambda: right, lambda: partial(velocity_of, fault=fault)).bites()


def test_closed_form_of_a_mixture() -> None:
    """The velocity that all this compares with is itself held against the density that it carries."""
    contract = partial(contracts.velocity_carries_the_data, data=contracts.MIXTURE, sigma=0.1)
    right, other = contracts.MIXTURE.velocity(0.1), contracts.MIXTURE.velocity(0.0)
    Tooth(contract, lambda: right, lambda: other).bites()
    for wrong in (lambda x, t: -right(x, t), backwards(right)):
        with pytest.raises(AssertionError):
            contract(wrong)


def test_ode_log_prob_is_the_same_solve() -> None:
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    direct = ode_log_prob(contracts.affine_field, StandardNormal(3).double(), x, **SOLVER).log_prob
    torch.testing.assert_close(log_prob(contracts.affine_field, x), direct)
