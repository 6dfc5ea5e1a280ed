"""Statistics that tell two sets of rows apart, by their definitions; and that the tests of them bite."""

import math

import numpy as np
import pytest
from contracts import detections as contract
from helpers import Tooth
from scipy.stats import binom

from experiment.errors import UserError
from experiment.other_data import detection

KEPT = [
    (contract.p_values_are_never_too_small, detection.conformal_p_values),
    (contract.p_values_are_never_too_small, detection.typicality_p_values),
    (contract.larger_is_stranger, detection.conformal_p_values),
    (contract.both_tails_are_strange, detection.typicality_p_values),
    (contract.area_counts_pairs, detection.area_under_roc),
    (contract.error_is_that_of_repetition, detection.area_under_roc),
    (contract.discoveries_are_those_of_the_definition, detection.discoveries),
    (contract.chance_counts_arrangements, detection.chance_of_as_many),
    (contract.rate_is_read_off_the_curve, detection.false_positive_rate),
]


@pytest.mark.parametrize(("keeps", "function"), KEPT, ids=lambda f: f.__name__)
def test_the_statistic(keeps, function):
    keeps(function)


def test_rows_of_one_law_are_flagged_as_often_as_said():
    """P(p ≤ α) = ⌊α (n + 1)⌋/(n + 1), of both statistics, and false discoveries stay below the rate."""
    random = np.random.default_rng(0)
    n, m, repeats = 39, 30, 2000
    flagged, false = {f: 0 for f in (detection.conformal_p_values, detection.typicality_p_values)}, []
    for _ in range(repeats):
        held_out, rows = random.gumbel(size=n), random.gumbel(size=m)
        for p_values in flagged:
            flagged[p_values] += (p_values(rows, held_out) <= 0.1).sum() / (m * repeats)
        strange = np.concatenate([rows[:20], rows[20:] + 50])
        chosen = detection.discoveries(detection.conformal_p_values(strange, held_out), rate=0.2)
        false.append(chosen[:20].sum() / max(1, chosen.sum()))
    for share in flagged.values():
        assert abs(share - 4 / 40) < 5 * math.sqrt(0.1 * 0.9 / 40 / repeats)
    assert np.mean(false) < 0.2 + 5 * np.std(false) / math.sqrt(repeats)


def test_the_typical_is_no_stranger_for_being_alike():
    """Rows far likelier than any are unlikely under neither tail of -log p, and untypical."""
    random = np.random.default_rng(1)
    test, other, held_out = random.normal(size=300), np.full(100, -6.0), random.normal(size=200)
    unlikely, untypical = detection.both_statistics(test, other, held_out, rate=0.05)
    assert (unlikely.area, untypical.area) == (0.0, 1.0)
    assert (unlikely.other_share, untypical.other_share) == (0.0, 1.0)
    assert (unlikely.discoveries, untypical.discoveries) == (0, 100)
    assert unlikely.false_positive_rate == 1.0
    assert untypical.average_precision == 1.0
    assert 0.001 < unlikely.test_chance < 0.999


def test_a_density_of_zero_is_the_strangest_of_all():
    unlikely, untypical = detection.both_statistics(
        np.arange(20.0), np.array([np.inf, np.inf, 3.0]), np.arange(40.0), rate=0.05
    )
    assert unlikely.discoveries == untypical.discoveries == 2
    assert unlikely.area == pytest.approx((20 + 20 + 3.5) / 60)


def test_one_row_has_no_error_and_a_rate_is_one():
    assert math.isnan(detection.area_under_roc(np.arange(3.0), np.ones(1))[1])
    assert detection.both_statistics(np.arange(3.0), np.ones(1), np.arange(3.0), rate=0.5)[0].area_error is None
    with pytest.raises(UserError, match=r"--rate must lie between 0 and 1, such as 0\.05, but is 5"):
        detection.discoveries(np.ones(1), rate=5)


def at_least(s, t):
    return (t >= s[:, None]).sum(1)


def halves(scores, held_out):
    """The mean of the held-out scores alone."""
    m = held_out.mean()
    return (1 + at_least(abs(scores - m), abs(held_out - m))) / (len(held_out) + 1)


def one_tail(scores, held_out):
    return detection.conformal_p_values(scores, held_out)


def without_ties(usual, strange):
    return (strange[:, None] > usual).mean(), detection.area_under_roc(usual, strange)[1]


def reversed_area(usual, strange):
    return detection.area_under_roc(strange, usual)


def crossed_error(usual, strange):
    pairs = (strange[:, None] > usual) + 0.5 * (strange[:, None] == usual)
    variance = sum(pairs.mean(axis).var(ddof=1) / pairs.shape[axis] for axis in (0, 1))
    return pairs.mean(), math.sqrt(variance)


def independent_pairs(usual, strange):
    area, _ = detection.area_under_roc(usual, strange)
    return area, math.sqrt(area * (1 - area) / (len(usual) * len(strange)))


def stops_at_the_first(p, *, rate):
    order, m = np.argsort(p), len(p)
    kept = np.cumprod(p[order] <= rate * np.arange(1, m + 1) / m).astype(bool)
    return np.isin(np.arange(m), order[kept])


TEETH = {
    "without the row itself": (0, lambda s, t: at_least(s, t) / (len(t) + 1)),
    "over n": (0, lambda s, t: (1 + at_least(s, t)) / len(t)),
    "ties in favour": (0, lambda s, t: (1 + (t > s[:, None]).sum(1)) / (len(t) + 1)),
    "the mean of the others alone": (1, halves),
    "the sign": (2, lambda s, t: detection.conformal_p_values(-s, -t)),
    "one tail": (3, one_tail),
    "ties not halved": (4, without_ties),
    "the area of the other side": (4, reversed_area),
    "crossed sizes": (4, crossed_error),
    "crossed sizes over repetitions": (5, crossed_error),
    "pairs taken for independent": (5, independent_pairs),
    "the first failure": (6, stops_at_the_first),
    "no correction": (6, lambda p, *, rate: p <= rate),
    "Bonferroni": (6, lambda p, *, rate: p <= rate / len(p)),
    "a binomial count": (7, lambda c, m, *, held_out, level: float(binomial(c, m, level))),
    "one more": (7, lambda c, m, **k: detection.chance_of_as_many(c + 1, m, **k)),
    "above the threshold": (8, lambda u, s, *, found: float((u > np.quantile(s, 1 - found)).mean())),
}


def binomial(count, rows, level):

    return binom.sf(count - 1, rows, level)


@pytest.mark.parametrize("name", TEETH)
def test_a_statistic_that_is_wrong_is_seen(name):
    kept, wrong = TEETH[name]
    Tooth(KEPT[kept][0], lambda: KEPT[kept][1], lambda: wrong).bites()
