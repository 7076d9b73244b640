"""The metrics rank real images above gray, noise, blurred, mixed and repeated images, and find copies."""

import cv2
import numpy as np
import pytest

from aecore.data.synthetic_faces import draw_face
from aecore.metrics.distribution import FrechetDistance
from aecore.metrics.suite import MetricSuite

COUNT = 200
NOT_FACES = ("gray", "noise", "blurred")


def faces(seed, count=COUNT):
    return np.stack([draw_face(seed, index)[0] for index in range(count)])


@pytest.fixture(scope="module")
def metrics():
    """Return the metrics of each set of images against synthetic faces, with few patches in `swd`."""
    train, fresh = faces(0), faces(1)
    suite = MetricSuite(train)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aecore.metrics.pixel.NUM_PATCHES", 4096)
        return score_sets(suite, train, fresh)


def score_sets(suite, train, fresh):
    noise = np.random.default_rng(0).integers(0, 256, fresh.shape, np.uint8)
    return {
        "real": suite(faces(2)),
        "fresh": suite(fresh),
        "train": suite(train),
        "gray": suite(np.full_like(fresh, 128)),
        "noise": suite(noise),
        "one": suite(np.repeat(train[:1], COUNT, 0)),
        "blurred": suite(np.stack([cv2.GaussianBlur(face, (0, 0), 6) for face in fresh])),
        "mixed": suite(fresh // 2 + np.roll(fresh, 1, 0) // 2),
        "noisy": suite(np.clip(fresh + np.random.default_rng(0).normal(0, 2, fresh.shape), 0, 255).astype(np.uint8)),
    }


def test_face_detector_finds_faces_alone(metrics):
    assert metrics["real"]["faces"] > 0.9
    assert metrics["fresh"]["faces"] > 0.9
    assert metrics["noisy"]["faces"] > 0.9
    assert metrics["gray"]["faces"] == 0
    assert metrics["noise"]["faces"] < 0.02
    assert metrics["blurred"]["faces"] < 0.5


@pytest.mark.parametrize("key", ["hog_frechet", "swd"])
def test_distances_are_small_for_real_images_alone(metrics, key):
    assert metrics["fresh"][key] == pytest.approx(metrics["real"][key], rel=0.3)
    assert metrics["fresh"][key] < 0.4 * min(metrics[name][key] for name in (*NOT_FACES, "one"))
    assert metrics["fresh"][key] < 0.8 * metrics["mixed"][key]
    assert metrics["gray"][key] > metrics["blurred"][key]


def test_hog_frechet_of_the_training_set_is_zero(metrics):
    assert metrics["train"]["hog_frechet"] < 1e-3


def test_coverage_is_high_for_varied_real_images_alone(metrics):
    assert metrics["train"]["coverage"] == 1
    assert metrics["fresh"]["coverage"] == pytest.approx(metrics["real"]["coverage"], abs=0.1)
    assert metrics["real"]["coverage"] > 0.8
    assert all(metrics[name]["coverage"] <= 0.05 for name in (*NOT_FACES, "one"))
    assert metrics["mixed"]["coverage"] < 0.8 * metrics["fresh"]["coverage"]


def test_copies_are_separated_from_similar_images(metrics):
    assert metrics["train"]["copied"] == metrics["one"]["copied"] == 1
    assert all(metrics[name]["copied"] < 0.05 for name in ("real", "fresh", "mixed", *NOT_FACES))
    assert all(metrics[name]["nearest_train"] > 0.5 for name in ("real", "fresh", "mixed", *NOT_FACES))


def test_frechet_distance_of_gaussians():
    """The closed form for diagonal covariances: |m|^2 + sum (s1 - s2)^2."""
    rng = np.random.default_rng(0)
    a = rng.normal(0, [1, 2, 3], (200_000, 3))
    b = rng.normal([1, 0, 0], [1, 1, 5], (200_000, 3))
    assert FrechetDistance(b)(a) == pytest.approx(1 + 0 + 1 + 4, rel=0.02)
    assert FrechetDistance(a)(a) == pytest.approx(0, abs=1e-9)
    small = rng.normal(0, 1, (10, 30))
    assert FrechetDistance(small)(small) == pytest.approx(0, abs=1e-9)
    assert FrechetDistance(small)(small + 2) == pytest.approx(4 * 30, rel=1e-9)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (16, 3)])
def test_other_sizes_and_gray_images_have_metrics(size, channels):
    images = np.random.default_rng(0).integers(0, 256, (80, size, size, channels), np.uint8)
    scores = MetricSuite(images)(images)
    assert scores["coverage"] == 1
    assert scores["faces"] < 0.1
