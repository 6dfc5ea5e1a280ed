"""Tests of mixtures bite: each contract passes the right one and rejects it with one thing wrong."""

import math

import pytest
import torch
from contracts import mixtures_of_densities as contract
from helpers import Tooth

from core import MixtureOfDensities, fit_weights, mixture


def changed(monkey, **names):
    """The mixture with functions of its module replaced."""
    for name, value in names.items():
        monkey.setattr(mixture, name, value)
    return MixtureOfDensities


def quadrature(r, errors):
    return sum((r[..., k] * e).square() for k, e in enumerate(errors)).sqrt()


def unweighted(r, errors):
    return sum(errors) / len(errors)


def with_own_draws(calls, generator):
    return [call() for call in calls]


def standing_still(calls, generator):
    state, found = generator.get_state(), []
    for call in calls:
        generator.set_state(state)
        found.append(call())
    generator.set_state(state)
    return found


def last_alone(calls, generator):
    state, found = generator.get_state(), []
    for call in calls:
        generator.set_state(state)
        found.append(call())
    return found


def equal_weights(log_probs, **_):
    return torch.full(log_probs.shape[1:], 1 / log_probs.shape[1], dtype=torch.float64)


def best_part(log_probs, **_):
    return torch.nn.functional.one_hot(log_probs.mean(0).argmax(), log_probs.shape[1]).double()


def ends_at_once(log_probs, **_):
    return fit_weights(log_probs, tolerance=1e-2)


def of_shares(log_probs, **_):
    """Responsibilities under equal weights, once."""
    return fit_weights(log_probs, tolerance=0.0, iterations=1)


def squared(log_probs, **_):
    return fit_weights(2 * log_probs, tolerance=1e-6)


def first_row_of_generators(parts, w):
    made = MixtureOfDensities(parts, w)
    sample = made.sample
    made.sample = lambda shape=(), *, generator=None, **k: sample(
        shape, generator=torch.Generator().manual_seed(0) if hasattr(generator, "rows") else generator, **k
    )
    return made


TEETH = {
    "errors in quadrature": (contract.errors_are_those_of_the_parts, {"_weighted": quadrature}),
    "errors without responsibilities": (contract.errors_are_those_of_the_parts, {"_weighted": unweighted}),
    "parts with noise of their own": (contract.parts_draw_the_same, {"with_same_draws": with_own_draws}),
    "a generator that stands still": (contract.parts_draw_the_same, {"with_same_draws": standing_still}),
    "a generator where the last part left it": (contract.parts_draw_the_same, {"with_same_draws": last_alone}),
    "the strongest kind": (contract.kind_is_the_weakest, {"weakest": lambda *kinds: min(kinds, key=len)}),
}


@pytest.mark.parametrize("name", TEETH)
def test_a_part_of_the_mixture_that_is_wrong_is_seen(name, monkeypatch):
    keeps, names = TEETH[name]
    Tooth(keeps, lambda: MixtureOfDensities, lambda: changed(monkeypatch, **names)).bites()


WRONG_MIXTURES = {
    "weights that are ignored": (
        contract.parts_are_drawn_by_their_weights, lambda parts, w: MixtureOfDensities(parts),
    ),
    "the order of the weights": (
        contract.parts_are_drawn_by_their_weights, lambda parts, w: MixtureOfDensities(parts, w.flip(0)),
    ),
    "a generator for all rows": (contract.parts_are_drawn_by_their_weights, first_row_of_generators),
    "a mean of log-densities": (
        contract.outside_a_part_the_others_count,
        lambda parts, w: _geometric(MixtureOfDensities(parts, w)),
    ),
}  # fmt: skip


def _geometric(made):
    made.log_prob = lambda x: (made.log_joint(x) - made.log_weights).mean(-1)
    return made


@pytest.mark.parametrize("name", WRONG_MIXTURES)
def test_a_mixture_that_is_wrong_is_seen(name):
    keeps, wrong = WRONG_MIXTURES[name]
    Tooth(keeps, lambda: MixtureOfDensities, lambda: wrong).bites()


@pytest.mark.parametrize("wrong", [equal_weights, best_part, ends_at_once, of_shares, squared])
def test_weights_that_are_not_the_best_are_seen(wrong):
    Tooth(contract.weights_are_the_best, lambda: fit_weights, lambda: wrong).bites()


def test_the_teeth_are_of_what_is_there():
    assert all(hasattr(mixture, name) for _, names in TEETH.values() for name in names)
    assert math.isclose(fit_weights(torch.zeros(3, 2)).sum().item(), 1)
