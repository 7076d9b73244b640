import numpy as np
import pytest

from aecore.data.synthetic_faces import draw_face, face_factors, paint_face


def test_a_face_is_a_pure_function_of_seed_and_index():
    first, factors = draw_face(3, 7)
    repeated, _ = draw_face(3, 7)
    assert first.shape == (96, 96, 3)
    assert first.dtype == np.uint8
    assert (first == repeated).all()
    assert factors == face_factors(3, 7)
    assert (first != draw_face(3, 8)[0]).any()
    assert (first != draw_face(4, 7)[0]).any()


@pytest.mark.parametrize("size", [16, 28, 64, 128])
def test_a_face_looks_the_same_at_every_size(size: int):
    small, large = draw_face(0, 1, size)[0], draw_face(0, 1, 2 * size)[0]
    shrunk = large.reshape(size, 2, size, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small).mean() < 12


def test_factors_keep_their_ranges_and_are_independent():
    rows = np.array([list(face_factors(0, index).values()) for index in range(2000)])
    assert rows.min() >= -1
    assert rows.max() <= 1
    correlation = np.corrcoef(rows.T) - np.eye(rows.shape[1])
    assert np.abs(correlation).max() < 0.12


@pytest.mark.parametrize("factor", list(face_factors(0, 0)))
def test_each_factor_changes_the_image(factor: str):
    factors = face_factors(0, 3) | {"hair_length": 0.8, "glasses": 0.0, "fringe": 0.0, "mouth_open": 0.9}
    far = 0.5 if factor in ("background", "clothes") else 1.0  # hues go round
    low, high = paint_face(factors | {factor: 0.0}), paint_face(factors | {factor: far})
    assert (np.abs(low.astype(int) - high).max(axis=2) > 8).sum() > 12
