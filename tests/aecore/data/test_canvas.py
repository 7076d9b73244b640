"""Shapes on a canvas by their definitions, in float64."""

import numpy as np
import pytest

from aecore.data.canvas import Canvas


def test_colours_become_the_nearest_of_256():
    colours = np.array([0.0, 0.31, 1.0])
    for colour in (colours, colours / 2 + 0.12, np.array([-0.2, 1.3, 0.999])):
        canvas = Canvas(4, 0.2)
        canvas.full_window().fill(np.ones((4, 4)), colour)
        image = canvas.to_image()
        assert (image.dtype, image.shape) == (np.uint8, (4, 4, 3))
        np.testing.assert_array_equal(image[1, 2], np.rint(np.clip(colour, 0, 1) * 255))


def test_fill_blends_and_shade_multiplies_by_coverage():
    canvas = Canvas(2, 0.0)
    window, coverage = canvas.full_window(), np.array([[0.0, 0.5], [1.0, 0.25]])
    window.fill(np.ones((2, 2)), np.array([0.2, 0.4, 0.8]))
    window.fill(coverage, np.array([1.0, 0.0, 0.0]), opacity=0.5)
    expected = np.array([0.2, 0.4, 0.8])[:, None, None] + coverage * 0.5 * np.array([0.8, -0.4, -0.8])[:, None, None]
    np.testing.assert_allclose(canvas.planes, expected, rtol=1e-6)
    window.shade(coverage, 0.6)
    np.testing.assert_allclose(canvas.planes, expected * (1 - 0.4 * coverage), rtol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 0.3, -1.2])
def test_coordinates_are_rotated_about_the_pivot(angle: float):
    """A unit square of pixel centres; the pivot (0, 0.5) stays, and y points down."""
    canvas = Canvas(40, angle)
    centres = (np.arange(40) + 0.5) / 20 - 1
    x, y = np.meshgrid(centres, centres)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    expected = np.tensordot(rotation, np.stack([x, y - 0.5]), 1)
    np.testing.assert_allclose(canvas.x, expected[0], atol=1e-6)
    np.testing.assert_allclose(canvas.y, expected[1] + 0.5, atol=1e-6)
    np.testing.assert_allclose(canvas.image_x[0], centres, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 0.4, -0.7])
@pytest.mark.parametrize("centre", [(0.1, -0.3), (0.7, 0.6), (-0.5, 0.2)])
def test_window_holds_its_shape_and_not_much_more(angle: float, centre: tuple[float, float]):
    """A filled ellipse is the same in its window as in the whole canvas."""
    canvas, whole = Canvas(64, angle), Canvas(64, angle)
    window = canvas.window(*centre, 0.2, 0.1)
    for target, (x, y) in ((window, (0.0, 0.0)), (whole.full_window(), centre)):
        target.fill(target.coverage(target.ellipse(x, y, 0.2, 0.1)), np.ones(3))
    np.testing.assert_allclose(canvas.planes, whole.planes, atol=1e-5)
    assert whole.planes.any()
    assert max(window.x.shape) <= 64 * (0.2 + 0.1 * abs(np.sin(angle)) + 0.03) + 2


def test_edges_of_a_shape_are_one_pixel_wide_plus_the_blur():
    window = Canvas(10, 0.0).full_window()
    distance = np.array([-1.0, -0.1, -0.05, 0.0, 0.05, 0.1, 1.0])  # a pixel is 0.2 wide
    np.testing.assert_allclose(window.coverage(distance), [1, 1, 0.75, 0.5, 0.25, 0, 0], atol=1e-6)
    np.testing.assert_allclose(window.coverage(distance, 0.2), [1, 0.75, 0.625, 0.5, 0.375, 0.25, 0], atol=1e-6)


def test_distance_to_an_ellipse_and_glow_by_their_formulas():
    window = Canvas(30, 0.0).full_window()
    x, y = (values.astype(np.float64) for values in np.broadcast_arrays(window.x, window.y))
    radius = np.hypot((x - 0.1) / 0.6, (y + 0.2) / 0.3)
    np.testing.assert_allclose(window.ellipse(0.1, -0.2, 0.6, 0.3), (radius - 1) * 0.3, atol=1e-5)
    np.testing.assert_allclose(window.glow(0.1, -0.2, 0.6, 0.3), np.maximum(1 - (radius / 2) ** 2, 0) ** 3, atol=1e-5)
