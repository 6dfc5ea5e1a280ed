import itertools
import math

import pytest
import scipy.stats
import torch
from helpers import rng

from experiment.comparison.two_sample import two_sample_test


def draws(rows: int, seed: int, *, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return shift + scale * torch.randn(rows, 2, generator=rng(seed))


def test_energy_distance_is_scipys_on_a_line() -> None:
    x, y = torch.randn(40, 1, generator=rng(0)), torch.randn(30, 1, generator=rng(1)) + 0.5
    found = two_sample_test(x, y, permutations=1, generator=rng(2)).statistic
    assert found == pytest.approx(scipy.stats.energy_distance(x[:, 0], y[:, 0]) ** 2, rel=1e-6)


def test_mmd_is_its_formula() -> None:
    x, y = draws(5, 0).double(), draws(4, 1).double()
    pooled = torch.cat([x, y])
    distances = (pooled[:, None] - pooled).norm(dim=2)
    kernel = torch.exp(-0.5 * (distances / distances[distances > 0].median()) ** 2)
    expected = kernel[:5, :5].mean() + kernel[5:, 5:].mean() - 2 * kernel[:5, 5:].mean()
    found = two_sample_test(x, y, statistic="mmd", permutations=1, generator=rng(2)).statistic
    assert found == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("statistic", ["energy_distance", "mmd"])
def test_p_value_is_uniform_where_the_laws_agree(statistic: str) -> None:
    p = [
        two_sample_test(
            draws(20, 10 + i), draws(25, 200 + i), statistic=statistic, permutations=99, generator=rng(i)
        ).p_value
        for i in range(100)
    ]
    assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("statistic", ["energy_distance", "mmd"])
@pytest.mark.parametrize(("shift", "scale"), [(0.5, 1.0), (0.0, 1.6)])
def test_differences_are_seen(statistic: str, shift: float, scale: float) -> None:
    found = two_sample_test(
        draws(150, 1), draws(150, 2, shift=shift, scale=scale), statistic=statistic, permutations=199, generator=rng(3)
    )
    assert found.p_value < 0.02
    assert found.statistic > 2 * found.null_mean


def test_p_value_counts_the_permutations() -> None:
    """Against all labelings of 3 + 3 points: the share with a statistic as large."""
    x, y = draws(3, 4), draws(3, 5, shift=1.0)
    pooled = torch.cat([x, y])
    every = [
        two_sample_test(pooled[list(c)], pooled[[i for i in range(6) if i not in c]], permutations=1).statistic
        for c in itertools.combinations(range(6), 3)
    ]
    observed = two_sample_test(x, y, permutations=1).statistic
    exact = sum(value >= observed - 1e-12 for value in every) / len(every)
    found = two_sample_test(x, y, permutations=4000, generator=rng(6)).p_value
    assert found == pytest.approx(exact, abs=5 * (exact * (1 - exact) / 4000) ** 0.5 + 1e-3)


def test_images_count_as_flat() -> None:
    x, y = torch.rand(6, 1, 2, 2, generator=rng(7)), torch.rand(5, 1, 2, 2, generator=rng(8))
    flat = two_sample_test(x.flatten(1), y.flatten(1), generator=rng(9))
    assert two_sample_test(x, y, generator=rng(9)) == flat


def test_rows_that_are_all_the_same_do_not_differ() -> None:
    for statistic in ("energy_distance", "mmd"):
        found = two_sample_test(torch.zeros(4, 2), torch.zeros(5, 2), statistic=statistic, permutations=99)
        assert (found.statistic, found.p_value) == (pytest.approx(0.0, abs=1e-12), 1.0)


def test_errors() -> None:
    with pytest.raises(ValueError, match="row 6 of the pooled samples is not"):
        two_sample_test(torch.zeros(5, 2), torch.tensor([[0.0, 1.0], [math.nan, 0.0]]))
    with pytest.raises(ValueError, match="2 rows or more"):
        two_sample_test(torch.zeros(1, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="energy_distance or mmd"):
        two_sample_test(torch.zeros(3, 2), torch.ones(5, 2), statistic="ks", permutations=1)
