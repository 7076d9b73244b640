"""The face hit rate, and boxes of faces, by OpenCV's frontal detector (Viola, Jones 2001; Lienhart, Maydt 2002)."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import cv2
import cv2.data
import numpy as np

DETECTOR_SIZE = 288  # pixels a side, 3 times 96, to which images are scaled
MIN_FACE_SIZE = 90  # pixels, in the scaled image
PHOTO_SIZE = 640  # pixels of a photo's longer side, to which larger ones are scaled
MIN_PHOTO_FACE = 0.1  # of the photo's shorter side
CASCADE = "haarcascade_frontalface_alt2.xml"


class Photo(NamedTuple):
    """A photo as `largest_face` takes it: uint8 (h, w), at most PHOTO_SIZE pixels a side, of `width` x `height`."""

    gray: np.ndarray
    width: int
    height: int


def face_hits(images: np.ndarray) -> np.ndarray:
    """Return bool (n,): the image shows a face about as large as an aligned one.

    `images` uint8 (n, size, size, 1 or 3). The detector finds 96 % of CelebA's real faces: compare rates with that.
    """
    return np.array([len(_detect_aligned(image)) > 0 for image in images], bool)


def typical_face(images: Sequence[np.ndarray]) -> tuple[float, float, float] | None:
    """Return the median centre x, y and side of the faces of square images, as fractions of the images' side.

    Images are uint8 (size, size, 1 or 3). None if fewer than half of them show a face.
    """
    faces = [face for image in images if (face := _largest(_detect_aligned(image)))]
    if 2 * len(faces) < len(images):
        return None
    x, y, side = np.median(np.array(faces) / DETECTOR_SIZE, axis=0).tolist()
    return x, y, side


def shrink_photo(image: np.ndarray) -> Photo:
    """Return an image uint8 (H, W, 1 or 3) as a Photo."""
    height, width = image.shape[:2]
    scale = min(1.0, PHOTO_SIZE / max(height, width))
    return Photo(_to_gray(image, max(1, round(scale * width)), max(1, round(scale * height))), width, height)


def largest_face(photo: Photo) -> tuple[float, float, float] | None:
    """Return the centre x, y and the side of the largest face of a photo, in its own pixels; None without.

    Faces under MIN_PHOTO_FACE of the photo's shorter side are not found.
    """
    height, width = photo.gray.shape
    face = _largest(_detect(photo.gray, max(24, round(MIN_PHOTO_FACE * min(width, height)))))
    if face is None:
        return None
    x, y, side = face
    scale = max(photo.width, photo.height) / max(width, height)
    return x * scale, y * scale, side * scale


def _detect_aligned(image: np.ndarray) -> np.ndarray:
    """Return the boxes of `_detect` in a square image uint8 (size, size, 1 or 3) scaled to DETECTOR_SIZE."""
    return _detect(_to_gray(image, DETECTOR_SIZE, DETECTOR_SIZE), MIN_FACE_SIZE)


def _to_gray(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return an image uint8 (H, W, 1 or 3) in gray, scaled to uint8 (height, width)."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[2] == 3 else image
    return cv2.resize(gray, (width, height), interpolation=cv2.INTER_LINEAR)


def _detect(gray: np.ndarray, min_side: int) -> np.ndarray:
    """Return the left, top, width and height of the faces in an image uint8 (h, w), (n, 4)."""
    faces = _detector().detectMultiScale(gray, scaleFactor=1.1, minNeighbors=3, minSize=(min_side, min_side))
    return np.reshape(faces, (-1, 4))


def _largest(faces: np.ndarray) -> tuple[float, float, float] | None:
    if not len(faces):
        return None
    left, top, width, height = faces[faces[:, 2].argmax()].tolist()
    return left + width / 2, top + height / 2, width


@cache
def _detector() -> cv2.CascadeClassifier:
    return cv2.CascadeClassifier(f"{cv2.data.haarcascades}{CASCADE}")
