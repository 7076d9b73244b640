import io

import numpy as np
import pytest
from PIL import Image

from aecore.image_grid import BACKGROUND, grid, titled_sheet, to_png


def shades(*values, channels=3):
    """Return one image of 4 x 4 pixels for each shade."""
    return np.stack([np.full((4, 4, channels), value, np.uint8) for value in values])


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_has_a_row_for_each_array_and_gaps_of_two_white_pixels(channels):
    image = grid([shades(10, 20, 30, channels=channels), shades(40, channels=channels)])
    assert image.shape == (4 + 2 + 4, 3 * 4 + 2 * 2, 3)
    assert image.dtype == np.uint8
    for x, shade in ((0, 10), (6, 20), (12, 30)):
        assert (image[:4, x : x + 4] == shade).all()
    assert (image[6:, :4] == 40).all()
    assert (image[4:6] == 255).all()
    assert (image[:, 4:6] == 255).all()
    assert (image[6:, 4:] == 255).all()


def test_sheet_has_each_grid_below_its_title():
    first, second = shades(10, 20, 30, 40, 50, 60, 70, 80), shades(30)
    sheet = titled_sheet([("first", [first]), ("second", [second])])
    assert sheet.shape == (2 * (14 + 16 + 4), 46 + 16, 3)
    assert (sheet[22:26, 8:54] == grid([first])).all()
    assert (sheet[56:60, 8:12] == grid([second])).all()
    for title in (sheet[4:22], sheet[38:56]):
        assert (title != BACKGROUND).any()
    for blank in (sheet[:4], sheet[26:38], sheet[60:], sheet[22:26, :8], sheet[22:26, 54:]):
        assert (blank == BACKGROUND).all()


def test_heading_stands_above_the_sections_and_the_sheet_is_as_wide_as_its_longest_text():
    sections = [("a title that is longer than its images", [shades(10)])]
    sheet, headed = titled_sheet(sections), titled_sheet(sections, "the run")
    assert (headed[18:] == sheet).all()
    assert (headed[4:18] != BACKGROUND).any()
    assert (sheet[:, -8:] == BACKGROUND).all()
    assert (sheet[:, -14:-8] != BACKGROUND).any()
    assert titled_sheet([("", [shades(10)])], "the run").shape[1] < headed.shape[1]


def test_png_decodes_to_the_same_pixels():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    decoded = Image.open(io.BytesIO(to_png(image)))
    assert decoded.format == "PNG"
    assert (np.asarray(decoded) == image).all()
