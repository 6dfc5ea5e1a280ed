"""The contracts of masses bite: each passes what is right and rejects it with one thing wrong."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from contracts import masses
from helpers import Tooth, normal, perturb, rng, seeded
from torch import Tensor
from torch.nn import functional as F

from core.nets import masked_conv
from core.nets.causal_conv import RingBuffers
from core.nets.masked_conv import Raster
from discrete import PixelCNN, WaveNet
from discrete.likelihoods import Categorical, DiscretizedLogisticMixture
from discrete.mass import MassModel

Fault = Callable[[Any], None]


def image(fault: Fault = lambda model: None, shape: tuple[int, ...] = (2, 2, 2), **keywords: Any) -> PixelCNN:
    settings: dict[str, Any] = {"bins": 3, "layers": 2, "kernel": 3, "hidden": (12, 12), "components": 2, **keywords}
    model = perturb(seeded(lambda: PixelCNN(shape, **settings)), rng(1))
    fault(model)
    return model


def sequence(fault: Fault = lambda model: None, **keywords: Any) -> WaveNet:
    settings: dict[str, Any] = {"bins": 3, "layers": 2, "hidden": (6, 8), "cycles": 2, "components": 2, **keywords}
    model = perturb(seeded(lambda: WaveNet(6, **settings)), rng(1))
    fault(model)
    return model


def sees(model: MassModel) -> None:
    x = torch.randint(3, (32, *model.event_shape), generator=rng(2)).double()
    masses.sees_the_values_before_alone(model, x)


def total(model: MassModel) -> None:
    masses.sums_to_one(model, bins=3)


def naive(model: MassModel) -> None:
    masses.draws_equal_full_passes(model, generator=rng(3))


def frequencies(model: MassModel) -> None:
    masses.draws_follow_the_masses(model, bins=3, generator=rng(4))


def outside(model: MassModel) -> None:
    x = torch.randint(3, (4, *model.event_shape), generator=rng(5)).double()
    masses.values_outside_have_no_mass(model, x, bins=3)


def mask_b_first(model: PixelCNN) -> None:
    """A channel sees itself."""
    conv = model.network.layers[0].ordered
    order = torch.arange(-1, 2)
    conv.mask[:, :, 0, -1] = (order <= masked_conv._groups(12, 2).repeat(2)[:, None]).double()


def mask_a_later(model: PixelCNN) -> None:
    """The second layer forgets the pixel's own channel: one channel back is lost with two layers of it."""
    conv = model.network.layers[1].ordered
    order = masked_conv._groups(12, 2)
    conv.mask[:, :, 0, -1] = (order < order.repeat(2)[:, None]).double()
    model.network.layers[1].residual = False


def unmasked_head(model: PixelCNN) -> None:
    model.network.head[1].mask.fill_(1.0)


def residual_first(model: PixelCNN) -> None:
    model.network.layers[0].residual = True


def upper_right_cut(model: PixelCNN) -> None:
    """The blind spot of one stack: the vertical kernels see nothing to the right of their middle."""
    with torch.no_grad():
        for layer in model.network.layers:
            layer.conv.weight[..., 2:] = 0


def stacks_apart(model: PixelCNN) -> None:
    """The horizontal stack never reads the vertical one."""
    with torch.no_grad():
        for layer in model.network.layers:
            layer.link.weight.zero_()


def shifted_dilation(model: WaveNet) -> None:
    """3 for 2: one of the steps back falls between the taps."""
    model.network.dilations = (1, 3, 4)


def undelayed(model: WaveNet) -> None:
    """The sequence as it is, not one step late."""
    model._theta = lambda u, context: model.network(torch.stack([u, torch.ones_like(u)], -1), context)


def mass_of_the_step_before(model: WaveNet) -> None:
    """θ of a step paired with the value of the next."""
    theta = type(model)._theta
    model._theta = lambda u, context: theta(model, u, context).roll(-1, 1)


MODELS: dict[str, tuple[Fault, Callable[..., Any], Fault]] = {
    "mask B first": (sees, image, mask_b_first),
    "mask B first, by its sum": (total, partial(image, shape=(2, 2, 1)), mask_b_first),
    "mask A later": (sees, partial(image, shape=(2, 1, 1)), mask_a_later),
    "head without mask": (sees, image, unmasked_head),
    "residual around mask A": (sees, partial(image, hidden=(3, 12)), residual_first),
    "blind spot": (sees, image, upper_right_cut),
    "stacks apart": (sees, image, stacks_apart),
    "dilation shifted": (sees, partial(sequence, layers=3, cycles=1), shifted_dilation),
    "sequence not late": (sees, sequence, undelayed),
    "sequence not late, by its sum": (total, sequence, undelayed),
    "θ of the next step": (sees, sequence, mass_of_the_step_before),
}


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str) -> None:
    contract, build, fault = MODELS[name]
    Tooth(contract, build, partial(build, fault)).bites()


def longer_ring(self: RingBuffers, dilations: tuple[int, ...], zeros: Tensor, context: Tensor | None) -> None:
    self.context = context
    self.rings = [deque([zeros] * (d + 1), maxlen=d + 1) for d in dilations]


def newest(self: RingBuffers, i: int, h: Tensor) -> Tensor:
    self.rings[i].append(h)
    return self.rings[i][0]


def forgetful(self: Raster, pixel: Tensor) -> None:
    """The last channel of a pixel never enters what its neighbours read."""
    for pixels, h in zip(self.pixels, self.inputs, strict=True):
        pixels.append(h)
    self.row.append(self.inputs[0])


def next_column(self: Raster, pixel: Tensor) -> Tensor:
    h, self.inputs = masked_conv._with_ones(pixel[:, :, None, None]), []
    for layer, a, pixels in zip(self.layers, self.above, self.pixels, strict=True):
        self.inputs.append(h)
        h = layer.horizontal(torch.cat([*pixels, h], 3), a.roll(-1, 3)[..., len(self.row), None])
    return self.network.finish(h)[:, :, 0, 0]


START_ROW = Raster.start_row


def rows_never_kept(self: Raster) -> None:
    kept = [deque(rows, maxlen=rows.maxlen) for rows in self.rows]
    START_ROW(self)
    self.rows = kept


CACHES: dict[str, tuple[Callable[..., MassModel], type, str, Callable[..., Any]]] = {
    "ring one too long": (sequence, RingBuffers, "__init__", longer_ring),
    "ring written before it is read": (sequence, RingBuffers, "exchange", newest),
    "last channel forgotten": (image, Raster, "push", forgetful),
    "column off by one": (image, Raster, "output", next_column),
    "rows above not kept": (partial(image, shape=(1, 4, 2)), Raster, "start_row", rows_never_kept),
}


@pytest.mark.parametrize("name", CACHES)
def test_cache(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, owner, method, wrong = CACHES[name]
    model = build()
    naive(model)
    monkeypatch.setattr(owner, method, wrong)
    with pytest.raises(AssertionError):
        naive(model)


class Law(DiscretizedLogisticMixture):
    """Three levels more than two, two components, and a fault."""

    def __init__(self, fault: str = "") -> None:
        super().__init__(bins=5, components=2)
        self.fault = fault

    def _log_mass(self, k: Tensor, theta: Tensor) -> Tensor:
        logits, m, t = self._unpack(theta)
        k = k[..., None]
        ends = (k == 0) | (k == self.bins - 1)
        below, above = F.logsigmoid((k + 0.5 - m) * t), F.logsigmoid((m - (k - 0.5)) * t)
        between = torch.log(-torch.expm1(-t)).expand_as(below)
        if self.fault != "edges without tails":
            below = torch.where(k == self.bins - 1, 0.0, below)
            above = torch.where(k == 0, 0.0, above)
            between = torch.where(ends, 0.0, between)
        if self.fault == "a difference forgotten":
            between = torch.zeros_like(between)
        weights = logits if self.fault == "weights not normalized" else logits.log_softmax(-1)
        return torch.logsumexp(weights + below + above + between, -1)

    def _unpack(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, m, t = super()._unpack(theta)
        if self.fault == "bins of K for K - 1":
            return logits, m * 5 / 4, t * 4 / 5
        if self.fault == "scale for its inverse":
            return logits, m, (2 / 4) ** 2 / t
        if self.fault == "hard clamp":
            a = theta.chunk(3, -1)[2].clamp(min=-3.5)
            return logits, m, 2 * torch.exp(-a) / 4
        return logits, m, t

    def sample(self, theta: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        logits, mu, a = theta.chunk(3, -1)
        if self.fault == "components drawn alike":
            theta = torch.cat([0 * logits, mu, a], -1)
        if self.fault == "draws too wide":
            theta = torch.cat([logits, mu, a + 0.3], -1)
        draws = super().sample(theta, generator=generator)
        if self.fault == "draws one level up":
            return (draws + 1).clamp(max=4)
        return draws


THETA = normal(4, (6,), rng(6))
LAWS: dict[str, Callable[[Law], None]] = {
    "edges without tails": partial(masses.law_sums_to_one, theta=THETA),
    "a difference forgotten": partial(masses.law_sums_to_one, theta=THETA),
    "weights not normalized": partial(masses.law_sums_to_one, theta=THETA),
    "bins of K for K - 1": partial(masses.law_is_a_mixture_of_logistics, theta=THETA),
    "scale for its inverse": partial(masses.law_is_a_mixture_of_logistics, theta=THETA),
    "hard clamp": masses.tiny_scales_have_gradient,
    "components drawn alike": lambda law: masses.draws_follow_the_law(law, THETA, generator=rng(7)),
    "draws too wide": lambda law: masses.draws_follow_the_law(law, THETA, generator=rng(7)),
    "draws one level up": lambda law: masses.draws_follow_the_law(law, THETA, generator=rng(7)),
}


@pytest.mark.parametrize("name", LAWS)
def test_law(name: str) -> None:
    Tooth(LAWS[name], Law, partial(Law, name)).bites()


class OffSupport(Categorical):
    """The nearest level for what is none."""

    def log_prob(self, k: Tensor, theta: Tensor) -> Tensor:
        return self._log_mass(k.nan_to_num(0.0).clamp(0, self.bins - 1).round(), theta)


class Unscaled(Categorical):
    """What networks are fed is infinite where the value is."""

    def rescale(self, k: Tensor) -> Tensor:
        return 2 * k / (self.bins - 1) - 1


@pytest.mark.parametrize("law", [OffSupport, Unscaled])
def test_values_outside(law: type[Categorical]) -> None:
    def fault(model: WaveNet) -> None:
        model.likelihood = law(bins=3)

    build = partial(sequence, likelihood="categorical")
    Tooth(outside, build, partial(build, fault)).bites()


def levels_added(model: WaveNet) -> None:
    """log K per value, as a density on [0, 1) would have it."""
    law = type(model.likelihood).log_prob
    model.likelihood.log_prob = lambda k, theta: law(model.likelihood, k, theta) + torch.tensor(3.0).log()


def mirrored(model: WaveNet) -> None:
    draw = type(model)._draw
    model._draw = lambda *arguments: draw(model, *arguments).flip(-1)


@pytest.mark.parametrize(("contract", "fault"), [(total, levels_added), (frequencies, mirrored), (naive, mirrored)])
def test_masses_and_draws(contract: Callable[[MassModel], None], fault: Fault) -> None:
    Tooth(contract, sequence, partial(sequence, fault)).bites()


def test_context_ignored() -> None:
    x, context = torch.zeros(4, 6, dtype=torch.float64), normal(4, (2,), rng(8))

    def deaf(model: WaveNet) -> None:
        theta = type(model)._theta
        model._theta = lambda u, c: theta(model, u, torch.ones_like(c)) + 0 * c.sum()

    build = partial(sequence, context_features=2)
    Tooth(lambda model: masses.context_matters(model, x, context), build, partial(build, deaf)).bites()
