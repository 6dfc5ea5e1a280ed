"""Figures draw on odd input and show what they were given."""

import numpy as np
import pytest

from experiment.plots import density_figure, png, sample_figure, tile


@pytest.mark.parametrize(("count", "side"), [(1, 1), (2, 2), (4, 2), (5, 3), (16, 4), (64, 8), (100, 8)])
def test_images_fill_the_smallest_square(count, side):
    rows = np.arange(count * 6, dtype=float).reshape(count, 6)
    sheet = tile(rows, (2, 3))
    assert sheet.shape == (side * 3 + 1, side * 4 + 1)
    np.testing.assert_array_equal(sheet[1:3, 1:4], rows[0].reshape(2, 3))
    if count > 1:
        np.testing.assert_array_equal(sheet[1:3, 5:8], rows[1].reshape(2, 3))


@pytest.mark.parametrize("flat", [True, False])
def test_colour_images_lie_in_a_square_with_their_colours_last(flat):
    images = np.arange(5 * 3 * 2 * 4, dtype=float).reshape(5, 3, 2, 4)
    sheet = tile(images.reshape(5, -1) if flat else images, (3, 2, 4))
    assert sheet.shape == (3 * 3 + 1, 3 * 5 + 1, 3)
    np.testing.assert_array_equal(sheet[1:3, 1:5], images[0].transpose(1, 2, 0))
    np.testing.assert_array_equal(sheet[4:6, 6:10], images[4].transpose(1, 2, 0))


def test_grey_images_may_keep_their_channel():
    rows = np.arange(5 * 6, dtype=float).reshape(5, 6)
    np.testing.assert_array_equal(tile(rows.reshape(5, 1, 2, 3), (2, 3)), tile(rows, (2, 3)))


@pytest.mark.parametrize("image_shape", [(2, 2), (3, 2, 2)])
@pytest.mark.parametrize(("bins", "top"), [(256, 255.0), (None, 51.0)])
def test_images_share_one_scale(image_shape, bins, top):
    """Levels of integers, or the range of the first; what lies outside is drawn as its end."""
    size = int(np.prod(image_shape))
    rows = np.zeros((1, size))
    rows[0, -1] = 51.0
    samples = {"data": rows, "model": np.full((1, size), 102.0), "far": np.full((1, size), 1e9)}
    figure = sample_figure(samples, image_shape=image_shape, bins=bins, title="t")
    data, model, far = (axis.images[0] for axis in figure.axes)
    assert data.get_clim() == model.get_clim() == far.get_clim() == (0, 1)
    np.testing.assert_allclose(data.get_array()[2, 2], np.float64([0, 0, 51 / top]) if size == 12 else 51 / top)
    np.testing.assert_allclose(model.get_array()[1, 1], min(102 / top, 1))
    np.testing.assert_allclose(far.get_array()[1, 1], 1)
    assert png(figure).startswith(b"\x89PNG")


def test_a_constant_image_is_drawn():
    assert png(sample_figure({"a": np.zeros((1, 12))}, image_shape=(3, 2, 2), title="t")).startswith(b"\x89PNG")


@pytest.mark.parametrize("rows", [np.zeros((3, 1)), np.zeros((3, 2)), np.random.default_rng(0).normal(size=(5, 7))])
def test_points_of_any_width_are_drawn(rows):
    assert png(sample_figure({"a": rows, "b": rows}, image_shape=None, title="t")).startswith(b"\x89PNG")


def test_densities_share_one_scale():
    low, high = np.full((10, 10), 0.1), np.full((10, 10), 0.4)
    figure = density_figure({"low": low, "high": high}, extent=(-1, 1, -1, 1), title="t")
    assert [axis.images[0].get_clim() for axis in figure.axes] == [(0, 0.4), (0, 0.4)]


@pytest.mark.parametrize(("count", "lines"), [(1, 1), (7, 1), (8, 2), (13, 2), (15, 3)])
def test_many_panels_stand_on_several_lines(count, lines):
    """All of them drawn, none beside the others that would not be read, and empty places empty."""
    grids = {f"model {i}": np.full((2, 2), i + 1.0) for i in range(count)}
    figure = density_figure(grids, extent=(0, 1, 0, 1), title="densities")
    drawn = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in drawn] == list(grids)
    assert len({axis.get_subplotspec().rowspan.start for axis in drawn}) == lines
    assert all(not axis.axison for axis in figure.axes if not axis.images)
    assert figure.get_figwidth() <= 3.4 * 7


def test_cells_of_a_coarser_density_are_seen_and_panels_are_as_flat_as_the_plane():
    grids = {"test data": np.ones((3, 3)), "model": np.ones((9, 9))}
    flat, square = (density_figure(grids, extent=(0, 2, 0, high), title="t") for high in (1, 2))
    assert [axis.images[0].get_interpolation() for axis in flat.axes] == ["nearest", "bilinear"]
    assert flat.get_figheight() < square.get_figheight()
