"""Columns of a table against draws: the lines of the corner plot, its names, and axes of unlike units."""

from types import SimpleNamespace

import matplotlib.figure
import numpy as np
import pytest
import torch
from contracts import masses_inside
from helpers import Tooth

from experiment.comparison import figures
from experiment.data import Dataset
from experiment.plots import density_figure, png, sample_figure


def dataset(columns: int, rows: int = 600, names: tuple[str, ...] | None = None) -> Dataset:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(columns)
    return Dataset("table", train=x, validation=x, test=x, columns=names)


def entry(columns: int, rows: int = 600) -> SimpleNamespace:
    draws = np.random.default_rng(0).normal(size=(rows, columns)) * 10.0 ** np.arange(columns)
    return SimpleNamespace(draws=draws, summary=SimpleNamespace(run="flow"))


def test_lines_hold_their_share() -> None:
    masses_inside.hold_their_share(figures.levels_of_mass)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p, shares: np.sort(p, axis=None)[np.searchsorted(np.sort(p, axis=None).cumsum() / p.sum(), shares)],
        lambda p, shares: p.max() * (1 - np.array(shares)),
        lambda p, shares: np.quantile(p, 1 - np.array(shares)),
    ],
    ids=["mass below the line", "shares of the height", "shares of the cells"],
)
def test_lines_of_something_else_are_rejected(wrong: object) -> None:
    Tooth(masses_inside.hold_their_share, lambda: figures.levels_of_mass, lambda: wrong).bites()


def test_each_column_is_on_the_diagonal_with_its_name_and_pairs_below_it() -> None:
    figure = figures.corner_figure(entry(4), dataset(4, names=("a", "b", "c", "d")))  # type: ignore[arg-type]
    axes = np.array(figure.axes).reshape(4, 4)
    assert [axis.get_xlabel() for axis in axes[-1]] == ["a", "b", "c", "d"]
    assert [axis.get_ylabel() for axis in axes[1:, 0]] == ["b", "c", "d"]
    drawn = np.array([[axis.axison for axis in line] for line in axes])
    np.testing.assert_array_equal(drawn, np.tri(4, dtype=bool))
    points = axes[2, 1].collections[0].get_offsets()
    np.testing.assert_allclose(points, dataset(4).test[:, [1, 2]].numpy(), rtol=1e-6)


@pytest.mark.parametrize(("columns", "rows"), [(3, 12), (7, 600)])
def test_few_rows_and_many_columns_are_drawn(columns: int, rows: int) -> None:
    figure = figures.corner_figure(entry(columns, rows), dataset(columns, rows))  # type: ignore[arg-type]
    assert len(figure.axes) == min(columns, 6) ** 2
    assert png(figure).startswith(b"\x89PNG")


def test_draws_far_from_the_rows_leave_the_plot_whole() -> None:
    far = entry(3)
    far.draws += 1e6
    assert png(figures.corner_figure(far, dataset(3))).startswith(b"\x89PNG")  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "aspect"), [(2.0, 1.0), (500.0, "auto")])
def test_axes_of_unlike_units_fill_their_panel(height: float, aspect: object) -> None:
    points = sample_figure({"data": np.array([[0.0, 0.0], [1.0, height]])}, image_shape=None, title="")
    density = density_figure({"data": np.ones((4, 4))}, extent=(0, 1, 0, height), title="")
    assert [figure.axes[0].get_aspect() for figure in (points, density)] == [aspect, aspect]
    assert isinstance(points, matplotlib.figure.Figure)
