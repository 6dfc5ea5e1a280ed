from collections.abc import Callable

import pytest
import torch
from helpers import rng, seeded
from torch import Tensor

from cflows import ScoreSDE
from cflows.samplers.euler_maruyama import EulerMaruyama
from core import DiagonalNormal, GenerativeModel, StandardLogistic, StandardNormal
from core.rng import RowGenerators, for_all_rows, rand, randn
from discrete import RealNVP

LIKE = torch.zeros((), dtype=torch.float64)
LAWS = {"randn": (randn, torch.randn), "rand": (rand, torch.rand)}


@pytest.mark.parametrize("law", LAWS)
def test_one_generator_is_torchs_own(law: str) -> None:
    ours, theirs = LAWS[law]
    assert torch.equal(ours((2, 3), rng(4), like=LIKE), theirs(2, 3, generator=rng(4), dtype=torch.float64))
    torch.manual_seed(5)
    expected = theirs(2, 3)
    torch.manual_seed(5)
    assert torch.equal(ours((2, 3), None, like=torch.zeros(())), expected)


@pytest.mark.parametrize("law", LAWS)
def test_a_row_is_drawn_from_its_seed(law: str) -> None:
    """As from a generator of that seed alone, draw after draw."""
    ours, theirs = LAWS[law]
    generators, alone = RowGenerators([7, 8, 9]), rng(8)
    for _ in range(2):
        drawn = ours((3, 2, 2), generators, like=LIKE)
        assert torch.equal(drawn[1], theirs(2, 2, generator=alone, dtype=torch.float64))


def test_order_of_rows() -> None:
    forwards, backwards = (randn((3, 4), RowGenerators(seeds), like=LIKE) for seeds in ([1, 2, 3], [3, 2, 1]))
    assert torch.equal(forwards, backwards.flip(0))
    assert not torch.equal(forwards[0], forwards[1])


def test_the_same_seed_twice_is_the_same_row_twice() -> None:
    drawn = randn((2, 4), RowGenerators([6, 6]), like=LIKE)
    assert torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("size", [(6, 5), (2, 3, 5), (3, 2, 5), (1, 6, 1, 5), (6, 1, 5), (6, 5, 1)])
def test_leading_sizes_multiply_to_the_rows(size: tuple[int, ...]) -> None:
    drawn = randn(size, RowGenerators(range(6)), like=LIKE)
    assert drawn.shape == size
    assert torch.equal(drawn.reshape(6, 5), randn((6, 5), RowGenerators(range(6)), like=LIKE))


@pytest.mark.parametrize("size", [(), (2, 5), (4, 3), (5, 6)])
def test_shapes_that_do_not_fit(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"6 row generators cannot draw values of shape .*: one row each"):
        randn(size, RowGenerators(range(6)), like=LIKE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_device_are_those_of_like(dtype: torch.dtype) -> None:
    assert randn((2, 3), RowGenerators([0, 1]), like=torch.zeros((), dtype=dtype)).dtype == dtype
    assert rand((2, 3), RowGenerators([0, 1]), like=torch.zeros((), device="meta")).device.type == "meta"


def test_rows_share_the_state() -> None:
    """What some rows draw, all of them have drawn."""
    generators, whole = RowGenerators([1, 2, 3]), RowGenerators([1, 2, 3])
    some = generators.rows([2, 0])
    assert (len(generators), len(some)) == (3, 2)
    first = randn((2, 4), some, like=LIKE)
    expected = randn((3, 4), whole, like=LIKE)
    assert torch.equal(first, expected[[2, 0]])
    later = randn((3, 4), generators, like=LIKE)
    assert torch.equal(later[1], expected[1])
    assert torch.equal(later[[0, 2]], randn((3, 4), whole, like=LIKE)[[0, 2]])


@pytest.mark.parametrize("seeds", [[], [1, -1]])
def test_seeds_that_make_no_rows(seeds: list[int]) -> None:
    with pytest.raises(ValueError, match="one seed a row, each 0 or more"):
        RowGenerators(seeds)


def test_what_takes_one_generator_says_so() -> None:
    generator = rng(0)
    assert for_all_rows(generator, owner="it") is generator
    assert for_all_rows(None, owner="it") is None
    with pytest.raises(TypeError, match=r"HMC draws for all rows at once: it takes one torch\.Generator, not RowGen"):
        for_all_rows(RowGenerators([0]), owner="HMC")


MODELS: dict[str, Callable[[], GenerativeModel]] = {
    "standard-normal": lambda: StandardNormal((2, 2)),
    "diagonal-normal": lambda: DiagonalNormal(3, loc=1.0),
    "standard-logistic": lambda: StandardLogistic(3),
    "real-nvp": lambda: RealNVP(3, layers=2, hidden=(8,)),
    "score-sde": lambda: ScoreSDE(3, hidden=(8,), frequencies=2, sampler=EulerMaruyama(steps=5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_sample_does_not_know_its_batch(name: str) -> None:
    """Alone, elsewhere in the batch, and in a batch of another shape: the same sample of the same seed."""
    model = seeded(MODELS[name]).double().eval()

    def draw(seeds: list[int], *shape: int) -> Tensor:
        return model.sample(shape, generator=RowGenerators(seeds)).reshape(len(seeds), -1)

    batch = draw([3, 4, 5, 6], 4)
    torch.testing.assert_close(draw([5], 1), batch[2:3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(draw([5]), batch[2:3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(draw([6, 4], 2), batch[[3, 1]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(draw([3, 4, 5, 6], 2, 2), batch, rtol=1e-12, atol=1e-12)
    assert not torch.equal(batch[0], batch[1])


def test_one_generator_is_not_enough_for_many_rows() -> None:
    with pytest.raises(ValueError, match="1 row generators cannot draw"):
        randn((5, 3), RowGenerators([1]), like=LIKE)
    with pytest.raises(ValueError, match="2 row generators, but row 4 asks"):
        RowGenerators([1, 2]).rows([0, 4])


def test_a_single_draw_is_one_row() -> None:
    base = StandardNormal(3)
    one = base.sample((), generator=RowGenerators([7]))
    assert one.shape == (3,)
    assert torch.equal(one, base.sample((1,), generator=RowGenerators([7]))[0])
