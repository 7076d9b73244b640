"""The classifier that replaces the face detector recognises its classes and rejects outliers."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.ndimage import uniform_filter
from torch import nn

from aecore.metrics import classifier as classifier_module
from aecore.metrics.classifier import Classifier, make_outliers, soften, train_classifier

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
    predicted = classifier.classes[classifier.probabilities(images)[:, :-1].argmax(1)]
    assert (predicted == labels).mean() > 0.95
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
    flat, _, shuffled, averages, blurred, mean = make_outliers(images).split([8, 8, 8, 8, 8, 4])
    assert (flat == flat[:, :, :1, :1]).all()
    outliers = torch.cat([make_outliers(images) for _ in range(20)])  # of several grains, which overshoot unclamped
    assert (outliers.min(), outliers.max()) == (0, 1)
    for image, original in zip(shuffled, images, strict=False):  # its four blocks of 8 x 8, in another order
        blocks, originals = (
            [block for rows in picture.split(8, 1) for block in rows.split(8, 2)] for picture in (image, original)
        )
        order = [next(i for i, other in enumerate(originals) if torch.equal(block, other)) for block in blocks]
        assert sorted(order) == [0, 1, 2, 3]
    torch.testing.assert_close(averages, (images[8:16] + images[16:24]) / 2)
    assert blurred.std() < 0.2 * images.std()
    torch.testing.assert_close(mean, images.mean(0).expand(4, -1, -1, -1))


def test_softened_images_are_blurred_in_part_in_half_of_the_cases():
    images = torch.rand(200, 1, 12, 12)
    blurred = torch.from_numpy(uniform_filter(images.numpy(), size=(1, 1, 5, 5), mode="nearest"))
    softened = soften(images)
    amounts = ((softened - images) * (blurred - images)).sum((1, 2, 3)) / (blurred - images).square().sum((1, 2, 3))
    torch.testing.assert_close(softened, torch.lerp(images, blurred, amounts[:, None, None, None]), atol=1e-5, rtol=0)
    assert stats.binomtest(int((amounts.abs() < 1e-6).sum()), 200, 0.5).pvalue > 1e-3
    assert stats.kstest(amounts[amounts.abs() >= 1e-6].numpy(), stats.uniform(0, 1).cdf).pvalue > 1e-3


def test_flat_outliers_are_often_black_or_white_and_blurred_ones_a_mean_of_15_pixels():
    images = torch.rand(8000, 1, 16, 16)
    flat, *_, blurred, _ = make_outliers(images).split([1000, 1000, 1000, 1000, 1000, 500])
    for value in (0, 1):
        assert stats.binomtest(int((flat[:, 0, 0, 0] == value).sum()), 1000, 1 / 6).pvalue > 1e-3
    expected = uniform_filter(images[3000:4000].numpy(), size=(1, 1, 15, 15), mode="nearest")
    np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-5)


def test_scores_of_known_probabilities():
    """Three classes, then the outliers."""
    probabilities = torch.tensor(
        [[0.9, 0.05, 0.05, 0], [0.6, 0.1, 0.1, 0.2], [0, 0.7, 0.1, 0.2], [0.2, 0.1, 0.1, 0.6], [0.3, 0.3, 0, 0.4]]
    )
    network = nn.Module()
    network.forward = lambda inputs: probabilities[: len(inputs)].log()
    classifier, images = Classifier(network, np.array([3, 5, 8])), np.zeros((5, 28, 28, 1), np.uint8)
    fractions = np.array([4 / 5, 1 / 5])  # of the most probable classes
    assert classifier.score(images) == pytest.approx({
        "recognised": 4 / 5, "confidence": (0.9 + 0.6 + 0.7 + 0.2 + 0.3) / 5,
        "classes": np.exp(-(fractions * np.log(fractions)).sum()),
    })  # fmt: skip


def test_images_are_classified_in_batches_of_32_pixels_a_side_in_0_to_1(monkeypatch):
    monkeypatch.setattr(classifier_module, "PREDICT_BATCH", 2)
    network, inputs = nn.Module(), []
    network.forward = lambda batch: inputs.append(batch) or torch.zeros(len(batch), 3)
    images = np.full((5, 64, 64, 3), (255, 0, 51), np.uint8)
    assert Classifier(network, np.array([0, 1])).probabilities(images) == pytest.approx(np.full((5, 3), 1 / 3))
    assert [len(batch) for batch in inputs] == [2, 2, 1]
    torch.testing.assert_close(torch.cat(inputs), torch.tensor([1, 0, 0.2])[:, None, None].expand(5, 3, 32, 32))


def test_one_repeated_image_has_one_effective_class(classifier):
    images, _ = shapes(1, 4)
    metrics = classifier.score(np.repeat(images, 50, 0))
    assert metrics["recognised"] == 1
    assert metrics["classes"] == pytest.approx(1)


def test_training_is_deterministic(classifier):
    images, labels = shapes(40, 5)
    first, second = (train_classifier(images, labels, steps=3) for _ in range(2))
    assert np.array_equal(first.probabilities(images), second.probabilities(images))
