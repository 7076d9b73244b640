"""The face hit rate, by OpenCV's frontal face detector (Viola and Jones 2001; Lienhart and Maydt 2002)."""

from functools import cache

import cv2
import cv2.data
import numpy as np

DETECTOR_SIZE = 288  # pixels a side, 3 times 96, to which images are scaled
MIN_FACE_SIZE = 90  # pixels, in the scaled image
CASCADE = "haarcascade_frontalface_alt2.xml"


def face_hits(images: np.ndarray) -> np.ndarray:
    """Return bool (n,): the image shows a face about as large as an aligned one.

    `images` uint8 (n, size, size, 1 or 3). The detector finds 96 % of CelebA's real faces: compare rates with that.
    """
    hits = np.zeros(len(images), bool)
    for i, image in enumerate(images):
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[2] == 3 else image
        scaled = cv2.resize(gray, (DETECTOR_SIZE, DETECTOR_SIZE), interpolation=cv2.INTER_LINEAR)
        min_size = (MIN_FACE_SIZE, MIN_FACE_SIZE)
        faces = _detector().detectMultiScale(scaled, scaleFactor=1.1, minNeighbors=3, minSize=min_size)
        hits[i] = len(faces) > 0
    return hits


@cache
def _detector() -> cv2.CascadeClassifier:
    return cv2.CascadeClassifier(f"{cv2.data.haarcascades}{CASCADE}")
