"""How alike two sets of images are: by their shapes, how much of the real set they cover, and what they copy.

Shapes are histograms of oriented gradients (HOG, Dalal and Triggs 2005). Of the metrics that count neighbours in a
space of features only coverage is here: precision and density (Naeem 2020) give pure noise or one repeated image a
better score than real images, since a few odd real images have neighbourhoods that reach far.
"""

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

NUM_REFERENCE = 2_048  # real images that others are compared with
SIDE = 96  # pixels that each image is scaled to for its shapes
SMALL = 32  # and for its distance to training images
NEIGHBOUR = 5  # whose distance is a real image's radius, as in Naeem 2020
OTHERS = 50  # training images that the nearest one is compared with
COPY = 1 / 3


def hog_features(images: np.ndarray) -> np.ndarray:
    """Blocks of 32 x 32 at a stride of 16, four cells of 9 angles each: float32 (n, 900).

    `images` uint8 (n, size, size, 1 or 3), scaled to 96 x 96. A flat image has zeros.
    """
    import cv2  # here: a training's start would wait for it

    hog = cv2.HOGDescriptor((SIDE, SIDE), (32, 32), (16, 16), (16, 16), 9)
    features = np.empty((len(images), hog.getDescriptorSize()), np.float32)
    for i, image in enumerate(images):
        features[i] = np.ravel(hog.compute(cv2.resize(image, (SIDE, SIDE))))
    return features


class FrechetDistance:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of sets of features to one (Dowson and Landau 1982; Heusel 2017).

    0 for equal sets. As every estimate of this it falls with the number of images: compare equal numbers.
    """

    def __init__(self, reference: np.ndarray):
        """`reference`: features (n, d), whose part is computed once."""
        with threadpool_limits(1):  # more are slower even on idle processors
            self._mean, self._root = _moments(reference)

    def __call__(self, features: np.ndarray) -> float:
        with threadpool_limits(1):
            mean, root = _moments(features)
            # tr (C1 C2)^(1/2) is the sum of the singular values of R1 R2^T, where C = R^T R.
            shared = np.linalg.svd(root @ self._root.T, compute_uv=False).sum()
        spread = np.square(root).sum() + np.square(self._root).sum()
        return max(0.0, float(np.square(mean - self._mean).sum() + spread - 2 * shared))


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and a root R (at most d, d) of the covariance, R^T R."""
    mean = features.mean(0, dtype=np.float64)
    centred = (features - mean) / np.sqrt(max(1, len(features) - 1))
    return mean, np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred


class Coverage:
    """The share of real images with an image of another set nearer than their fifth real neighbour (Naeem 2020, eq. 6).

    About 0.65 to 0.8 for as good as real images, and falls with their number: compare equal numbers. The features are
    taken about the real ones' mean and brought to length 1: else whatever has little shape of its own, such as a
    mixture of two faces, is near to all, and would cover more than real images do.
    """

    def __init__(self, reference: np.ndarray):
        """`reference`: the real images' features (n, d)."""
        self._mean = reference.mean(0)
        self._real = self._directions(reference)
        distances = _distances(self._real, self._real)
        np.fill_diagonal(distances, np.inf)
        self._radii = np.partition(distances, NEIGHBOUR - 1, axis=1)[:, NEIGHBOUR - 1]

    def __call__(self, features: np.ndarray) -> float:
        return float((_distances(self._directions(features), self._real) < self._radii).any(0).mean())

    def _directions(self, features: np.ndarray) -> np.ndarray:
        centred = features - self._mean
        return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)


@dataclass(frozen=True)
class NearestImages:
    """For each image its nearest training image, int64 (n,), and how much nearer it is than others, float (n,).

    `ratio` is the distance to it over the mean distance to the 50 next ones (Carlini 2023, section 4.2): 0 for a copy,
    under a third for a blurred or noisy one, 0.7 to 0.85 for most unseen images, 1 where no image stands out.
    """

    index: np.ndarray
    ratio: np.ndarray

    @property
    def copied(self) -> float:
        """The share of images that are three times as near to one training image as to the 50 next ones."""
        return float((self.ratio < COPY).mean())


def nearest_images(images: np.ndarray, train: np.ndarray) -> NearestImages:
    """Compare `images` with training images, both uint8 (n, size, size, channels), pixel by pixel at 32 x 32."""
    distances = _distances(_thumbnails(images), _thumbnails(train))
    near = np.sort(np.partition(distances, OTHERS, axis=1)[:, : OTHERS + 1], axis=1)
    return NearestImages(distances.argmin(1), near[:, 0] / np.maximum(near[:, 1:].mean(1), 1e-6))


def _thumbnails(images: np.ndarray) -> np.ndarray:
    import cv2

    small = [cv2.resize(image, (SMALL, SMALL), interpolation=cv2.INTER_AREA) for image in images]
    return np.stack(small).reshape(len(images), -1).astype(np.float32) / 255


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances of all rows of `a` to all of `b`."""
    return np.sqrt(np.maximum(np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T, 0))
