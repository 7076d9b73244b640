"""The stand-in for the face detector: it knows its classes, and images of nothing for what they are."""

import numpy as np
import pytest
import torch

from aecore.metrics.classifier import train_classifier

COUNT, SIZE = 900, 28


def shapes(count, seed):
    """A disc, a cross, or stripes, somewhere, in some shade on black: images and labels 3, 5, 8."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    images, kinds = np.zeros((count, SIZE, SIZE, 1)), draw.integers(0, 3, count)
    for image, kind in zip(images, kinds, strict=True):
        dy, dx = y - draw.integers(9, 19), x - draw.integers(9, 19)
        inside = np.maximum(abs(dy), abs(dx)) < 8
        disc, cross = dy**2 + dx**2 < 50, np.minimum(abs(dy), abs(dx)) < 2
        image[..., 0] = (disc, cross & inside, (dy % 4 < 2) & inside)[kind] * draw.uniform(120, 255)
    noisy = np.clip(images + draw.normal(0, 10, images.shape), 0, 255)
    return noisy.astype(np.uint8), np.array([3, 5, 8])[kinds]


@pytest.fixture(scope="module")
def classifier():
    return train_classifier(*shapes(COUNT, 0))


def test_it_knows_its_classes(classifier):
    images, labels = shapes(300, 1)
    assert classifier.accuracy(images, labels) > 0.95
    told = classifier.score(images)
    assert told["recognised"] > 0.95
    assert told["confidence"] > 0.85
    assert told["classes"] == pytest.approx(3, abs=0.1)


def test_images_of_nothing_are_nothing(classifier):
    draw = np.random.default_rng(2)
    images, _ = shapes(200, 3)
    blurred = torch.nn.functional.avg_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2).float(), 15, 1, 7)
    nothing = {
        "gray": np.full_like(images, 128),
        "black": np.zeros_like(images),
        "noise": draw.integers(0, 256, images.shape, np.uint8),
        "nearly gray": draw.integers(120, 136, images.shape).astype(np.uint8),
        "white": np.full_like(images, 255),
        "mean": np.repeat(images.mean(0, keepdims=True).astype(np.uint8), len(images), 0),
        "blurred": blurred.permute(0, 2, 3, 1).to(torch.uint8).numpy(),
    }
    told = {name: classifier.score(some) for name, some in nothing.items()}
    assert {name: t["recognised"] for name, t in told.items() if t["recognised"] > 0.1} == {}
    assert all(t["confidence"] < 0.3 for t in told.values())


def test_one_repeated_image_is_one_class(classifier):
    images, _ = shapes(1, 4)
    told = classifier.score(np.repeat(images, 50, 0))
    assert told["recognised"] == 1
    assert told["classes"] == pytest.approx(1)


def test_training_repeats(classifier):
    images, labels = shapes(40, 5)
    one, two = (train_classifier(images, labels, steps=3) for _ in range(2))
    assert np.array_equal(one.probabilities(images), two.probabilities(images))
