"""The contracts bite: each passes what is right and rejects what is wrong in one place (tests/cflows has its own)."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from contracts import bijections, densities, divergences, modules
from helpers import Tooth, normal, perturb, rng, seeded, unit
from torch import Tensor
from wrong import (
    Deaf,
    Elementwise,
    FirstColumn,
    OffByOne,
    SummedHutchinson,
    Tampered,
    TamperedDensity,
    TamperedDivergence,
)

from core import ExactDivergence, Hutchinson, StandardNormal
from discrete import AffineCoupling, Bijection, Flow, Logit

X, Z, PLANE = normal(4, (3,), rng(0)), normal(4, (3,), rng(1)), normal(4, (2,), rng(2))
TAIL = 10 * X.sign()


def coupling(features: int = 3, **keywords: Any) -> Bijection:
    build = partial(AffineCoupling, features, hidden=(16,), activation="silu", **keywords)
    return perturb(seeded(build), rng(3))


def off_by_one(first_moving: int) -> Bijection:
    return perturb(seeded(partial(OffByOne, first_moving=first_moving)), rng(4))


def elementwise(fault: str = "") -> Bijection:
    return Elementwise(fault).double()


def run(module: Bijection, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    return module(x, context)


def forward_log_det(bijection: Bijection) -> None:
    bijections.forward_log_det_is_that_of_the_jacobian(bijection, X)


def inverse_log_det(bijection: Bijection) -> None:
    bijections.inverse_log_det_is_that_of_the_jacobian(bijection, Z)


LOG_DETS = {
    "doubled": lambda x, y, log_det: (y, 2 * log_det),
    "sign flipped": lambda x, y, log_det: (y, -log_det),
    "omitted": lambda x, y, log_det: (y, 0 * log_det),
    "off by a millionth": lambda x, y, log_det: (y, log_det + 1e-6),
}


@pytest.mark.parametrize("contract", [forward_log_det, inverse_log_det])
@pytest.mark.parametrize("name", LOG_DETS)
def test_log_det_wrong_in_both_directions(name: str, contract: Callable[[Bijection], None]) -> None:
    """By the same factor, so that the two still cancel; each direction is rejected on its own."""
    change = LOG_DETS[name]
    Tooth(contract, coupling, lambda: Tampered(coupling(), forward=change, inverse=change)).bites()


def test_inverse_with_the_sign_of_forward() -> None:
    wrong = Tampered(coupling(), inverse=LOG_DETS["sign flipped"])
    forward_log_det(wrong)
    Tooth(inverse_log_det, coupling, lambda: wrong).bites()


def test_logit_without_its_constant() -> None:
    Tooth(
        lambda b: bijections.forward_log_det_is_that_of_the_jacobian(b, unit(4, (3,), rng(5))),
        lambda: Logit(3),
        lambda: Tampered(Logit(3), forward=lambda x, y, log_det: (y, log_det - 3 * math.log(0.9))),
    ).bites()


@pytest.mark.parametrize(
    "contract",
    [
        forward_log_det,
        inverse_log_det,
        lambda b: bijections.round_trips(b, X, Z),
        lambda b: bijections.coupling_has_its_structure(b, X, passes=(0, 1)),
    ],
)
def test_mask_off_by_one(contract: Callable[[Bijection], None]) -> None:
    """A coordinate steers and moves as well."""
    Tooth(contract, partial(off_by_one, 2), partial(off_by_one, 1)).bites()


BIJECTIONS = {
    "inverse clamped in the tails": Tooth(
        lambda b: bijections.round_trips(b, TAIL, Z, tolerance=1e-6),
        coupling,
        lambda: Tampered(coupling(), inverse=lambda z, x, log_det: (x.clamp(-8, 8), log_det)),
    ),
    "nothing moves": Tooth(
        lambda b: bijections.coupling_has_its_structure(b, X, passes=(0, 2)),
        coupling,
        lambda: Tampered(coupling(), forward=lambda x, y, log_det: (x, log_det)),
    ),
    "log-det of shape (rows, 1)": Tooth(
        lambda b: bijections.shapes_fit(b, lambda n: normal(n, (3,), rng(6)), lambda n: normal(n, (3,), rng(7)), None),
        coupling,
        lambda: Tampered(coupling(), forward=lambda x, y, log_det: (y, log_det[:, None])),
    ),
    "log-det in another dtype": Tooth(
        lambda b: bijections.shapes_fit(b, lambda n: normal(n, (3,), rng(6)), lambda n: normal(n, (3,), rng(7)), None),
        coupling,
        lambda: Tampered(coupling(), inverse=lambda x, y, log_det: (y, log_det.float())),
    ),
    "context ignored": Tooth(
        lambda b: bijections.context_matters(b, X, torch.ones(4, 1, dtype=torch.float64)),
        lambda: coupling(context_features=1),
        lambda: Deaf(coupling()),
    ),
    "log-det without gradient": Tooth(
        lambda b: bijections.log_det_is_differentiable(b, PLANE),
        elementwise,
        lambda: elementwise("detached log-det"),
    ),
    "digits lost in float32": Tooth(
        lambda b: modules.float32_is_close(run, b, PLANE, tolerance=1e-4),
        elementwise,
        lambda: Tampered(elementwise(), forward=lambda x, y, log_det: (y + 4096.0 - 4096.0, log_det)),
    ),
}


@pytest.mark.parametrize("name", BIJECTIONS)
def test_bijection(name: str) -> None:
    BIJECTIONS[name].bites()


def copies(call: modules.Call, bijection: Elementwise, x: Tensor) -> None:
    modules.copies_are_bit_equal(call, bijection, Elementwise(bijection.fault), x)


FAULTS = {
    "unused parameter": modules.gradients_reach_every_parameter,
    "detached": modules.gradients_reach_every_parameter,
    "batch statistics": modules.rows_are_independent,
    "in place": modules.input_is_left_alone,
    "requires grad": modules.input_is_left_alone,
    "wrong without gradients": modules.gradients_change_nothing,
    "stray tensor": modules.runs_on_meta,
    "hidden state": copies,
    "kept graph": copies,
    "lambda": copies,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_module(fault: str) -> None:
    Tooth(lambda b: FAULTS[fault](run, b, PLANE.clone()), elementwise, partial(elementwise, fault)).bites()


def density(**changes: Callable) -> TamperedDensity:
    flow = Flow(coupling(2), StandardNormal(2)).double()
    return TamperedDensity(flow, **changes)


def integral(model: TamperedDensity) -> None:
    densities.integrates_to_one(model, points=201, tolerance=1e-3)


def sampled(model: TamperedDensity) -> None:
    densities.samples_follow_the_density(model, points=201, count=20_000, generator=rng(8))


def clean(model: TamperedDensity) -> None:
    densities.sample_is_clean(model, generator=lambda: rng(9))


def reparametrised(model: TamperedDensity) -> None:
    densities.rsample_agrees(model, generator=lambda: rng(10))


def batched(model: TamperedDensity) -> None:
    densities.takes_any_batch_shape(model, lambda rows: normal(rows, (2,), rng(11)))


def exact(model: TamperedDensity) -> None:
    densities.estimate_agrees(model, PLANE, exact=True, generator=lambda: rng(12))


DENSITIES = {
    "one hundredth of a nat too much": (integral, {"log_prob": lambda v: v + 0.01}),
    "log-density scaled": (integral, {"log_prob": lambda v: 1.01 * v}),
    "draws too wide": (sampled, {"sample": lambda x: 1.1 * x}),
    "draws shifted": (sampled, {"sample": lambda x: x + 0.1}),
    "draws mirrored": (sampled, {"sample": lambda x: -x}),
    "draws from the global generator": (clean, {"generator": lambda: None}),
    "draws with gradient": (clean, {"sample": lambda x: x.requires_grad_()}),
    "draws of another shape": (clean, {"sample": lambda x: x[..., None]}),
    "log q that is not log p": (reparametrised, {"rsample": lambda v: (v[0], v[1] + 0.1)}),
    "draws without the parameters' gradient": (reparametrised, {"rsample": lambda v: (v[0].detach(), v[1])}),
    "log-density of shape (rows, 1)": (batched, {"log_prob": lambda v: v[..., None]}),
    "log-density of the whole batch": (batched, {"log_prob": lambda v: v - v.mean() + 1}),
    "an exact density with an error": (exact, {"estimate": lambda e: replace(e, std_error=e.std_error + 1)}),
    "an estimate that disagrees": (exact, {"estimate": lambda e: replace(e, log_prob=e.log_prob + 1)}),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_density(name: str) -> None:
    contract, changes = DENSITIES[name]
    Tooth(contract, density, partial(density, **changes)).bites()


def test_normal_without_half_log_two_pi() -> None:
    Tooth(
        lambda m: densities.matches_reference(m, lambda _, x: -0.5 * (x**2).sum(1) - math.log(2 * math.pi), PLANE),
        lambda: StandardNormal(2),
        lambda: TamperedDensity(StandardNormal(2), log_prob=lambda v: v + math.log(2 * math.pi)),
    ).bites()


def with_rng(contract: Callable[..., None], **keywords: Any) -> Callable[[Any], None]:
    return lambda divergence: contract(divergence, generator=rng(13), **keywords)


TRACE, MEAN = with_rng(divergences.equals_the_trace), with_rng(divergences.is_unbiased)
ONE, FOUR = Hutchinson(), Hutchinson(probes=4)
DIVERGENCES = {
    "sign flipped": (TRACE, ExactDivergence(), TamperedDivergence(ExactDivergence(), lambda v: -v)),
    "zeroed": (TRACE, ExactDivergence(), TamperedDivergence(ExactDivergence(), lambda v: 0 * v)),
    "first column for the diagonal": (TRACE, ExactDivergence(), FirstColumn()),
    "estimate with its sign flipped": (MEAN, ONE, TamperedDivergence(ONE, lambda v: -v)),
    "estimate zeroed": (MEAN, ONE, TamperedDivergence(ONE, lambda v: 0 * v)),
    "sum over probes not divided": (MEAN, FOUR, SummedHutchinson()),
    "probes of half the variance": (MEAN, ONE, TamperedDivergence(ONE, probes=lambda v: v / 2**0.5)),
    "one probe for all rows": (
        with_rng(divergences.columns_are_independent),
        ONE,
        TamperedDivergence(ONE, probes=lambda v: v[:, :1].expand_as(v)),
    ),
    "one probe for all columns": (
        with_rng(divergences.columns_are_independent),
        FOUR,
        TamperedDivergence(FOUR, probes=lambda v: v[:1].expand_as(v)),
    ),
    "probes from the global generator": (
        divergences.generator_decides,
        ONE,
        TamperedDivergence(ONE, probes=lambda v: torch.randn(v.shape, dtype=v.dtype)),
    ),
    "Gaussian probes sold as signs": (
        with_rng(divergences.variance_is, expected=divergences.SIGN_VARIANCE),
        ONE,
        Hutchinson(distribution="gaussian"),
    ),
    "gradient cut": (
        with_rng(divergences.is_differentiable),
        ONE,
        TamperedDivergence(ONE, lambda v: v.detach() + 0 * v),
    ),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergence(name: str) -> None:
    contract, right, wrong = DIVERGENCES[name]
    Tooth(contract, lambda: right, lambda: wrong).bites()
