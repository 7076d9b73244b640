"""Metrics between two sets of images: Frechet distance and coverage in HOG features, and copies of training images.

HOG: histograms of oriented gradients (Dalal and Triggs 2005). Of the metrics that count neighbours in a feature space
only coverage is here: precision and density (Naeem 2020) score pure noise or one repeated image higher than real
images, since a few outliers among the real images have very large neighbourhoods.
"""

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

NUM_REFERENCE = 2_048  # real images that a set is compared with
HOG_SIZE = 96  # pixels a side, to which images are scaled for HOG
THUMBNAIL_SIZE = 32  # pixels a side, at which images are compared with training images
COVERAGE_NEIGHBOUR = 5  # its distance is a real image's radius, as in Naeem 2020
COPY_NEIGHBOURS = 50  # nearest training images that the nearest one is compared with
COPY_RATIO = 1 / 3


def hog_features(images: np.ndarray) -> np.ndarray:
    """Return the HOG features of images uint8 (n, size, size, 1 or 3), float32 (n, 900).

    Images are scaled to 96 x 96; blocks of 32 x 32 at a stride of 16 have four cells of 9 angles each. The features of
    a flat image are zeros.
    """
    import cv2  # here, since it would delay the start of a training

    hog = cv2.HOGDescriptor((HOG_SIZE, HOG_SIZE), (32, 32), (16, 16), (16, 16), 9)
    features = np.empty((len(images), hog.getDescriptorSize()), np.float32)
    for i, image in enumerate(images):
        features[i] = np.ravel(hog.compute(cv2.resize(image, (HOG_SIZE, HOG_SIZE))))
    return features


class FrechetDistance:
    """Frechet distance |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) to reference features (Heusel 2017).

    Dowson and Landau 1982. 0 for equal sets. Like every estimate of it, it falls with the number of images: compare
    sets of equal size.
    """

    def __init__(self, reference: np.ndarray):
        """`reference`: features float (n, d); their moments are computed once."""
        with threadpool_limits(1):  # more threads are slower even on idle CPUs
            self._mean, self._root = _mean_and_covariance_root(reference)

    def __call__(self, features: np.ndarray) -> float:
        """Return the distance of `features` (n, d)."""
        with threadpool_limits(1):
            mean, root = _mean_and_covariance_root(features)
            # tr (C1 C2)^(1/2) is the sum of the singular values of R1 R2^T with C = R^T R.
            cross_trace = np.linalg.svd(root @ self._root.T, compute_uv=False).sum()
        traces = np.square(root).sum() + np.square(self._root).sum()
        return max(0.0, float(np.square(mean - self._mean).sum() + traces - 2 * cross_trace))


def _mean_and_covariance_root(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (d,) and a root R (at most d, d) of the covariance R^T R."""
    mean = features.mean(0, dtype=np.float64)
    centred = (features - mean) / np.sqrt(max(1, len(features) - 1))
    return mean, np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred


class Coverage:
    """Coverage: fraction of real images with an image of the set nearer than their fifth real neighbour.

    Naeem 2020, eq. 6. About 0.65 to 0.8 for a set as good as real images; it falls with the size of the set: compare
    sets of equal size. Features are centred at the real images' mean and scaled to length 1. Without this, images of
    weak shape, such as the average of two faces, are near to everything and cover more than real images do.
    """

    def __init__(self, reference: np.ndarray):
        """`reference`: the real images' features float (n, d)."""
        self._mean = reference.mean(0)
        self._reference = self._normalise(reference)
        distances = _pairwise_distances(self._reference, self._reference)
        np.fill_diagonal(distances, np.inf)
        self._radii = np.partition(distances, COVERAGE_NEIGHBOUR - 1, axis=1)[:, COVERAGE_NEIGHBOUR - 1]

    def __call__(self, features: np.ndarray) -> float:
        """Return the coverage by `features` (n, d), in [0, 1]."""
        distances = _pairwise_distances(self._normalise(features), self._reference)
        return float((distances < self._radii).any(0).mean())

    def _normalise(self, features: np.ndarray) -> np.ndarray:
        centred = features - self._mean
        return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)


@dataclass(frozen=True)
class NearestImages:
    """The nearest training image of each image.

    `index` int64 (n,): its row. `ratio` float (n,): its distance over the mean distance of the 50 next ones (Carlini
    2023, section 4.2): 0 for a copy, under 1/3 for a blurred or noisy copy, 0.7 to 0.85 for most held-out images, 1 if
    no training image stands out.
    """

    index: np.ndarray
    ratio: np.ndarray

    @property
    def copied(self) -> float:
        """Return the fraction of images with a ratio under 1/3."""
        return float((self.ratio < COPY_RATIO).mean())


def nearest_images(images: np.ndarray, train: np.ndarray) -> NearestImages:
    """Find the nearest training image of each image by the pixels at 32 x 32.

    Both uint8 (n, size, size, channels); `train` needs more than 50.
    """
    distances = _pairwise_distances(_thumbnails(images), _thumbnails(train))
    nearest = np.sort(np.partition(distances, COPY_NEIGHBOURS, axis=1)[:, : COPY_NEIGHBOURS + 1], axis=1)
    return NearestImages(distances.argmin(1), nearest[:, 0] / np.maximum(nearest[:, 1:].mean(1), 1e-6))


def _thumbnails(images: np.ndarray) -> np.ndarray:
    import cv2

    size = (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    thumbnails = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]
    return np.stack(thumbnails).reshape(len(images), -1).astype(np.float32) / 255


def _pairwise_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Euclidean distances (n, m) of the rows of `a` (n, d) to those of `b` (m, d)."""
    return np.sqrt(np.maximum(np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T, 0))
