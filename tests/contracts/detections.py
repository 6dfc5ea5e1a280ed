"""What p-values, the area under a ROC curve and false discoveries promise; each raises AssertionError where broken."""

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control
from sklearn.metrics import roc_auc_score, roc_curve

Array = NDArray[np.float64]
PValues = Callable[[Array, Array], Array]
TIED = ([1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 2.0, 5.0], [3.0, 3.0, 1.0])


def p_values_are_never_too_small(p_values: PValues) -> None:
    """Any of n + 1 exchangeable scores may be the new one: at most j of them have p ≤ j/(n + 1), without ties j."""
    random = np.random.default_rng(0)
    untied = [random.gumbel(size=n) for n in (3, 4, 5, 20) for _ in range(20)]
    for scores in [np.array(tied) for tied in TIED] + untied:
        n = len(scores) - 1
        p = np.array([p_values(scores[i : i + 1], np.delete(scores, i))[0] for i in range(n + 1)])
        counts = [(p <= j / (n + 1) + 1e-12).sum() for j in range(n + 2)]
        assert all(count <= j for j, count in enumerate(counts)), f"{p} of {scores}"
        if len(set(scores)) == n + 1:
            assert counts == list(range(n + 2)), f"{p} of {scores} is not uniform"


def larger_is_stranger(p_values: PValues) -> None:
    held_out = np.arange(10.0)
    p = p_values(np.array([-1.0, 3.5, 9.0, 9.5, np.inf]), held_out)
    np.testing.assert_allclose(p, np.array([11, 7, 2, 1, 1]) / 11)


def both_tails_are_strange(p_values: PValues) -> None:
    held_out = np.arange(-5.0, 6.0)
    p = p_values(np.array([-100.0, 100.0, np.inf, 0.0, 4.9, -4.9]), held_out)
    np.testing.assert_allclose(p, np.array([1, 1, 1, 12, 3, 3]) / 12)


def area_counts_pairs(area: Callable[[Array, Array], tuple[float, float]]) -> None:
    """The area is scikit-learn's, ties and infinity included; the error that of DeLong's sums over all pairs."""
    random = np.random.default_rng(1)
    for n, m, digits in ((2, 2, 5), (30, 7, 5), (7, 30, 0), (50, 50, 0)):
        usual, strange = random.normal(size=n).round(digits), random.normal(0.7, size=m).round(digits)
        found, error = area(usual, strange)
        expected = roc_auc_score(np.repeat([0, 1], [n, m]), np.concatenate([usual, strange]))
        assert math.isclose(found, expected, rel_tol=1e-12), f"{found}, not {expected}"
        pairs = (strange[:, None] > usual) + 0.5 * (strange[:, None] == usual)
        variance = sum(pairs.mean(axis).var(ddof=1) / pairs.shape[1 - axis] for axis in (0, 1))
        assert math.isclose(error, math.sqrt(variance), rel_tol=1e-9, abs_tol=1e-12)
    assert area(np.array([1.0, 2.0]), np.array([np.inf, np.inf]))[0] == 1
    found, error = area(np.array([1.0, 3.0]), np.array([2.0, 4.0]))  # V = (½, 1), U = (1, ½), variances of ⅛ each
    assert (found, round(error, 12)) == (0.75, round(math.sqrt(1 / 8), 12))


def error_is_that_of_repetition(area: Callable[[Array, Array], tuple[float, float]]) -> None:
    random = np.random.default_rng(2)
    found = np.array([area(random.normal(size=25), 2 * random.normal(size=100) + 0.8) for _ in range(4000)])
    spread, claimed = found[:, 0].std(), math.sqrt(np.square(found[:, 1]).mean())
    assert abs(claimed / spread - 1) < 0.05, f"the error claimed is {claimed}, that of repetition {spread}"


def discoveries_are_those_of_the_definition(discoveries: Callable[..., NDArray[np.bool_]]) -> None:
    random = np.random.default_rng(3)
    stepped = np.array([0.01, 0.034, 0.035, 0.036, 0.9])  # the second fails alone and is taken by the fourth
    assert discoveries(stepped, rate=0.05).tolist() == [True, True, True, True, False]
    for _ in range(50):
        p = np.concatenate([random.random(20), 0.02 * random.random(10)]).round(3)
        expected = false_discovery_control(p) <= 0.1
        assert discoveries(p, rate=0.1).tolist() == expected.tolist()


def chance_counts_arrangements(chance: Callable[..., float]) -> None:
    """Of all orders of n held-out rows and m others, each as likely, the share in which c or more are as strange."""
    n, m = 5, 3
    for level, c in itertools.product((0.1, 1 / 6, 0.34, 0.5), range(m + 1)):
        hits, orders = 0, list(itertools.combinations(range(n + m), m))  # places of the others, the strangest first
        for places in orders:
            above = [place - i for i, place in enumerate(places)]  # held-out rows that are stranger
            hits += sum((1 + a) / (n + 1) <= level + 1e-12 for a in above) >= c
        found = chance(c, m, held_out=n, level=level)
        assert math.isclose(found, hits / len(orders), abs_tol=1e-9), f"{found}, not {hits}/{len(orders)}"


def rate_is_read_off_the_curve(rate: Callable[..., float]) -> None:
    random = np.random.default_rng(4)
    for found in (0.5, 0.95, 1.0):
        usual, strange = random.normal(size=60).round(1), random.normal(1, size=40).round(1)
        labels, scores = np.repeat([0, 1], [60, 40]), np.concatenate([usual, strange])
        false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
        assert math.isclose(rate(usual, strange, found=found), false[true >= found - 1e-12].min())
