"""Find faces for the web page: count the images that show one, and frame a photo as the stored images are framed."""

from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from aecore.data.shuffle import evenly_spaced
from aecore.latent.points import StoredPoints
from serving.runtime.admission import AdmissionControl
from serving.runtime.metrics import EndpointMetrics

if TYPE_CHECKING:
    from aecore.metrics.face_detector import Photo

# Only an endpoint with a page in use loads OpenCV, so aecore.metrics.face_detector is imported in the methods.
MAX_IMAGES = 64  # of one count, and thumbnails for a frame
FIRST_ESTIMATE = (64, 1.0)  # images and seconds of the detector
MAX_COUNTS = 4096


class FaceFinder:
    """OpenCV's detector, which serves one thread; results are kept. Requests that would wait long are refused."""

    def __init__(self, metrics: EndpointMetrics | None = None) -> None:
        self._counts: dict[Hashable, int | None] = {}
        self._typical: dict[str, tuple[float, float, float] | None] = {}  # faces of the thumbnails, by their digest
        # In a thread of its own: in asyncio's executor the waiting calls would take the threads of other routes.
        executor = ThreadPoolExecutor(1, "find-faces", initializer=_load_opencv)
        self._admission = AdmissionControl(
            "faces", executor=executor, batch_size=MAX_IMAGES, first_estimate=FIRST_ESTIMATE, metrics=metrics
        )

    async def count(self, key: Hashable, images: np.ndarray, points: StoredPoints | None) -> int | None:
        """Return how many of images uint8 (n, size, size, channels) show a face, by the metric `faces`.

        None if fewer than half of the thumbnails of `points` show one: the model is of something else. The same `key`
        gives the same number. Raises Overloaded.
        """
        if key in self._counts:
            return self._counts[key]
        with self._admission.admit(len(images)):
            return await self._admission.run(len(images), self._count, key, images, points)

    def _count(self, key: Hashable, images: np.ndarray, points: StoredPoints | None) -> int | None:
        from aecore.metrics.face_detector import face_hits

        if key not in self._counts:  # else another request counted them while this one waited
            if len(self._counts) == MAX_COUNTS:
                del self._counts[next(iter(self._counts))]
            shows_faces = points is None or self._typical_face(points) is not None
            self._counts[key] = int(face_hits(images).sum()) if shows_faces else None
        return self._counts[key]

    @staticmethod
    def shrink_photo(image: np.ndarray) -> "Photo":
        """Return an image uint8 (H, W, 1 or 3) as `frame` takes it, which needs a small part of its memory."""
        from aecore.metrics.face_detector import shrink_photo

        return shrink_photo(image)

    async def frame(
        self, points: StoredPoints, photos: "Sequence[Photo]"
    ) -> list[tuple[float, float, float] | None] | None:
        """Return left, top and size of the square of each photo that has its face where the stored images have it.

        In pixels of the image that was shrunk; it may reach beyond it; None for a photo without a face. None alone if
        fewer than half of the thumbnails of `points` show one. Raises Overloaded.
        """
        with self._admission.admit(len(photos)):
            typical = await self._admission.run(1, self._typical_face, points)
            if typical is None:
                return None
            # One photo after the other, so that other requests get their turn between them.
            return [await self._admission.run(1, self._frame, typical, photo) for photo in photos]

    @staticmethod
    def _frame(typical: tuple[float, float, float], photo: "Photo") -> tuple[float, float, float] | None:
        from aecore.metrics.face_detector import largest_face

        face = largest_face(photo)
        if face is None:
            return None
        (x, y, side), (typical_x, typical_y, typical_side) = face, typical
        size = side / typical_side
        return x - typical_x * size, y - typical_y * size, size

    def _typical_face(self, points: StoredPoints) -> tuple[float, float, float] | None:
        from aecore.metrics.face_detector import typical_face

        digest = points.sprites_sha256
        if digest not in self._typical:
            rows = evenly_spaced(len(points), MAX_IMAGES)
            self._typical[digest] = typical_face([points.thumbnail(row) for row in rows.tolist()])
        return self._typical[digest]


def _load_opencv() -> None:
    # Apart from the first call, whose time counts in the estimate of the wait.
    import aecore.metrics.face_detector  # noqa: F401
