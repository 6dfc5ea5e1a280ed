"""What paired differences promise."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from experiment.comparison.paired import PairedDifference

Differences = Callable[..., list[PairedDifference]]


def few_rows_have_the_studentized_bootstrap_of_the_definition(differences: Differences) -> None:
    """Against a loop: with eight rows √(n - 1) and √n are 7 % apart."""
    rows, g = np.random.default_rng(7).exponential(size=8), np.random.default_rng(8)
    drawn = rows[g.integers(8, size=(20_000, 8))]
    error = drawn.std(1, ddof=1) / math.sqrt(8)
    t = (drawn.mean(1) - rows.mean())[error > 0] / error[error > 0]
    low, high = np.quantile(t, [0.025, 0.975])
    sem = rows.std(ddof=1) / math.sqrt(8)
    (d,) = differences(rows + 1, np.zeros(8), resamples=20_000)
    assert d.low_nats == pytest.approx(1 + rows.mean() - high * sem, abs=0.03 * sem * high)
    assert d.high_nats == pytest.approx(1 + rows.mean() - low * sem, abs=0.03 * sem * abs(low))


def adjusted_p_values_keep_the_chance_of_any_mistake(adjust: Callable[[Any], list[float]]) -> None:
    g = np.random.default_rng(6)
    p_values = g.uniform(size=(4000, 10))
    assert np.mean([min(adjust(p)) < 0.05 for p in p_values]) == pytest.approx(0.05, abs=0.012)
    assert np.mean(p_values.min(1) < 0.05) > 0.3  # without it
