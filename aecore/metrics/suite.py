"""How meaningful decoded images are: every metric of a set of images against real ones, by name, in one place.

    scores = Scores(train, test)                 # uint8 (n, size, size, channels)
    scores(decoded)                              # {"faces": 0.94, "hog_frechet": 1.4, ...}
    scores.real                                  # what the test images themselves get: the best to hope for

Add a metric by writing a function and naming it in METRICS.
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

PYRAMIDS = 512  # training images whose pyramids others' are compared with


class MetricSuite:
    """The metrics of one dataset. What they need of the real images is computed once, when first asked for."""

    def __init__(self, train: np.ndarray, test: np.ndarray, labels: np.ndarray | None = None):
        """`train` and `test`: real images uint8 (n, size, size, channels), at least 64 each; of each 2,048 are used,
        evenly spread. `labels` (n,) int of all of `train`: given these, a classifier stands in for the face detector.
        """
        self.train, self.test = (some[evenly_spaced(len(some), NUM_REFERENCE)] for some in (train, test))
        self._labelled = None if labels is None else (train, labels)

    def __call__(self, images: np.ndarray) -> dict[str, float]:
        """Every metric that this dataset has, of decoded images uint8 (n, size, size, channels)."""
        return {key: value for metric in METRICS.values() for key, value in metric(self, images).items()}

    @cached_property
    def real(self) -> dict[str, float]:
        return self(self.test)

    @cached_property
    def shapes(self) -> np.ndarray:
        return hog_features(self.train)

    @cached_property
    def frechet(self) -> FrechetDistance:
        return FrechetDistance(self.shapes)

    @cached_property
    def coverage(self) -> Coverage:
        return Coverage(self.shapes)

    @cached_property
    def sliced(self) -> SlicedWasserstein:
        rows = evenly_spaced(len(self.train), PYRAMIDS)
        return SlicedWasserstein(to_float(torch.from_numpy(self.train[rows])))

    @cached_property
    def classifier(self) -> Classifier | None:
        return None if self._labelled is None else train_classifier(*self._labelled)


def _recognised(scores: MetricSuite, images: np.ndarray) -> dict[str, float]:
    if scores.classifier is None:
        return {"faces": float(face_hits(images).mean())}
    return scores.classifier.score(images)


def _shapes(scores: MetricSuite, images: np.ndarray) -> dict[str, float]:
    features = hog_features(images)
    return {"hog_frechet": scores.frechet(features), "coverage": scores.coverage(features)}


def _sliced_wasserstein(scores: MetricSuite, images: np.ndarray) -> dict[str, float]:
    return {"swd": scores.sliced(to_float(torch.from_numpy(np.array(images))))}


def _nearest(scores: MetricSuite, images: np.ndarray) -> dict[str, float]:
    nearest = nearest_images(images, scores.train)
    return {"nearest_train": float(np.median(nearest.ratio)), "copied": nearest.copied}


METRICS: dict[str, Callable[[MetricSuite, np.ndarray], dict[str, float]]] = {
    "recognised": _recognised, "shapes": _shapes, "swd": _sliced_wasserstein, "nearest": _nearest,
}  # fmt: skip
