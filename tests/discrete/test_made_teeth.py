"""The contracts of MADE bite: each passes what is right and rejects it with one thing wrong."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from contracts import densities, made, masses
from helpers import Tooth, normal, perturb, rng, seeded
from torch import Tensor

from core import StandardNormal
from core.nets.masked import MaskedMLP
from discrete import MADE, Flow, MaskedAutoregressive
from discrete.conditionals import GaussianConditional, MixtureConditional

Fault = Callable[[MADE], None]
ORDER = [1, 2, 0]
STATES = masses.states((3,), bins=2)
MASSES = torch.tensor([0.30, 0.02, 0.04, 0.10, 0.02, 0.12, 0.05, 0.35], dtype=torch.float64)


def build(fault: Fault = lambda model: None, features: int = 3, **keywords: Any) -> MADE:
    settings = {"hidden": (16,), "activation": "tanh", "log_scale_bound": 3.0, "generator": rng(2), **keywords}
    model = perturb(seeded(lambda: MADE(features, **settings)), rng(1))
    fault(model)
    return model


def at_or_before(model: MADE) -> None:
    """The slip of lecture slides: the outputs of a feature read the units of its own degree, that is the feature."""
    network = model.network
    degrees = network.value_degrees(0)
    for node, linear, out in zip(network.nodes, network.linears, degrees[1:], strict=True):
        if node.is_output:
            linear.mask[0] = out[:, None] >= degrees[node.source]


def strictly_inside(model: MADE) -> None:
    """> between hidden layers too, which cuts the features before the last."""
    network = model.network
    degrees = network.value_degrees(0)
    for node, linear, out in zip(network.nodes, network.linears, degrees[1:], strict=True):
        linear.mask[0] = out[:, None] > degrees[node.source]


def in_natural_order(model: MADE) -> None:
    """The masks of another order than was asked for."""
    state = seeded(lambda: MaskedMLP(3, 2, hidden=(16,))).get_extra_state()
    model.network.set_extra_state(state)


class ScaleForInverse(GaussianConditional):
    """-s for s in the log-density: the log-determinant of the draws."""

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        return super().log_prob(x, theta) - 2 * self.transformer.forward(x, theta)[1]


class MeanForShift(GaussianConditional):
    """t as the mean: z = (x - t) exp(s), a density for sure, but not that of the layer."""

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        s = self.transformer.forward(x, theta)[1]
        return super().log_prob((x - theta[..., 1]) - theta[..., 1] * torch.exp(-s), theta)


class RawLogits(MixtureConditional):
    """Logits for log-weights: their exponentials do not sum to one."""

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        return super().log_prob(x, theta) + theta.chunk(3, -1)[0].logsumexp(-1)


class WithoutScales(MixtureConditional):
    """No -log s_k inside the sum."""

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        mixture = self.transformer.mixture(theta)
        return torch.logsumexp(mixture.log_densities(mixture.standardize(x)) + mixture.log_s, 0)


class MeanOfLogs(MADE):
    """The mean of log-densities where the log of the mean density belongs: Jensen takes mass away."""

    def log_prob(self, x: Tensor, context: Tensor | None = None, **_: Any) -> Tensor:
        masks = [self.conditional_log_prob(x, context, mask=m) for m in range(self.network.masks)]
        return torch.stack(masks).mean(0).sum(-1)


class SumOfMasks(MADE):
    """log Σ_m p_m without the 1/M."""

    def log_prob(self, x: Tensor, context: Tensor | None = None, **_: Any) -> Tensor:
        masks = [self.conditional_log_prob(x, context, mask=m).sum(-1) for m in range(self.network.masks)]
        return torch.logsumexp(torch.stack(masks), 0)


class FirstMaskAlone(MADE):
    """Trained, and drawn, with the first mask alone."""

    def _masks(self) -> Sequence[Any]:
        return [0] if self.training else super()._masks()

    def sample(self, shape: Any = (), **keywords: Any) -> Tensor:
        masks, self.network.masks = self.network.masks, 1
        draws = super().sample(shape, **keywords)
        self.network.masks = masks
        return draws


class TurnsInEvaluation(MADE):
    """A turn is spent by a call in evaluation too."""

    def log_prob(self, x: Tensor, context: Tensor | None = None, **_: Any) -> Tensor:
        self.turn += not self.training
        return super().log_prob(x, context)


def recast(kind: type[MADE]) -> Fault:
    def fault(model: MADE) -> None:
        model.__class__ = kind

    return fault


def relaw(law: Any) -> Fault:
    def fault(model: MADE) -> None:
        model.likelihood = law

    return fault


X = normal(6, (3,), rng(3))
MASKS = {"order": "random", "hidden_degrees": "random", "masks": 4}


def structure(model: MADE, order: Sequence[int] = (0, 1, 2)) -> None:
    made.reads_in_order(model.network, X, order=list(order))


def total(model: MADE) -> None:
    masses.sums_to_one(model, bins=2)


def integral(model: MADE) -> None:
    densities.integrates_to_one(model, points=201, tolerance=1e-3)


def frequencies(model: MADE) -> None:
    masses.draws_follow_the_masses(model, bins=2, generator=rng(4))


def layer(model: MADE) -> None:
    bijection = MaskedAutoregressive(3, hidden=(16,), activation="tanh").double()
    bijection.conditioner.load_state_dict(model.network.state_dict())
    made.is_the_flow_onto_a_normal(model, Flow(bijection, StandardNormal(3)).double().eval(), X)


def ensemble(model: MADE) -> None:
    made.is_the_mean_of_its_masks(model, X)


def turns(model: MADE) -> None:
    made.takes_its_masks_in_turn(model, X)


def learning(model: MADE) -> None:
    made.every_order_learns(model, STATES, MASSES, steps=100, tolerance=0.05)


BITS = partial(build, conditional="bernoulli")
PLANE = partial(build, features=2)
MIXED = partial(PLANE, conditional="mixture", components=3)
NORMALS, MIXTURE = {"log_scale_bound": 3.0}, {"components": 3, "log_scale_bound": 3.0}

TEETH: dict[str, tuple[Callable[[MADE], None], Callable[..., MADE], Fault]] = {
    "outputs read their own feature": (structure, build, at_or_before),
    "outputs read their own feature, mass": (total, BITS, at_or_before),
    "outputs read their own feature, integral": (integral, PLANE, at_or_before),
    "units read lower degrees alone": (structure, partial(build, hidden=(16, 16)), strictly_inside),
    "order ignored": (partial(structure, order=ORDER), partial(build, order=torch.tensor(ORDER)), in_natural_order),
    "sign of the log-scale": (integral, PLANE, relaw(ScaleForInverse(**NORMALS))),
    "sign of the log-scale, layer": (layer, build, relaw(ScaleForInverse(**NORMALS))),
    "mean for the shift": (layer, build, relaw(MeanForShift(**NORMALS))),
    "weights not normalized": (integral, MIXED, relaw(RawLogits(**MIXTURE))),
    "scales left out": (integral, MIXED, relaw(WithoutScales(**MIXTURE))),
    "mean of logs": (ensemble, partial(build, **MASKS), recast(MeanOfLogs)),
    "mean of logs, mass": (total, partial(BITS, **MASKS), recast(MeanOfLogs)),
    "sum of masks": (ensemble, partial(build, **MASKS), recast(SumOfMasks)),
    "sum of masks, mass": (total, partial(BITS, **MASKS), recast(SumOfMasks)),
    "draws of the first mask": (frequencies, partial(BITS, **MASKS), recast(FirstMaskAlone)),
    "no turns": (turns, partial(build, **MASKS), recast(FirstMaskAlone)),
    "turns in evaluation": (turns, partial(build, **MASKS), recast(TurnsInEvaluation)),
    "one order trained": (
        learning,
        partial(BITS, order="random", masks=6, hidden=(32,), activation="relu"),
        recast(FirstMaskAlone),
    ),
}


@pytest.mark.parametrize("name", TEETH)
def test_made(name: str) -> None:
    contract, right, fault = TEETH[name]
    Tooth(contract, right, partial(right, fault)).bites()
