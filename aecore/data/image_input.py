"""Images as callers have them: paths, bytes of files, PIL images and arrays. Needs numpy and Pillow alone."""

import os
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from aecore.latent.arrays import ZPoints

BAND_PIXELS = 1 << 20  # converted at a time: the whole image as RGBA and its copies would take 1 GB
ImageInput: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
ImageInputs: TypeAlias = ImageInput | Sequence[ImageInput]
CHANNELS = (1, 2, 3, 4)  # gray, gray and alpha, RGB, RGBA


def read_images(images: ImageInputs) -> list[bytes | np.ndarray]:
    """Return each image as the bytes of its file or as uint8 (H, W, 1 or 3).

    `images` is one image or a sequence of them: a path, the bytes of a file, a PIL image, or an array (H, W),
    (H, W, 1 to 4), or (n, H, W) and (n, H, W, 1 to 4) of several, uint8 or floats in [0, 1]. Transparency, in 2 or 4
    channels, is composed on white. Raises ValueError for anything else, and OSError for a file that cannot be read.
    """
    if isinstance(images, ZPoints):
        raise ValueError(f"z-points {images.shape} are no image")
    if isinstance(images, np.ndarray):
        return list(_to_uint8(images))
    if isinstance(images, bytes | bytearray | memoryview):
        return [bytes(images)]
    if isinstance(images, str | os.PathLike):
        with open(images, "rb") as file:
            return [file.read()]
    if isinstance(images, Image.Image):
        return [to_pixels(ImageOps.exif_transpose(images))]
    if isinstance(images, Sequence):
        return [image for item in images for image in read_images(item)]
    raise ValueError(f"an image is a path, bytes, a PIL image or an array, not {type(images).__name__}")


def _to_uint8(array: np.ndarray) -> np.ndarray:
    """Return an array of one or several images as uint8 (n, H, W, 1 or 3)."""
    array = np.asarray(array)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in CHANNELS):
        array = array[None]
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in CHANNELS or not array.size:
        raise ValueError(f"an array of shape {array.shape} holds no images: it takes (n, H, W, 1 to 4)")
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # also for NaN
            raise ValueError("images of floats take values in [0, 1]; convert others to uint8")
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"images are uint8 or floats in [0, 1], not {array.dtype}")
    if array.shape[-1] in (2, 4):
        return np.stack([to_pixels(Image.fromarray(image)) for image in array])
    return array


def to_pixels(image: Image.Image) -> np.ndarray:
    """Return the pixels of an upright PIL image as uint8 (H, W, 3), or (H, W, 1) if it is gray.

    Transparency is composed on white, 16 bits become 8. Raises ValueError for floats.
    """
    if image.mode == "F":
        raise ValueError("it has floating-point pixels, whose range is unknown; save it with 8 or 16 bits")
    width, height = image.size
    gray = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
    pixels = np.empty((height, width, 1 if gray else 3), np.uint8)
    rows = max(1, BAND_PIXELS // max(1, width))
    columns = BAND_PIXELS // rows  # fewer than `width` if one row is longer than a band
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            band = image.crop((left, top, min(left + columns, width), min(top + rows, height)))
            pixels[top : top + rows, left : left + columns] = _band_pixels(band, gray).reshape(*band.size[::-1], -1)
    return pixels


def _band_pixels(image: Image.Image, gray: bool) -> np.ndarray:
    """Return the pixels of a band as uint8 (H, W) if it is gray, else (H, W, 3)."""
    if image.mode.startswith("I"):  # 16-bit gray has several modes
        gray16 = np.asarray(image).astype(np.int64).clip(0, 65535)
        gray16[gray16 == image.info.get("transparency", -1)] = 65535
        return ((gray16 + 128) // 257).astype(np.uint8)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("L" if gray else "RGB"))


def to_pillow(pixels: np.ndarray) -> Image.Image:
    """Return pixels uint8 (H, W, 1 or 3) as a PIL image, gray or RGB."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def split_ends(ends: ImageInputs) -> tuple[np.ndarray | ImageInput, np.ndarray | ImageInput]:
    """Return the two ends of an interpolation: z-points (z_dim,) or images. Raises ValueError for another number."""
    if not isinstance(ends, np.ndarray | Sequence) or isinstance(ends, str | bytes) or len(ends) != 2:
        count = len(ends) if isinstance(ends, np.ndarray | list | tuple) else 1
        raise ValueError(f"{count} z-points or images: interpolation needs two")
    return ends[0], ends[1]  # pyright: ignore[reportReturnType]


def read_end(end: ImageInputs) -> bytes | np.ndarray:
    """Return the image at an end of an interpolation as `read_images` does. Raises ValueError unless it is one."""
    images = read_images(end)
    if len(images) != 1:
        raise ValueError(f"an end takes one image, not {len(images)}")
    return images[0]


def is_z_point(end: object) -> bool:
    """Return if an end of an interpolation is a z-point: a vector of numbers, or what `encode` returns of an image."""
    if isinstance(end, ZPoints) and len(end) == 1:
        return True
    if not isinstance(end, np.ndarray | list | tuple):
        return False
    vector = np.asarray(end)
    return vector.ndim == 1 and vector.size > 0 and vector.dtype.kind in "fiu"
