"""A metric counts only if a gray image, noise, one repeated image, and the training set get what they deserve."""

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
def told():
    """What each set of images is told, against drawn faces."""
    train, fresh = faces(0), faces(1)
    scores = MetricSuite(train, faces(2))
    noise = np.random.default_rng(0).integers(0, 256, fresh.shape, np.uint8)
    return {
        "real": scores.real,
        "fresh": scores(fresh),
        "train": scores(train),
        "gray": scores(np.full_like(fresh, 128)),
        "noise": scores(noise),
        "one": scores(np.repeat(train[:1], COUNT, 0)),
        "blurred": scores(np.stack([cv2.GaussianBlur(face, (0, 0), 6) for face in fresh])),
        "mixed": scores(fresh // 2 + np.roll(fresh, 1, 0) // 2),
        "noisy": scores(np.clip(fresh + np.random.default_rng(0).normal(0, 2, fresh.shape), 0, 255).astype(np.uint8)),
    }


def test_the_face_detector_finds_faces_only(told):
    assert told["real"]["faces"] > 0.9
    assert told["fresh"]["faces"] > 0.9
    assert told["noisy"]["faces"] > 0.9
    assert told["gray"]["faces"] == 0
    assert told["noise"]["faces"] < 0.02
    assert told["blurred"]["faces"] < 0.5


@pytest.mark.parametrize("key", ["hog_frechet", "swd"])
def test_distances_are_small_for_real_images_alone(told, key):
    assert told["fresh"][key] == pytest.approx(told["real"][key], rel=0.3)
    assert told["fresh"][key] < 0.4 * min(told[name][key] for name in (*NOT_FACES, "one"))
    assert told["fresh"][key] < 0.8 * told["mixed"][key]
    assert told["gray"][key] > told["blurred"][key]


def test_hog_frechet_of_the_training_set_is_zero(told):
    assert told["train"]["hog_frechet"] < 1e-3


def test_coverage_wants_variety_and_sense(told):
    assert told["train"]["coverage"] == 1
    assert told["fresh"]["coverage"] == pytest.approx(told["real"]["coverage"], abs=0.1)
    assert told["real"]["coverage"] > 0.8
    assert all(told[name]["coverage"] <= 0.05 for name in (*NOT_FACES, "one"))
    assert told["mixed"]["coverage"] < 0.8 * told["fresh"]["coverage"]


def test_copies_are_told_from_images_that_are_merely_near(told):
    assert told["train"]["copied"] == told["one"]["copied"] == 1
    assert all(told[name]["copied"] < 0.05 for name in ("real", "fresh", "mixed", *NOT_FACES))
    assert all(told[name]["nearest_train"] > 0.5 for name in ("real", "fresh", "mixed", *NOT_FACES))


def test_frechet_distance_of_gaussians():
    """Against the closed form for diagonal covariances: |m|^2 + sum (s1 - s2)^2."""
    draw = np.random.default_rng(0)
    a = draw.normal(0, [1, 2, 3], (200_000, 3))
    b = draw.normal([1, 0, 0], [1, 1, 5], (200_000, 3))
    assert FrechetDistance(b)(a) == pytest.approx(1 + 0 + 1 + 4, rel=0.02)
    assert FrechetDistance(a)(a) == pytest.approx(0, abs=1e-9)
    few = draw.normal(0, 1, (10, 30))
    assert FrechetDistance(few)(few) == pytest.approx(0, abs=1e-9)
    assert FrechetDistance(few)(few + 2) == pytest.approx(4 * 30, rel=1e-9)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (16, 3)])
def test_other_sizes_and_gray(size, channels):
    images = np.random.default_rng(0).integers(0, 256, (80, size, size, channels), np.uint8)
    scores = MetricSuite(images, images[:64])
    assert scores(images)["coverage"] == 1
    assert scores.real["faces"] < 0.1
