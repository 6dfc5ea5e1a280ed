import math
from itertools import combinations

import numpy as np
import pytest
from contracts import pairs
from scipy import stats

from experiment.comparison import paired
from experiment.comparison.paired import PairedDifference, holm, paired_differences, ranks, tied_groups


def differences(*values: np.ndarray, solver: float = 0.0, resamples: int = 1999) -> list[PairedDifference]:
    names = [chr(ord("A") + i) for i in range(len(values))]
    rows = [np.atleast_2d(v) for v in values]
    return paired_differences(names, rows, [solver] * len(rows), [False] * len(rows), resamples=resamples)


def difference(first: str, second: str, *, significant: bool) -> PairedDifference:
    p = 0.001 if significant else 0.5
    return PairedDifference(first, second, 1.0, 0.1, 0.0, 0.8, 1.2, p, p)


def skewed(n: int, count: int) -> np.ndarray:
    """Rows whose differences are exponential around 0."""
    return np.random.default_rng(0).exponential(size=(count, n)) - 1


def test_what_the_rows_share_cancels() -> None:
    g = np.random.default_rng(0)
    rows, noise = 1e4 * g.normal(size=500), g.normal(size=500)
    (d,) = differences(rows + 0.5 + 0.1 * noise, rows)
    assert (d.first, d.second) == ("A", "B")
    assert d.difference_nats == pytest.approx(0.5 + 0.1 * noise.mean(), abs=1e-9)
    assert d.error_nats == pytest.approx(0.1 * noise.std(ddof=1) / math.sqrt(500), rel=1e-6)
    assert d.low_nats < d.difference_nats < d.high_nats
    assert d.p_value == 1 / 2000


def test_intervals_and_p_values_of_normal_rows_are_those_of_student() -> None:
    rows = np.random.default_rng(1).normal(0.03, 1.0, size=400)
    (d,) = differences(rows, np.zeros(400), resamples=19_999)
    low, high = stats.t.interval(0.95, 399, rows.mean(), stats.sem(rows))
    sign = 1 if d.first == "A" else -1
    assert sorted((sign * d.low_nats, sign * d.high_nats)) == pytest.approx([low, high], abs=0.01)
    assert d.p_value == pytest.approx(stats.ttest_1samp(rows, 0).pvalue, abs=0.02)


def test_p_values_of_equal_models_are_uniform_and_intervals_hold_the_truth_of_skewed_rows() -> None:
    found = [differences(rows, np.zeros(60), resamples=499)[0] for rows in skewed(60, 1000)]
    signs = [1 if d.first == "A" else -1 for d in found]
    held = np.mean([min(s * d.low_nats, s * d.high_nats) <= 0 <= max(s * d.low_nats, s * d.high_nats)
                    for s, d in zip(signs, found, strict=True)])  # fmt: skip
    assert 0.93 < held < 0.97
    for level in (0.05, 0.2, 0.5):
        assert np.mean([d.p_value <= level for d in found]) == pytest.approx(level, abs=3.5 * math.sqrt(level / 1000))
    naive = [abs(rows.mean()) <= 1.96 * rows.std(ddof=1) / math.sqrt(60) for rows in skewed(60, 1000)]
    assert np.mean(naive) < held  # what a normal interval would have held


def test_few_rows_have_the_studentized_bootstrap_of_the_definition() -> None:
    pairs.few_rows_have_the_studentized_bootstrap_of_the_definition(differences)


def test_many_rows_go_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(2).exponential(size=3000) - 0.97
    (whole,) = differences(rows, np.zeros(3000), resamples=9999)
    monkeypatch.setattr(paired, "MOST_BLOCKS", 300)
    (blocks,) = differences(rows, np.zeros(3000), resamples=9999)
    assert blocks.error_nats == whole.error_nats
    assert [blocks.low_nats, blocks.high_nats] == pytest.approx([whole.low_nats, whole.high_nats], abs=0.004)


def test_a_difference_within_the_solver_errors_is_none() -> None:
    rows = np.random.default_rng(3).normal(size=200)
    (sure,) = differences(rows + 0.1, rows)
    (unsure,) = differences(rows + 0.1, rows, solver=0.06)
    assert sure.significant
    assert not unsure.significant
    assert unsure.p_value == 1.0
    assert unsure.low_nats == pytest.approx(0.1 - 0.12)


def test_a_model_against_itself() -> None:
    rows = np.random.default_rng(4).normal(size=50)
    (d,) = differences(rows, rows)
    assert (d.difference_nats, d.error_nats, d.p_value) == (0.0, 0.0, 1.0)


def test_draws_are_averaged_before_rows_are_compared() -> None:
    g = np.random.default_rng(5)
    draws, other = g.normal(size=(4, 100)), g.normal(size=(4, 100)) - 1
    (d,) = differences(draws, other)
    assert d.error_nats == pytest.approx(stats.sem((draws - other).mean(0)))


def test_holm_keeps_the_chance_of_any_mistake() -> None:
    pairs.adjusted_p_values_keep_the_chance_of_any_mistake(holm)


def test_ranks_count_who_is_better() -> None:
    names = ["A", "B", "C"]
    told = {("A", "B"): False, ("A", "C"): True, ("B", "C"): False}
    found = [difference(*pair, significant=s) for pair, s in told.items()]
    assert ranks(names, found) == {"A": 1, "B": 1, "C": 2}
    assert tied_groups(names, found) == {"A": "a", "B": "ab", "C": "b"}


@pytest.mark.parametrize("seed", range(20))
def test_letters_say_what_the_pairs_say(seed: int) -> None:
    names = list("ABCDEF")
    g = np.random.default_rng(seed)
    told = {pair: bool(g.uniform() < 0.5) for pair in combinations(names, 2)}
    letters = tied_groups(names, [difference(*pair, significant=s) for pair, s in told.items()])
    for (a, b), significant in told.items():
        assert bool(set(letters[a]) & set(letters[b])) != significant
    assert all(letters.values())
