"""The contracts of what goes round a solver bite: corrections, inpainting, guidance, steps by tolerance."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from contracts import adaptive, wrappers
from helpers import Tooth
from torch import Tensor

from cflows import VPSDE, EulerMaruyama
from cflows.guidance import ConditionalScore, classifier_free
from cflows.samplers import adaptive as solver
from cflows.samplers.adaptive import AdaptiveSDE
from cflows.samplers.brownian_path import BrownianPath, bridge
from cflows.samplers.inpainting import Inpainting
from cflows.samplers.predictor_corrector import PredictorCorrector
from cflows.samplers.reverse_diffusion import ReverseDiffusion
from cflows.samplers.sampler import OneStepSampler, intervals, normal_like
from cflows.sde import Score

VP = VPSDE()


@dataclass(frozen=True)
class TamperedCorrector:
    """Predictor-corrector with factors on ε and on the variance of its noise, and other faults."""

    predictor: OneStepSampler
    corrector_steps: int = 1
    eps: float = 1.0
    noise: float = 1.0
    fault: str = ""

    def __call__(self, score: Score, sde: VPSDE, x: Tensor, *, generator: Any = None) -> Tensor:
        draw, steps = normal_like(generator), self.predictor.steps
        for step, (t, s) in enumerate(intervals(self.predictor, sde, x)):
            last = step == steps - 1
            noise = torch.zeros_like if last and self.fault != "noise at the end" else draw
            if self.fault == "corrector after":
                x = self.correct(score, sde, self.predictor.step(score, sde, x, t, s, noise), s, draw, steps)
            else:
                x = self.correct(score, sde, x, s if self.fault == "late time" else t, draw, steps)
                x = self.predictor.step(score, sde, x, t, s, noise)
        return x

    def correct(self, score: Score, sde: VPSDE, x: Tensor, t: Tensor, draw: Callable, steps: int) -> Tensor:
        ratio = 0.3 * sde.marginal(t)[1]
        eps = 2 * self.eps * (ratio if self.fault == "ratio without its square" else ratio.square())
        if self.fault == "α of the steps":
            eps = eps * (1 - sde.beta(t) / steps)
        for _ in range(self.corrector_steps):
            x = x + eps * score(x, t) + (2 * self.noise * eps).sqrt() * draw(x)
        return x


CORRECTORS: dict[str, dict[str, Any]] = {
    "ε halved": {"eps": 0.5},
    "√ε for √(2ε)": {"noise": 0.5},
    "noise doubled": {"noise": 4.0},
    "corrector after": {"fault": "corrector after"},
    "late time": {"fault": "late time"},
    "ratio without its square": {"fault": "ratio without its square"},
    "α of the steps": {"fault": "α of the steps"},
}


@pytest.mark.parametrize("name", CORRECTORS)
def test_corrector(name: str) -> None:
    def right(steps: int, corrections: int) -> PredictorCorrector:
        predictor = ReverseDiffusion(steps=steps, t_min=0.1)
        return PredictorCorrector(predictor=predictor, corrector_steps=corrections, snr=0.3)

    def wrong(steps: int, corrections: int) -> TamperedCorrector:
        return TamperedCorrector(ReverseDiffusion(steps=steps, t_min=0.1), corrections, **CORRECTORS[name])

    contract = partial(wrappers.follows_the_correctors_recursion, sde=VP, snr=0.3)
    Tooth(contract, lambda: right, lambda: wrong).bites()


def test_corrector_that_knows_the_steps() -> None:
    contract = partial(wrappers.corrections_do_not_know_the_steps, sde=VP)
    Tooth(contract, lambda: TamperedCorrector, lambda: partial(TamperedCorrector, fault="α of the steps")).bites()


def inpaint(score: Score, sde: VPSDE, x: Tensor, *, resample: int, fault: str = "") -> Tensor:
    """Inpainting of coordinate 0 at 1.2 over reverse diffusion, with a fault."""
    predictor, draw = ReverseDiffusion(steps=4, t_min=0.1), normal_like(None)
    mask, known = torch.tensor([True, False]), torch.tensor([1.2, 1.2]).to(x)
    mask = ~mask if fault == "mask inverted" else mask

    def insert(x: Tensor, s: Tensor) -> Tensor:
        scale, std = sde.marginal(s)
        scale = torch.ones_like(scale) if fault == "scale left out" else scale
        return torch.where(mask, scale * known + (std.square() if fault == "variance for std" else std) * draw(x), x)

    x = insert(x, x.new_ones(()))
    for step, (t, s) in enumerate(intervals(predictor, sde, x)):
        for _ in range(resample - 1):
            below = insert(predictor.step(score, sde, x, t, s, draw), t if fault == "noise of t" else s)
            scale, std = sde.transition_kernel(s, t)
            z = draw(x)
            if fault == "way back without noise":
                std = 0 * std
            if fault == "way back by the marginal":
                scale, std = sde.marginal(t)
            x = scale * below + std * z
        x = predictor.step(score, sde, x, t, s, torch.zeros_like if step == 3 else draw)
        if step < 3:
            x = insert(x, t if fault == "noise of t" else s)
    return torch.where(mask, known, x)


@pytest.mark.parametrize(
    "fault",
    [
        "noise of t",
        "mask inverted",
        "scale left out",
        "variance for std",
        "way back without noise",
        "way back by the marginal",
    ],
)
def test_inpainting(fault: str) -> None:
    data = torch.tensor([0.2, -0.5]).double(), torch.tensor([[1.0, 0.8], [0.8, 1.0]]).double()
    known, mask = torch.tensor(1.2, dtype=torch.float64), torch.tensor([True, False])
    right = Inpainting(ReverseDiffusion(steps=4, t_min=0.1), known, mask, resample=2)

    def contract(sampler: Any) -> None:
        wrappers.follows_the_inpainting_recursion(sampler, VP, data, known=1.2, steps=4, resample=2)

    Tooth(contract, lambda: right, lambda: partial(inpaint, resample=2, fault=fault)).bites()


def guide(
    score: Callable, context: Tensor, *, guidance: float, rule: Callable[[Tensor, Tensor, float], Tensor]
) -> ConditionalScore:
    """Classifier-free guidance by another rule of conditional c, unconditional u and weight w."""

    def guided(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return rule(score(x, t, context), score(x, t, torch.zeros_like(context)), guidance)

    return ConditionalScore(guided, context)


RULES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "w of the paper": lambda c, u, w: (1 + w) * c - w * u,
    "w less 1": lambda c, u, w: u + (w - 1) * (c - u),
    "halves swapped": lambda c, u, w: c + w * (u - c),
    "no unconditional part": lambda c, u, w: w * c,
    "conditional at its base": lambda c, u, w: c + w * (c - u),
}


@pytest.mark.parametrize("name", RULES)
def test_guidance(name: str) -> None:
    contract = partial(wrappers.guides, sde=VP, guidance=2.5)
    Tooth(contract, lambda: classifier_free, lambda: partial(guide, rule=RULES[name])).bites()


@pytest.mark.parametrize("name", ["w less 1", "no unconditional part"])
def test_guidance_through_a_sampler(name: str) -> None:
    sampler = EulerMaruyama(steps=50, denoise=False)
    contract = partial(wrappers.reaches_the_guided_class, sampler=sampler, sde=VP, guidance=2.5)
    Tooth(contract, lambda: classifier_free, lambda: partial(guide, rule=RULES[name])).bites()


BRIDGES: dict[str, Callable[..., Tensor]] = {
    "variance doubled": lambda whole, u, v, z: bridge(whole, u, v, 2**0.5 * z),
    "variance of the left half": lambda whole, u, v, z: whole * (u / (u + v)) + u.sqrt() * z,
    "halved in time": lambda whole, u, v, z: 0.5 * whole + 0.5 * (u + v).sqrt() * z,
    "whole forgotten": lambda whole, u, v, z: u.sqrt() * z,
    "no noise": lambda whole, u, v, z: whole * (u / (u + v)),
}


@pytest.mark.parametrize("name", BRIDGES)
def test_bridge(name: str) -> None:
    Tooth(adaptive.halves_are_brownian, lambda: bridge, lambda: BRIDGES[name]).bites()


class RightHalfForgotten(BrownianPath):
    def halve(self, rows: Tensor) -> None:
        super().halve(rows)
        self.kept.zero_()


class WholeKept(BrownianPath):
    """The right half is what the whole was."""

    def halve(self, rows: Tensor) -> None:
        whole = self.increment[rows]
        super().halve(rows)
        self.kept[self.level[rows], rows] = whole


class SiblingOneLevelUp(BrownianPath):
    def advance(self, rows: Tensor) -> None:
        super().advance(rows)
        self.level[rows] = (self.level[rows] - 1).clamp(min=0)


class DrawnAnew(BrownianPath):
    """Halves that know nothing of the whole, as if it had never been drawn."""

    def halve(self, rows: Tensor) -> None:
        whole = self.increment[rows].clone()
        super().halve(rows)
        here, there = self.here(rows), self.there(rows)
        end = 2 * there - here
        for part, variance in ((self.increment, there.exp() - here.exp()), (None, end.exp() - there.exp())):
            fresh = variance.sqrt()[:, None] * self._normal(rows, whole)
            if part is None:
                self.kept[self.level[rows], rows] = fresh
            else:
                part[rows] = fresh


@pytest.mark.parametrize("wrong", [RightHalfForgotten, WholeKept, SiblingOneLevelUp])
def test_path(wrong: type[BrownianPath]) -> None:
    Tooth(adaptive.walks_a_brownian_motion, lambda: BrownianPath, lambda: wrong).bites()


@pytest.mark.parametrize("wrong", [DrawnAnew, RightHalfForgotten])
def test_path_under_a_tolerance(wrong: type[BrownianPath], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh halves are Brownian where chance makes a row halve, but not where their own size does."""
    adaptive.walks_a_brownian_motion(DrawnAnew)

    def contract(path: type[BrownianPath]) -> None:
        monkeypatch.setattr(solver, "BrownianPath", path)
        adaptive.keeps_the_variance(AdaptiveSDE(denoise=False), variance=0.01, bias=0.02)

    Tooth(contract, lambda: BrownianPath, lambda: wrong).bites()


def test_tolerance_that_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves by a factor of 1.4 where 4 was asked for."""

    def build(power: float) -> Callable[[float], AdaptiveSDE]:
        return lambda rtol: AdaptiveSDE(rtol=0.16 * (rtol / 0.16) ** power, atol=0.032 * (rtol / 0.16) ** power)

    def contract(built: Callable[[float], AdaptiveSDE]) -> None:
        adaptive.error_follows_the_tolerance(built, VP, monkeypatch)

    with pytest.raises(AssertionError, match="falls with the power"):
        contract(build(0.25))


def test_heun_without_its_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """The correction doubled, the tolerance with it: the pieces are the same and the variance is not."""

    def contract(factor: float) -> None:
        tried = AdaptiveSDE._try

        def attempt(self: AdaptiveSDE, field: Any, path: Any, rows: Any, y: Tensor, mean: Tensor) -> Any:
            y_H, error = tried(self, field, path, rows, y, mean)
            here, there = (v.to(y)[:, None] for v in (path.here(rows), path.there(rows)))
            y_E = mean + (here - there).exp() * (y - mean) + (-there).exp() * path.increment[rows]
            return y_E + factor * (y_H - y_E), error

        with monkeypatch.context() as patch:
            patch.setattr(AdaptiveSDE, "_try", attempt)
            adaptive.keeps_the_variance(AdaptiveSDE(denoise=False), variance=0.01, bias=0.02)

    Tooth(contract, lambda: 1.0, lambda: 2.0).bites()
