"""Find faces for the web page: count the images that show one, and frame a photo as the stored images are framed."""

import threading
from collections.abc import Hashable
from typing import TYPE_CHECKING

import numpy as np

from aecore.data.shuffle import evenly_spaced
from aecore.latent.points import StoredPoints

if TYPE_CHECKING:
    from aecore.metrics.face_detector import Photo

# Only an endpoint with a page in use loads OpenCV, so aecore.metrics.face_detector is imported in the methods.
MAX_IMAGES = 64  # of one count, and thumbnails for a frame: the detector takes about 15 ms an image
MAX_COUNTS = 4096


class FaceFinder:
    """OpenCV's detector, which serves one thread, so that its calls take turns; results are kept."""

    def __init__(self) -> None:
        self._counts: dict[Hashable, int] = {}
        self._typical: dict[str, tuple[float, float, float] | None] = {}  # faces of the thumbnails, by version label
        self._lock = threading.Lock()

    def count(self, key: Hashable, images: np.ndarray) -> int:
        """Return how many of images uint8 (n, size, size, channels) show a face, by the metric `faces`.

        The same `key` gives the same number.
        """
        from aecore.metrics.face_detector import face_hits

        with self._lock:
            if key not in self._counts:
                if len(self._counts) == MAX_COUNTS:
                    del self._counts[next(iter(self._counts))]
                self._counts[key] = int(face_hits(images).sum())
            return self._counts[key]

    @staticmethod
    def shrink_photo(image: np.ndarray) -> "Photo":
        """Return an image uint8 (H, W, 1 or 3) as `frame` takes it, which needs a small part of its memory."""
        from aecore.metrics.face_detector import shrink_photo

        return shrink_photo(image)

    def frame(self, label: str, points: StoredPoints, photo: "Photo") -> tuple[float, float, float] | None:
        """Return left, top and size of the square of `photo` that has its largest face where the stored images have it.

        In pixels of the image that was shrunk; it may reach beyond it. None if no face is found, or if fewer than half
        of the thumbnails of the version `label` show one.
        """
        from aecore.metrics.face_detector import largest_face, typical_face

        with self._lock:
            if label not in self._typical:
                rows = evenly_spaced(len(points), MAX_IMAGES)
                self._typical[label] = typical_face([points.thumbnail(row) for row in rows.tolist()])
            typical = self._typical[label]
            face = largest_face(photo) if typical else None
        if typical is None or face is None:
            return None
        (x, y, side), (typical_x, typical_y, typical_side) = face, typical
        size = side / typical_side
        return x - typical_x * size, y - typical_y * size, size
