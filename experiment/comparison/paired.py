"""Differences between models on the same rows: bootstrap intervals, p-values for all pairs at once, ranks, ties."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from string import ascii_lowercase

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 9_999
MOST_BLOCKS = 10_000  # of rows, at random: means of several rows are resampled as well as the rows
CHUNK = 200  # resamples at a time
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True)
class PairedDifference:
    """Mean of log p_first - log p_second over shared rows and draws, nats: what the rows have in common cancels.

    Attributes:
        first: name of a run.
        second: name of another.
        difference_nats: above 0 where the first is better.
        error_nats: standard error over rows.
        solver_error_nats: most that the solvers of both can add, which no number of rows takes away.
        low_nats: lower end of the 95 % interval, the solver errors included.
        high_nats: upper end.
        p_value: of no difference beyond the solver errors, two-sided.
        adjusted_p_value: the same for all pairs at once: below 0.05 one chance in twenty that any of them is wrong.
        bound: whether one of the two is a bound: then an advantage of the other may be the gap of the bound.
    """

    first: str
    second: str
    difference_nats: float
    error_nats: float
    solver_error_nats: float
    low_nats: float
    high_nats: float
    p_value: float
    adjusted_p_value: float
    bound: bool = False

    @property
    def significant(self) -> bool:
        """Whether the two differ, by the adjusted p-value."""
        return self.adjusted_p_value < 1 - LEVEL


def paired_differences(
    names: Sequence[str],
    log_prob: Sequence[Array],
    solver_errors: Sequence[float],
    bounds: Sequence[bool],
    *,
    resamples: int = RESAMPLES,
) -> list[PairedDifference]:
    """Every pair of models, the first of each being the better.

    With d the mean difference of a pair and s its standard error, t* = (d* - d)/s* of rows drawn anew gives the
    interval [d - t*_(97.5 %) s, d - t*_(2.5 %) s], which is right to the second order in 1/√n where rows are skewed,
    and p = (1 + #{|t*| ≥ |t|})/(1 + resamples). The same rows are drawn for every pair. Holm's step-down adjusts the
    p-values for the number of pairs.

    References:
        Efron and Tibshirani, "An introduction to the bootstrap", 1993, section 12.5 and eq. 16.5. Holm, "A simple
        sequentially rejective multiple test procedure", 1979.

    Checked by tests/experiment/comparison/test_paired.py.

    Args:
        names: one a model.
        log_prob: log-densities of each model, `(draws, rows)`, of the same rows, nats.
        solver_errors: mean solver error of each, nats; two may add up.
        bounds: whether what a model gives is a bound.
        resamples: number of bootstrap samples.

    Returns:
        One a pair, in the order of the models by their means.
    """
    values = np.stack([v.mean(0) for v in log_prob])
    order = sorted(range(len(names)), key=lambda i: -values[i].mean())
    pairs = list(combinations(order, 2))
    if not pairs:
        return []
    # Taken from every row, what the models share leaves the squares of small differences their digits.
    rows = np.stack([values[i] - values[j] for i, j in pairs], 1)
    mean, error = rows.mean(0), rows.std(0, ddof=1) / math.sqrt(len(rows))
    t = _studentized(rows, resamples=resamples)
    found = []
    for k, (i, j) in enumerate(pairs):
        solver = solver_errors[i] + solver_errors[j]
        low, high = np.quantile(t[:, k], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        # Equal rows differ by nothing; rows that differ by a constant differ beyond all chance.
        excess = max(0.0, mean[k] - solver)
        beyond = excess / error[k] if error[k] > 0 else 0.0 if excess == 0 else math.inf
        p = (1 + np.count_nonzero(np.abs(t[:, k]) >= beyond)) / (1 + resamples)
        found.append(
            PairedDifference(
                first=names[i],
                second=names[j],
                difference_nats=float(mean[k]),
                error_nats=float(error[k]),
                solver_error_nats=solver,
                low_nats=float(mean[k] - high * error[k]) - solver,
                high_nats=float(mean[k] - low * error[k]) + solver,
                p_value=float(p),
                adjusted_p_value=math.nan,
                bound=bounds[i] or bounds[j],
            )
        )
    adjusted = holm([d.p_value for d in found])
    return [replace(d, adjusted_p_value=p) for d, p in zip(found, adjusted, strict=True)]


def _studentized(rows: Array, *, resamples: int) -> Array:
    """(d* - d)/s* of the mean of each column, `(resamples, columns)`, the same rows for all."""
    scale = rows.std(0)
    centred = (rows - rows.mean(0)) / np.where(scale > 0, scale, 1.0)
    if len(rows) > MOST_BLOCKS:
        random = np.random.default_rng(SEED).permutation(centred)
        centred = np.stack([block.mean(0) for block in np.array_split(random, MOST_BLOCKS)])
        centred = centred - centred.mean(0)
    n, columns = centred.shape
    both = np.concatenate([centred, centred**2], 1)
    generator = np.random.default_rng(SEED)
    parts = []
    for start in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - start)
        drawn = generator.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n) / n
        mean, square = np.split(weights @ both, [columns], 1)
        error = np.sqrt(np.maximum(square - mean**2, 0.0) / (n - 1))
        parts.append(np.divide(mean, error, out=np.zeros_like(mean), where=error > 0))
    return np.concatenate(parts)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that the chance of any wrong rejection is kept: (m - i) p_(i), never falling.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = largest
    return adjusted


def ranks(names: Sequence[str], differences: Sequence[PairedDifference]) -> dict[str, int]:
    """1 and the number of models that are significantly better, of each."""
    return {name: 1 + sum(d.significant and d.second == name for d in differences) for name in names}


def tied_groups(names: Sequence[str], differences: Sequence[PairedDifference]) -> dict[str, str]:
    """Letters of each model: two that share one are not told apart by the rows.

    References:
        Piepho, "An algorithm for a letter-based representation of all-pairwise comparisons", 2004: insert and absorb.

    Args:
        names: best first: the first group is that of the best.
        differences: all pairs.
    """
    groups = [frozenset(names)]
    for d in (d for d in differences if d.significant):
        apart = [
            part for g in groups for part in ([g - {d.first}, g - {d.second}] if {d.first, d.second} <= g else [g])
        ]
        groups = [g for i, g in enumerate(apart) if not any(g < h or (g == h and j < i) for j, h in enumerate(apart))]
    groups.sort(key=lambda g: sorted(names.index(name) for name in g))
    return {name: "".join(_letter(i) for i, g in enumerate(groups) if name in g) for name in names}


def _letter(i: int) -> str:
    return ascii_lowercase[i] if i < len(ascii_lowercase) else f"({i + 1})"
