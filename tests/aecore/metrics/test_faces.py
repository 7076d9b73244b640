"""Find faces in square images and in photos, by the face detector."""

import numpy as np
import pytest

from aecore.data.synthetic_faces import draw_face
from aecore.metrics.face_detector import largest_face, shrink_photo, typical_face


def paste(photo: np.ndarray, face: np.ndarray, left: int, top: int) -> np.ndarray:
    photo[top : top + len(face), left : left + len(face)] = face
    return photo


def gray(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 110, np.uint8)


def test_typical_face_is_the_median_of_images_in_which_one_is_found():
    faces = [draw_face(seed, 0, 32)[0] for seed in range(9)]
    x, y, side = typical_face([*faces, *[gray(32, 32)] * 4])
    assert (x, y, side) == pytest.approx((0.5, 0.56, 0.6), abs=0.05)
    assert typical_face([*faces, *[gray(32, 32)] * 10]) is None


@pytest.mark.parametrize(("width", "height", "scale"), [(400, 300, 1), (300, 400, 1), (1600, 1200, 4)])
def test_largest_face_of_a_photo_is_found_in_its_pixels(width: int, height: int, scale: int):
    photo = paste(gray(width, height), draw_face(3, 0, 120 * scale)[0], 150 * scale, 60 * scale)
    paste(photo, draw_face(4, 0, 60 * scale)[0], 20 * scale, 20 * scale)  # a smaller one
    face = largest_face(shrink_photo(photo))
    assert face is not None
    expected = [scale * value for value in (150 + 60, 60 + 0.56 * 120, 0.6 * 120)]
    assert face == pytest.approx(expected, abs=10 * scale)
    assert largest_face(shrink_photo(photo[..., :1])) == pytest.approx(expected, abs=10 * scale)  # gray


def test_a_photo_without_a_face_has_none():
    assert largest_face(shrink_photo(gray(400, 300))) is None
    assert largest_face(shrink_photo(gray(3, 1))) is None
    tiny = paste(gray(800, 800), draw_face(3, 0, 60)[0], 300, 300)
    assert largest_face(shrink_photo(tiny)) is None
