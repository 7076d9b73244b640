"""What goes out over the wire: images as PNG, JPEG, WebP, zip, .npy or JSON. Nothing here knows HTTP."""

import base64
import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from serving.http.decoding import JPEG, JSON, NPY, PNG, WEBP, ZIP

IMAGE_KINDS = (PNG, JPEG, WEBP, ZIP, NPY, JSON)
ARRAY_KINDS = (JSON, NPY)
WEBP_SIDE = 16_383  # pixels; JPEG takes 65,535
QUALITY = 90


def negotiate_media_type(accept: str, kinds: tuple[str, ...] = IMAGE_KINDS) -> str:
    """Which of `kinds` an Accept header likes best; the first for an empty one and between equals.

    Raises ValueError when it accepts none of them (RFC 9110: the most specific range decides).
    """
    ranges: dict[str, float] = {}
    for part in (accept or "*/*").lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weights = [p.removeprefix("q=") for p in parameters if p.startswith("q=")]
        try:
            ranges[name] = float(weights[0]) if weights else 1.0
        except ValueError:
            ranges[name] = 0.0
    scores = {
        kind: next((ranges[r] for r in (kind, f"{kind.split('/')[0]}/*", "*/*") if r in ranges), 0.0) for kind in kinds
    }
    best = max(scores, key=lambda kind: scores[kind])
    if not scores[best] > 0:
        raise ValueError(f"no answer in '{accept[:100]}': it takes {', '.join(kinds[:-1])} or {kinds[-1]}")
    return best


def encode_images(images: np.ndarray, kind: str, told: Mapping[str, Any] | None = None) -> bytes:
    """`images` uint8 (n, H, W, C), n >= 1, as the body of an answer.

    PNG, JPEG, WEBP: the image, or for many a grid without gaps, row by row, ceil(sqrt(n)) columns, black at the end.
    ZIP: one PNG per image, 0000.png and on. NPY: the array. JSON: `told` and `"images"`, one base64 PNG per image;
    arrays of images in `told` are encoded alike, other arrays become lists.
    Raises ValueError when the grid is larger than WebP allows.
    """
    if kind == NPY:
        return encode_npy(images)
    if kind == JSON:
        return encode_json({**(told or {}), "images": images})
    if kind == ZIP:
        return _zip(images)
    picture = images[0] if len(images) == 1 else _grid(images)
    if kind == PNG:
        return encode_png(picture)
    if kind == WEBP and max(picture.shape[:2]) > WEBP_SIDE:
        raise ValueError(f"a grid of {len(images)} images has more than the {WEBP_SIDE} pixels a side that WebP takes")
    buffer = io.BytesIO()
    # WebP's method 0 takes less than half of the default's time for a twelfth more bytes.
    options = {"format": "WEBP", "method": 0} if kind == WEBP else {"format": "JPEG"}
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(buffer, quality=QUALITY, **options)
    return buffer.getvalue()


def encode_json(values: Mapping[str, Any]) -> bytes:
    """A JSON object of `values`: uint8 images (n, H, W, C) as base64 PNGs, other arrays as lists."""
    return json.dumps({key: _plain(value) for key, value in values.items()}, allow_nan=False).encode()


def encode_npy(array: np.ndarray) -> bytes:
    """`array`, of numbers, as the bytes of a .npy file (version 1.0).

    What np.save writes, in one copy and a tenth of the time: it goes through many small ones, for 64 images 0.6 ms.
    """
    array, header = np.ascontiguousarray(array), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return b"".join((header.getvalue(), array.data))


def encode_png(image: np.ndarray) -> bytes:
    """A uint8 image (H, W, 1 or 3) as PNG: every row as its difference from the one above, run-length coded.

    A third of the time of Pillow's fastest level at the same size, and other threads go on meanwhile.
    """
    height, width, channels = image.shape
    pixels = image.reshape(height, width * channels)
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[:, 0] = 2  # the filter `Up` (PNG specification, 9.2)
    rows[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    packed = packer.compress(rows.data) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))


def _plain(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == np.uint8 and value.ndim == 4:
        return [base64.b64encode(encode_png(image)).decode() for image in value]
    return value.tolist()


def _zip(images: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored: PNG is packed already
        for index, image in enumerate(images):
            archive.writestr(zipfile.ZipInfo(f"{index:04d}.png"), encode_png(image))
    return buffer.getvalue()


def _grid(images: np.ndarray) -> np.ndarray:
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:n] = images
    cells = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return cells.reshape(rows * height, columns * width, channels)
