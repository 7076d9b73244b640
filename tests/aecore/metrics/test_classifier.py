"""The classifier that replaces the face detector recognises its classes and rejects outliers."""

import numpy as np
import pytest
import torch

from aecore.metrics.classifier import make_outliers, train_classifier

COUNT, SIZE = 900, 28
STEPS = 150  # half of the default: enough for these shapes


def shapes(count, seed):
    """Return images of a disc, a cross or stripes at a random position and shade on black, and labels 3, 5, 8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    images, kinds = np.zeros((count, SIZE, SIZE, 1)), rng.integers(0, 3, count)
    for image, kind in zip(images, kinds, strict=True):
        dy, dx = y - rng.integers(9, 19), x - rng.integers(9, 19)
        inside = np.maximum(abs(dy), abs(dx)) < 8
        disc, cross = dy**2 + dx**2 < 50, np.minimum(abs(dy), abs(dx)) < 2
        image[..., 0] = (disc, cross & inside, (dy % 4 < 2) & inside)[kind] * rng.uniform(120, 255)
    noisy = np.clip(images + rng.normal(0, 10, images.shape), 0, 255)
    return noisy.astype(np.uint8), np.array([3, 5, 8])[kinds]


@pytest.fixture(scope="module")
def classifier():
    torch.set_num_threads(1)  # two threads would mostly wait for each other
    return train_classifier(*shapes(COUNT, 0), steps=STEPS)


def test_real_images_are_recognised(classifier):
    images, labels = shapes(300, 1)
    assert classifier.accuracy(images, labels) > 0.95
    metrics = classifier.score(images)
    assert metrics["recognised"] > 0.95
    assert metrics["confidence"] > 0.85
    assert metrics["classes"] == pytest.approx(3, abs=0.1)


def test_outliers_are_rejected(classifier):
    rng = np.random.default_rng(2)
    images, _ = shapes(200, 3)
    blurred = torch.nn.functional.avg_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2).float(), 15, 1, 7)
    outliers = {
        "gray": np.full_like(images, 128),
        "black": np.zeros_like(images),
        "noise": rng.integers(0, 256, images.shape, np.uint8),
        "nearly gray": rng.integers(120, 136, images.shape).astype(np.uint8),
        "white": np.full_like(images, 255),
        "mean": np.repeat(images.mean(0, keepdims=True).astype(np.uint8), len(images), 0),
        "blurred": blurred.permute(0, 2, 3, 1).to(torch.uint8).numpy(),
    }
    metrics = {name: classifier.score(outlier_images) for name, outlier_images in outliers.items()}
    recognised = {name: m["recognised"] for name, m in metrics.items()}
    assert max(recognised.values()) <= 0.1, recognised
    assert all(m["confidence"] < 0.3 for m in metrics.values())


def test_outliers_of_training_hold_shuffled_averaged_and_mean_images():
    images = torch.rand(64, 3, 24, 16)[:, :, :16]  # eight of each kind, four mean images
    flat, noise, shuffled, averages, blurred, mean = make_outliers(images).split([8, 8, 8, 8, 8, 4])
    assert (flat == flat[:, :, :1, :1]).all()
    assert (noise.min(), noise.max()) >= (0, 0)
    for image, original in zip(shuffled, images, strict=False):  # its four blocks of 8 x 8, in another order
        blocks, originals = (
            [block for rows in picture.split(8, 1) for block in rows.split(8, 2)] for picture in (image, original)
        )
        order = [next(i for i, other in enumerate(originals) if torch.equal(block, other)) for block in blocks]
        assert sorted(order) == [0, 1, 2, 3]
    torch.testing.assert_close(averages, (images[8:16] + images[16:24]) / 2)
    assert blurred.std() < 0.2 * images.std()
    torch.testing.assert_close(mean, images.mean(0).expand(4, -1, -1, -1))


def test_one_repeated_image_has_one_effective_class(classifier):
    images, _ = shapes(1, 4)
    metrics = classifier.score(np.repeat(images, 50, 0))
    assert metrics["recognised"] == 1
    assert metrics["classes"] == pytest.approx(1)


def test_training_is_deterministic(classifier):
    images, labels = shapes(40, 5)
    first, second = (train_classifier(images, labels, steps=3) for _ in range(2))
    assert np.array_equal(first.probabilities(images), second.probabilities(images))
