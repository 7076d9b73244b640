"""Arrays that keep their origin: z-points with their model, decoded images with model, z-points and seed."""

from typing import Any

import numpy as np


class ZPoints(np.ndarray):
    """z-points float32 (n, z_dim); `model` is the `name/version` whose latent space they lie in, "" if unknown.

    A slice, a copy and a result of arithmetic keep it.
    """

    model: str

    def __new__(cls, array: np.ndarray, model: str = "") -> "ZPoints":
        points = np.asarray(array).view(cls)
        points.model = model
        return points

    def __array_finalize__(self, source: Any) -> None:
        self.model = getattr(source, "model", "")


class Images(np.ndarray):
    """Decoded images uint8 (n, size, size, channels), with what they were made from.

    `model`: `name/version`, "" if unknown. `z`: the z-points (n, z_dim). `seed`: of the random numbers, None without
    any. `corrupted`: the input of the encoder, shaped as the images, None if they were not reconstructed. Slices and
    results of arithmetic keep `model` and `seed` alone.
    """

    model: str
    z: ZPoints | None
    seed: int | None
    corrupted: np.ndarray | None

    def __new__(
        cls, array: np.ndarray, z: np.ndarray, model: str = "", seed: int | None = None,
        corrupted: np.ndarray | None = None,
    ) -> "Images":  # fmt: skip
        images = np.asarray(array).view(cls)
        images.z, images.model, images.seed, images.corrupted = ZPoints(z, model), model, seed, corrupted
        return images

    def __array_finalize__(self, source: Any) -> None:
        self.model, self.seed = getattr(source, "model", ""), getattr(source, "seed", None)
        self.z = self.corrupted = None
