"""Figures draw on odd input and show what they were given."""

import numpy as np
import pytest

from experiment.plots import _tile, density_figure, png, sample_figure


@pytest.mark.parametrize(("count", "side"), [(1, 1), (2, 2), (4, 2), (5, 3), (16, 4), (64, 8), (100, 8)])
def test_images_fill_the_smallest_square(count, side):
    rows = np.arange(count * 6, dtype=float).reshape(count, 6)
    sheet = _tile(rows, (2, 3))
    assert sheet.shape == (side * 3 + 1, side * 4 + 1)
    np.testing.assert_array_equal(sheet[1:3, 1:4], rows[0].reshape(2, 3))
    if count > 1:
        np.testing.assert_array_equal(sheet[1:3, 5:8], rows[1].reshape(2, 3))


@pytest.mark.parametrize("rows", [np.zeros((3, 1)), np.zeros((3, 2)), np.random.default_rng(0).normal(size=(5, 7))])
def test_points_of_any_width_are_drawn(rows):
    assert png(sample_figure({"a": rows, "b": rows}, image_shape=None, title="t")).startswith(b"\x89PNG")


def test_densities_share_one_scale():
    low, high = np.full((10, 10), 0.1), np.full((10, 10), 0.4)
    figure = density_figure({"low": low, "high": high}, extent=(-1, 1, -1, 1), title="t")
    assert [axis.images[0].get_clim() for axis in figure.axes] == [(0, 0.4), (0, 0.4)]
