"""An order without memory: a permutation, uniform, another for every seed, and the same however it is asked for."""

import math

import numpy as np
import pytest
import torch
from helpers import Tooth
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiment.data.order import MOST_HELD, FeistelOrder, Order, drawn_order


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1))
def test_every_row_has_one_place(rows: int, seed: int) -> None:
    assert FeistelOrder(rows, seed)[0:rows].sort().values.tolist() == list(range(rows))


def test_every_row_of_more_than_are_held_has_one_place() -> None:
    order = drawn_order(MOST_HELD + 1, 3)
    assert isinstance(order, FeistelOrder)
    assert torch.equal(order[0 : MOST_HELD + 1].sort().values, torch.arange(MOST_HELD + 1))


@pytest.mark.parametrize("rows", [1, 7, 1000, 2**40 + 1])
def test_a_slice_is_a_part_of_the_whole(rows: int) -> None:
    """Asked for from any place on, as a training that goes on does, and in turns, as several processes do."""
    order = FeistelOrder(rows, 5)
    first = order[0:50]
    assert torch.equal(torch.cat([order[0:3], order[3:20], order[20:50]]), first)
    assert torch.equal(order[1:50:4], first[1::4])
    assert first.dtype == torch.int64
    assert bool((first < rows).all())
    assert len(first) == min(rows, 50)
    assert len(order[rows : rows + 5]) == 0


def chi_square(order_of_seed: object, *, rows: int = 61, seeds: int = 3000) -> float:
    """p-value of the table of place against row over many seeds, which has (rows - 1)² degrees of freedom."""
    counts = np.zeros((rows, rows))
    for seed in range(seeds):
        counts[np.arange(rows), order_of_seed(rows, seed)[0:rows].numpy()] += 1
    expected = seeds / rows
    return float(stats.chi2.sf((np.square(counts - expected) / expected).sum(), (rows - 1) ** 2))


def neighbours(order_of_seed: object, *, rows: int = 61, seeds: int = 3000) -> float:
    """p-value of π(i + 1) - π(i) modulo n, which is uniform over 1, …, n - 1 where orders are drawn uniformly."""
    counts = np.zeros(rows)
    for seed in range(seeds):
        order = order_of_seed(rows, seed)[0:rows].numpy()
        counts += np.bincount((order[1:2] - order[:1]) % rows, minlength=rows)
    return float(stats.chisquare(counts[1:]).pvalue)


def shifted(rows: int, seed: int) -> torch.Tensor:
    """Uniform in every place, and no shuffling: rows keep their neighbours."""
    return (torch.arange(rows) + seed) % rows


def stuck(rows: int, seed: int) -> torch.Tensor:
    """The first row stays where it is half the time."""
    held = seed % 2
    order = torch.randperm(rows - held, generator=torch.Generator().manual_seed(seed)) + held
    return torch.cat([torch.arange(held), order])


def uniform(order_of_seed: object) -> None:
    assert chi_square(order_of_seed) > 1e-3


def mixed(order_of_seed: object) -> None:
    assert neighbours(order_of_seed) > 1e-3


@pytest.mark.parametrize(
    "tooth",
    [
        Tooth(uniform, lambda: FeistelOrder, lambda: stuck),
        Tooth(mixed, lambda: FeistelOrder, lambda: shifted),
        Tooth(uniform, lambda: drawn_order, lambda: stuck),
    ],
    ids=["places", "neighbours", "held"],
)
def test_rows_are_uniform_over_places_and_lose_their_neighbours(tooth: Tooth) -> None:
    tooth.bites()


def test_orders_of_two_seeds_agree_by_chance_alone() -> None:
    """Two uniform permutations agree in one place on average, Poisson distributed."""
    orders = [FeistelOrder(10_000, seed)[0:10_000] for seed in (0, 1, 1_000_003, 2**63 - 1)]
    agreeing = [int((a == b).sum()) for i, a in enumerate(orders) for b in orders[:i]]
    assert max(agreeing) <= 8
    correlation = max(abs(np.corrcoef(a.numpy(), np.arange(10_000))[0, 1]) for a in orders)
    assert correlation < 4 / math.sqrt(10_000)


def by_hand(rows: int, seed: int, place: int) -> int:
    """The definition, in whole numbers without end."""
    m = math.isqrt(rows - 1) + 1
    left, right = divmod(place, m)
    for key in np.random.SeedSequence(seed).generate_state(8, np.uint64):
        z = (right + int(key)) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        left, right = right, (left + (z ^ z >> 31) % m) % m
    found = left * m + right
    return found if found < rows else by_hand(rows, seed, found)


@pytest.mark.parametrize("rows", [1, 2, 5, 1000, 2**21 + 1, 10**12])
def test_the_order_is_that_of_its_definition(rows: int) -> None:
    """So that a training that goes on in a later version meets the rows that it would have met."""
    first = rows // 3
    order = FeistelOrder(rows, 7)[first : first + 300]
    assert order.tolist() == [by_hand(rows, 7, place) for place in range(first, min(first + 300, rows))]


def test_the_order_is_pinned() -> None:
    assert FeistelOrder(10**12, 7)[10**11 : 10**11 + 3].tolist() == [344774886550, 358359124265, 374009472609]


def test_up_to_so_many_rows_the_order_is_that_of_torch() -> None:
    order: Order = drawn_order(1000, 3)
    assert torch.equal(order[0:1000], torch.randperm(1000, generator=torch.Generator().manual_seed(3)))
    assert isinstance(drawn_order(1000, 3, most_held=999), FeistelOrder)
    assert isinstance(drawn_order(1000, 3, most_held=math.inf), torch.Tensor)
