"""Whether a score tells two sets of rows apart: conformal p-values, and the area under the ROC curve with its error."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom
from sklearn.metrics import average_precision_score

from experiment.errors import UserError
from experiment.likelihood.budget import Array

PValues = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Detection:
    """How well one statistic tells other rows, the positives, from test rows.

    Attributes:
        area: area under the ROC curve: the chance that another row is stranger than a test row.
        area_error: its standard error.
        average_precision: mean precision over the recalls; the share of other rows among all says nothing.
        false_positive_rate: share of test rows that are as strange as the threshold that finds 95 % of the other rows.
        test_share: share of test rows with p ≤ rate, which should be the rate at most.
        test_chance: chance of that share or a larger one where test and validation rows have one law.
        other_share: share of the other rows with p ≤ rate.
        discoveries: other rows that stand out at that false discovery rate.
    """

    area: float
    area_error: float | None
    average_precision: float
    false_positive_rate: float
    test_share: float
    test_chance: float
    other_share: float
    discoveries: int

    def text(self) -> str:
        """One line."""
        error = "" if self.area_error is None else f" ± {self.area_error:.4f}"
        return (
            f"AUC {self.area:.4f}{error}, average precision {self.average_precision:.4f}, "
            f"{self.false_positive_rate:.1%} of test rows flagged where 95% of the others are"
        )


def both_statistics(test: Array, other: Array, held_out: Array, *, rate: float) -> tuple[Detection, Detection]:
    """How well -log p finds other rows among test rows, and how well its distance from the entropy does.

    Args:
        test: -log p of test rows, nats, `(n,)`.
        other: of the rows to be found, `(m,)`.
        held_out: of the rows that give the p-values.
        rate: their level, and false discovery rate.
    """

    def detected(usual: Array, strange: Array, p_values: PValues) -> Detection:
        area, error = area_under_roc(usual, strange)
        p_test, p_other = p_values(test, held_out), p_values(other, held_out)
        flagged = int((p_test <= rate).sum())
        _, order = np.unique(np.concatenate([usual, strange]), return_inverse=True)  # infinity has a place as well
        return Detection(
            area=area,
            area_error=None if math.isnan(error) else error,
            average_precision=float(average_precision_score(np.repeat([0, 1], [len(usual), len(strange)]), order)),
            false_positive_rate=false_positive_rate(usual, strange),
            test_share=flagged / len(test),
            test_chance=chance_of_as_many(flagged, len(test), held_out=len(held_out), level=rate),
            other_share=float((p_other <= rate).mean()),
            discoveries=int(discoveries(p_other, rate=rate).sum()),
        )

    far, far_other = (typicality(scores, held_out) for scores in (test, other))
    return detected(test, other, conformal_p_values), detected(far, far_other, typicality_p_values)


def conformal_p_values(scores: Array, held_out: Array) -> Array:
    """p = (1 + #{i: s_i ≥ s})/(n + 1) of each score s among n held-out scores s_i: how rarely a row is as unlikely.

    For a row of the same law as the held-out rows, exchangeable with them, P(p ≤ α) ≤ α for every α, whatever the model
    is worth; without ties P(p ≤ α) = ⌊α (n + 1)⌋/(n + 1). Ties count against the row, so that p is never too small.

    References:
        Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", 2005, section 2.2.
        Bates, Candès, Lei, Romano and Sesia, "Testing for outliers with conformal p-values", 2023, eq. 1.

    Checked by tests/experiment/other_data/test_detection.py.

    Args:
        scores: larger is stranger, `(m,)`; infinity is the strangest.
        held_out: of rows that the model was not fitted to, `(n,)`.

    Returns:
        `(m,)`, from 1/(n + 1) to 1.

    Example:
        >>> conformal_p_values(np.array([9.0, 2.0, 0.0]), np.array([1.0, 2.0, 3.0])).tolist()
        [0.25, 0.75, 1.0]
    """
    return (1 + _at_least(scores, held_out)) / (len(held_out) + 1)


def typicality_p_values(scores: Array, held_out: Array) -> Array:
    """As `conformal_p_values`, of |s - m| with m the mean of all n + 1 scores, s among them: both tails are strange.

    The mean of the held-out scores alone would be nearer to them than to s, and p too small; with s in it all n + 1
    rows are treated alike. A row that is far too likely is as untypical as one that is far too unlikely.

    References:
        Nalisnick, Matsukawa, Teh and Lakshminarayanan, "Detecting out-of-distribution inputs to deep generative models
        using typicality", 2019, eq. 4, for one row.

    Checked by tests/experiment/other_data/test_detection.py.

    Args:
        scores: -log p, nats, `(m,)`.
        held_out: likewise, `(n,)`, finite.
    """
    n = len(held_out)
    m = (held_out.sum() + scores) / (n + 1)
    # |s_i - m| ≥ |s - m|: as far out as s on its side, or as its mirror image 2m - s on the other. Infinity has none.
    mirror = np.where(np.isfinite(scores), 2 * m - np.where(np.isfinite(scores), scores, 0.0), -scores)
    above = scores >= m
    upper, lower = np.where(above, scores, mirror), np.where(above, mirror, scores)
    count = _at_least(upper, held_out) + np.searchsorted(np.sort(held_out), lower, side="right")
    return (1 + np.minimum(count, n)) / (n + 1)


def typicality(scores: Array, held_out: Array) -> Array:
    """|s - Ĥ| with the entropy Ĥ estimated by the mean of held-out scores, nats: the statistic of both tails."""
    return np.abs(scores - held_out.mean())


def area_under_roc(usual: Array, strange: Array) -> tuple[float, float]:
    """A = P(s > s') + ½ P(s = s') of a strange row's score s and a usual row's s', and its standard error.

    With V_i the share of usual rows below the strange row i and U_j the share of strange rows above the usual row j,
    ties halved, A is the mean of either, and its variance is estimated by S²(V)/m + S²(U)/n.

    References:
        DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
        characteristic curves: a nonparametric approach", 1988, eq. 4 to 6.

    Checked by tests/experiment/other_data/test_detection.py.

    Args:
        usual: scores of the n rows that are not to be found, `(n,)`.
        strange: scores of the m rows that are, `(m,)`.

    Returns:
        A, and its standard error, NaN of a single row in either set.

    Note:
        0 where the sets do not overlap: the estimate then says that no row was seen to be ranked wrong, not that none
        will be.

    Example:
        >>> area_under_roc(np.array([1.0, 2.0]), np.array([2.0, 3.0]))[0]  # 3 pairs in order, 1 tied
        0.875
    """
    V, U = _placements(strange, usual), 1 - _placements(usual, strange)
    if min(len(V), len(U)) < 2:
        return float(V.mean()), math.nan
    return float(V.mean()), math.sqrt(V.var(ddof=1) / len(V) + U.var(ddof=1) / len(U))


def false_positive_rate(usual: Array, strange: Array, *, found: float = 0.95) -> float:
    """Share of usual rows that score as high as the threshold at which that share of the strange rows is found.

    Example:
        >>> false_positive_rate(np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.0, 5.0]), found=1.0)
        0.5
    """
    threshold = np.sort(strange)[::-1][math.ceil(found * len(strange) - 1e-9) - 1]
    return float((usual >= threshold).mean())


def discoveries(p_values: Array, *, rate: float) -> NDArray[np.bool_]:
    """Rows that Benjamini and Hochberg's procedure rejects: the k smallest p-values, k largest with p_(k) ≤ k rate/m.

    The expected share of usual rows among them is `rate` at most, for conformal p-values too, though they share their
    held-out rows.

    References:
        Benjamini and Hochberg, "Controlling the false discovery rate", 1995, eq. 1; Bates et al., 2023, theorem 2.

    Checked by tests/experiment/other_data/test_detection.py.

    Example:
        >>> discoveries(np.array([0.9, 0.01, 0.03, 0.04]), rate=0.05).tolist()
        [False, True, False, False]
    """
    check_rate(rate)
    ordered, m = np.sort(p_values), len(p_values)
    passed = np.flatnonzero(ordered <= rate * np.arange(1, m + 1) / m)
    return p_values <= (ordered[passed[-1]] if len(passed) else -1.0)


def chance_of_as_many(count: int, rows: int, *, held_out: int, level: float) -> float:
    """P(count or more of the rows have p ≤ level) where they are exchangeable with the held-out rows, without ties.

    p ≤ α where a row is stranger than all held-out rows but ⌊α (n + 1)⌋ - 1. The chance of that, over the choice of the
    held-out rows, follows the Beta law of j = ⌊α (n + 1)⌋ and n + 1 - j, and the count that law's binomial mixture.

    References:
        Vovk, "Conditional validity of inductive conformal predictors", 2012, section 3.

    Checked by tests/experiment/other_data/test_detection.py.

    Args:
        count: rows that have such a p-value.
        rows: of how many.
        held_out: n.
        level: α.
    """
    j = math.floor(level * (held_out + 1) + 1e-9)
    if j == 0:
        return 1.0 if count == 0 else 0.0
    return float(betabinom.sf(count - 1, rows, j, held_out + 1 - j))


def check_rate(rate: float) -> None:
    """Refuses what is no rate."""
    if not 0 < rate < 1:
        raise UserError(f"--rate must lie between 0 and 1, such as 0.05, but is {rate}.")


def _at_least(values: Array, sample: Array) -> NDArray[np.int64]:
    """How many of the sample are as large as each value."""
    return len(sample) - np.searchsorted(np.sort(sample), values, side="left")


def _placements(values: Array, sample: Array) -> Array:
    """Share of the sample below each value, ties halved."""
    ordered = np.sort(sample)
    below, not_above = np.searchsorted(ordered, values, side="left"), np.searchsorted(ordered, values, side="right")
    return (below + not_above) / (2 * len(sample))
