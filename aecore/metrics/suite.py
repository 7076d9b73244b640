"""All metrics of a set of decoded images against a dataset's real images, by name.

    suite = MetricSuite(train)                   # uint8 (n, size, size, channels)
    suite(decoded)                               # {"faces": 0.94, "hog_frechet": 1.4, ...}
    suite(held_out)                              # the bound that decoded images approach

To add a metric, write a function and list it in METRICS.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch

from aecore.data.shuffle import evenly_spaced
from aecore.metrics.classifier import Classifier, train_classifier
from aecore.metrics.distribution import NUM_REFERENCE, Coverage, FrechetDistance, hog_features, nearest_images
from aecore.metrics.face_detector import face_hits
from aecore.metrics.pixel import SlicedWasserstein
from aecore.model.autoencoder import to_float

SWD_REFERENCE = 512  # training images that the sliced Wasserstein distance compares with


class MetricSuite:
    """The metrics of one dataset. Features of the real images are computed once, when a metric first needs them."""

    def __init__(self, train: np.ndarray, labels: np.ndarray | None = None):
        """`train`: at least 64 training images uint8 (n, size, size, channels).

        Images are compared with at most 2,048 evenly spaced ones of them. With `labels` (n,) int of all of `train` a
        classifier replaces the face detector.
        """
        self.train = train[evenly_spaced(len(train), NUM_REFERENCE)]
        self._labelled = None if labels is None else (train, labels)

    def __call__(self, images: np.ndarray) -> dict[str, float]:
        """Return all metrics of decoded images uint8 (n, size, size, channels)."""
        return {name: value for metric in METRICS.values() for name, value in metric(self, images).items()}

    @cached_property
    def train_features(self) -> np.ndarray:
        return hog_features(self.train)

    @cached_property
    def frechet_distance(self) -> FrechetDistance:
        return FrechetDistance(self.train_features)

    @cached_property
    def coverage(self) -> Coverage:
        return Coverage(self.train_features)

    @cached_property
    def sliced_wasserstein(self) -> SlicedWasserstein:
        rows = evenly_spaced(len(self.train), SWD_REFERENCE)
        return SlicedWasserstein(to_float(torch.from_numpy(self.train[rows])))

    @cached_property
    def classifier(self) -> Classifier | None:
        return None if self._labelled is None else train_classifier(*self._labelled)


def _recognised(suite: MetricSuite, images: np.ndarray) -> dict[str, float]:
    if suite.classifier is None:
        return {"faces": float(face_hits(images).mean())}
    return suite.classifier.score(images)


def _shapes(suite: MetricSuite, images: np.ndarray) -> dict[str, float]:
    features = hog_features(images)
    return {"hog_frechet": suite.frechet_distance(features), "coverage": suite.coverage(features)}


def _sliced_wasserstein(suite: MetricSuite, images: np.ndarray) -> dict[str, float]:
    return {"swd": suite.sliced_wasserstein(to_float(torch.from_numpy(np.array(images))))}


def _nearest(suite: MetricSuite, images: np.ndarray) -> dict[str, float]:
    nearest = nearest_images(images, suite.train)
    return {"nearest_train": float(np.median(nearest.ratio)), "copied": nearest.copied}


METRICS: dict[str, Callable[[MetricSuite, np.ndarray], dict[str, float]]] = {
    "recognised": _recognised, "shapes": _shapes, "swd": _sliced_wasserstein, "nearest": _nearest,
}  # fmt: skip
