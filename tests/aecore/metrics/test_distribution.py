"""Metrics between sets against their definitions, written out for each image."""

import cv2
import numpy as np
import pytest
from scipy.linalg import sqrtm

from aecore.metrics.distribution import Coverage, FrechetDistance, NearestImages, hog_features, nearest_images


@pytest.mark.parametrize("count", [12, 300])  # fewer and more than the 20 features
def test_frechet_distance_equals_its_formula(count):
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (count, 20)) @ rng.normal(0, 1, (20, 20)), rng.normal(1, 2, (250, 20))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    mean_term = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected = mean_term + np.trace(cov_a + cov_b) - 2 * np.trace(sqrtm(cov_a @ cov_b)).real
    assert FrechetDistance(b)(a) == pytest.approx(expected, rel=1e-5)
    assert FrechetDistance(a)(b) == pytest.approx(expected, rel=1e-5)


def test_coverage_counts_real_images_nearer_than_their_fifth_neighbour():
    """Features of length 1 after their centre is removed, in which scale makes no difference."""
    rng = np.random.default_rng(0)
    real, features = rng.normal(3, 1, (40, 6)), rng.normal(3, 1, (4, 6))

    def unit(rows):
        return (rows - real.mean(0)) / np.linalg.norm(rows - real.mean(0), axis=1, keepdims=True)

    covered = 0
    for index, image in enumerate(unit(real)):
        to_others = sorted(np.linalg.norm(np.delete(unit(real), index, 0) - image, axis=1))
        covered += np.linalg.norm(unit(features) - image, axis=1).min() < to_others[4]
    assert 0 < covered < 40
    assert Coverage(real)(features) == covered / 40


def test_nearest_training_image_and_its_ratio_to_the_next_fifty():
    rng = np.random.default_rng(0)
    train, images = (rng.integers(0, 256, (n, 64, 64, 3), np.uint8) for n in (80, 3))
    images[1] = train[7]

    def thumbnail(image):
        return cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).astype(float) / 255

    nearest = nearest_images(images, train)
    for i, image in enumerate(images):
        distances = [np.linalg.norm(thumbnail(image) - thumbnail(other)) for other in train]
        first, *others = sorted(distances)
        assert nearest.index[i] == np.argmin(distances)
        assert nearest.ratio[i] == pytest.approx(first / np.mean(others[:50]), rel=1e-3, abs=2e-3)
    assert nearest.copied == 1 / 3


def test_images_under_a_third_of_the_ratio_count_as_copies():
    ratios = np.array([0.0, 0.333, 0.334, 1.0])
    assert NearestImages(np.arange(4), ratios).copied == 0.5


def test_hog_features_have_four_cells_of_nine_angles_in_blocks_of_32_pixels():
    flat, edges = np.full((96, 96, 3), 100, np.uint8), np.zeros((96, 96, 3), np.uint8)
    edges[:, 48:] = 255  # one vertical edge: gradients of angle 0 in the middle columns alone
    features = hog_features(np.stack([flat, edges, edges[::-1]]))
    assert features.shape == (3, 5 * 5 * 4 * 9)
    assert not features[0].any()
    assert (features[1] == features[2]).all()
    blocks = features[1].reshape(5, 5, 4, 9)  # column, row, cell, angle
    assert (blocks[:, :, :, 1:8].max(), blocks[[0, 4]].max()) == (0, 0)
    assert blocks[[1, 2, 3]].max(axis=(2, 3)).min() > 0
    small = hog_features(np.stack([cv2.resize(edges, (48, 48))]))
    assert small.shape == (1, 900)
