"""Count the images that show a face, for the web page, and keep the counts."""

import threading
from collections.abc import Hashable

import numpy as np

MAX_IMAGES = 64  # of one count: the detector takes about 15 ms an image
MAX_COUNTS = 4096


class FaceCounter:
    """Count faces as the metric `faces` does, one call at a time: OpenCV's detector serves one thread."""

    def __init__(self) -> None:
        self._counts: dict[Hashable, int] = {}
        self._lock = threading.Lock()

    def __call__(self, key: Hashable, images: np.ndarray) -> int:
        """Return how many of images uint8 (n, size, size, channels) show a face; the same for the same `key`."""
        from aecore.metrics.face_detector import face_hits  # only an endpoint with a page in use loads OpenCV

        with self._lock:
            if key not in self._counts:
                if len(self._counts) == MAX_COUNTS:
                    del self._counts[next(iter(self._counts))]
                self._counts[key] = int(face_hits(images).sum())
            return self._counts[key]
