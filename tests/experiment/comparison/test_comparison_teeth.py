"""Tests of baselines and of paired differences bite: each passes what is right and rejects it with one thing wrong."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from contracts import bandwidths, mixtures, pairs
from scipy import stats

from core import KernelDensity, kernel_density
from discrete.bijections import quantiles
from experiment.building import baselines
from experiment.comparison import paired

MEANS = torch.tensor([[0.0, 0.0], [2.0, -1.0], [0.5, 3.0]], dtype=torch.float64)
L = torch.tensor([[0.8, 0.0], [0.5, 0.3]], dtype=torch.float64)


def kernels_are_normal() -> None:
    x = MEANS + 0.4
    expected = np.log(np.mean([stats.multivariate_normal(m, L @ L.T).pdf(x) for m in MEANS], 0))
    np.testing.assert_allclose(KernelDensity(MEANS, L).log_prob(x), expected, atol=1e-9)


def quantile_is_exact() -> None:
    mixtures.quantile_is_exact(quantiles.ndtri_exp, torch.float32)


def bandwidth_leaves_a_row_out() -> None:
    bandwidths.is_the_best_that_leaves_out_a_row(baselines.bandwidth)


def bootstrap_is_studentized() -> None:
    def differences(a: np.ndarray, b: np.ndarray, *, resamples: int) -> list[paired.PairedDifference]:
        rows, none = [np.atleast_2d(a), np.atleast_2d(b)], [0.0, 0.0]
        return paired.paired_differences(["A", "B"], rows, none, [False, False], resamples=resamples)

    pairs.few_rows_have_the_studentized_bootstrap_of_the_definition(differences)


def holm_keeps_the_chance() -> None:
    pairs.adjusted_p_values_keep_the_chance_of_any_mistake(paired.holm)


def changed(module: Any, name: str, change: Callable[[Any], Any]) -> tuple[Any, str, Any]:
    return module, name, change(getattr(module, name))


TEETH = {
    "kernels without 1/N": (
        kernels_are_normal,
        lambda: changed(kernel_density, "log_mean_kernel", lambda f: lambda z, c: f(z, c) + math.log(len(c))),
    ),
    "kernels of a doubled exponent": (
        kernels_are_normal,
        lambda: changed(kernel_density, "log_mean_kernel", lambda f: lambda z, c: f(2**0.5 * z, 2**0.5 * c)),
    ),
    "a transposed factor": (
        kernels_are_normal,
        lambda: (
            KernelDensity,
            "_whiten",
            lambda self, x: torch.linalg.solve_triangular(self.scale_tril.mT, x.mT, upper=True).mT,
        ),
    ),
    "a bandwidth that leaves no row out": (
        bandwidth_leaves_a_row_out,
        lambda: (baselines, "math", _Finite),
    ),
    "a quantile with a coefficient off by 1e-6": (
        quantile_is_exact,
        lambda: changed(quantiles, "NUMERATOR", lambda c: (*c[:1], c[1] * (1 + 1e-6), *c[2:])),
    ),
    "a quantile from half the logarithm": (
        quantile_is_exact,
        lambda: changed(quantiles, "_lower_quantile", lambda f: lambda log_p: f(log_p / 2 - math.log(2) / 2)),
    ),
    "an interval with its ends as they come": (
        bootstrap_is_studentized,
        lambda: changed(paired, "_studentized", lambda f: lambda rows, resamples: -f(rows, resamples=resamples)),
    ),
    "a spread over n instead of n - 1": (
        bootstrap_is_studentized,
        lambda: changed(
            paired,
            "_studentized",
            lambda f: lambda rows, resamples: f(rows, resamples=resamples) * math.sqrt(len(rows) / (len(rows) - 1)),
        ),
    ),
    "p-values of one pair at a time": (
        holm_keeps_the_chance,
        lambda: (paired, "holm", list),
    ),
    "p-values for one pair more than are left": (
        holm_keeps_the_chance,
        lambda: changed(paired, "holm", lambda f: lambda p: f([*p, *([1.0] * 10)])),
    ),
}


class _Finite:
    """`math` in which a row that is its own neighbour stays where it is."""

    inf, exp, log = 0.0, math.exp, math.log


@pytest.mark.parametrize("name", TEETH)
def test_comparison(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contract, wrong = TEETH[name]
    contract()
    monkeypatch.setattr(*wrong())
    with pytest.raises(AssertionError):
        contract()
