"""The table where a search of a root starts: a cubic between any two knots, found without a search."""

import pytest
import torch
from contracts import gaussianizations
from helpers import normal, rng
from torch import Tensor

from discrete.bijections.quantile_table import QuantileTable


def cubic(z: Tensor) -> tuple[Tensor, Tensor]:
    """z³ + z and its slope."""
    return z**3 + z, 3 * z.square() + 1


def table(z: Tensor) -> QuantileTable:
    x, slope = cubic(z)
    return QuantileTable.of(x, z, slope)


def uneven(knots: int) -> Tensor:
    """Two columns of knots at random distances."""
    steps = torch.rand(knots, 2, generator=rng(0), dtype=torch.float64) + 0.5
    return steps.cumsum(0) / knots * 6 - 3


def test_a_cubic_is_given_back_between_uneven_knots() -> None:
    gaussianizations.table_gives_back_a_cubic(QuantileTable.of)


def test_the_error_falls_with_the_fourth_power_of_the_distance() -> None:
    """sinh over ±2."""
    z = torch.linspace(-2, 2, 1001, dtype=torch.float64)[:, None]
    errors = []
    for knots in (31, 61):
        at = torch.linspace(-2, 2, knots, dtype=torch.float64)[:, None]
        found = QuantileTable.of(at.sinh(), at, at.cosh())(z)
        errors.append((found - z.sinh()).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.1)


def test_beyond_the_knots_it_is_the_last_of_them_and_nan_stays_nan() -> None:
    knots = uneven(10)
    z = torch.tensor([[-torch.inf], [-9.0], [9.0], [torch.inf], [torch.nan]], dtype=torch.float64).expand(-1, 2)
    x = table(knots)(z)
    first, last = cubic(knots[0])[0], cubic(knots[-1])[0]
    torch.testing.assert_close(x[:4], torch.stack([first, first, last, last]))
    assert x[4].isnan().all()


def test_knots_below_a_cell_are_counted() -> None:
    knots = uneven(40)
    made = table(knots)
    edges = knots[0] + torch.arange(made.below.shape[1], dtype=torch.float64)[:, None] / made.per_z.T
    between = edges + 1e-9  # where an edge is a knot, both counts are right
    assert torch.equal(made.below.T[1:], torch.searchsorted(knots.T.contiguous(), between.T.contiguous()).T[1:])


def test_crowded_knots_give_a_neighbour_and_equal_ones_a_number() -> None:
    """Thirty knots in one cell, then thirty at one place."""
    crowd = torch.cat(
        [torch.linspace(0, 1e-3, 30, dtype=torch.float64), torch.linspace(1, 50, 20, dtype=torch.float64)]
    )
    x = table(crowd[:, None])(torch.tensor([[5e-4], [1.5], [30.0]], dtype=torch.float64))
    assert 0 < x[0] < 1e-3
    torch.testing.assert_close(x[1:], cubic(torch.tensor([[1.5], [30.0]], dtype=torch.float64))[0])
    same = torch.cat([torch.zeros(30, 1), torch.ones(1, 1)])
    assert table(same)(torch.tensor([[0.0], [0.5], [1.0]])).isfinite().all()
    assert table(torch.zeros(30, 1))(normal(5, (1,), rng(2)).float()).isfinite().all()


def test_events_of_any_shape() -> None:
    knots = normal(30, (2, 3), rng(3)).sort(0).values
    z = normal(50, (2, 3), rng(4))
    flat = table(knots.flatten(1))(z.flatten(1))
    assert torch.equal(table(knots)(z), flat.reshape(50, 2, 3))
