"""What comes in over the wire: z-points and pictures, out of JSON, .npy and image files. Nothing here knows HTTP.

Every refusal is a ValueError with a one-line message; TooLarge when it is the amount that is refused. A body
is measured before anything is made of it, so no request costs more memory than one that is allowed.
"""

import base64
import binascii
import io
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image

from aecore.data.images import decode_image, fit_square
from aecore.model.autoencoder import ImageShape

PNG, JPEG, WEBP = "image/png", "image/jpeg", "image/webp"
NPY, JSON, ZIP = "application/x-npy", "application/json", "application/zip"
PICTURES = (PNG, JPEG, WEBP)
UPLOADS = ("PNG", "JPEG", "WEBP")  # Pillow's names; some of its other formats start programs
MAX_POINTS = 4096


class TooLarge(ValueError):
    """More than one request may hold."""


@dataclass(frozen=True)
class Limits:
    """What one request may hold: z-points or pictures, bytes of body, pixels (and so bytes) of pictures in and out.

    `seconds`: how long it may take; `read_seconds`: how long its body may take to arrive. `held`: bytes of body of all
    requests together that are not answered yet.
    """

    points: int = MAX_POINTS
    body: int = 32 << 20
    held: int = 512 << 20
    pixels: int = 256 << 20
    upload_pixels: int = 64_000_000
    seconds: float = 60.0
    read_seconds: float = 20.0

    def points_of(self, image: ImageShape) -> int:
        """z-points whose images stay within `pixels`, at most `points`."""
        return min(self.points, max(1, self.pixels // (image.size**2 * image.channels)))

    def check_points(self, option: str, n: int, image: ImageShape) -> None:
        """Raise TooLarge when an option asks for more z-points than `points_of` gives."""
        if n > (most := self.points_of(image)):
            raise TooLarge(f"{option} is {n}: one request takes at most {most} z-points")


def parse_body(
    body: bytes, content_type: str, wants: tuple[str, ...], image: ImageShape, z_dim: int, limits: Limits
) -> tuple[np.ndarray, dict[str, Any]]:
    """What a body holds, and the options that stand beside it in JSON.

    z-points come as float32 (n, z_dim), all finite, pictures as uint8 (n, size, size, channels), cut and scaled as
    the model takes them; `wants` says which of "z" and "images" may come. `content_type` is JSON (`{"z": [[...], ...]}`
    or `{"images": ["base64 of an image file", ...]}`), NPY (floats (n, z_dim) or uint8 (n, H, W, 1 or 3)) or the type
    of an image file. Nothing is unpickled. Raises ValueError for anything else, TooLarge for more than `limits` allow.
    """
    most = limits.points_of(image)
    if content_type == NPY:
        header = npy_header(body)
        if "images" in wants and ("z" not in wants or header[2] == np.uint8):
            return _npy_pictures(body, header, image, most), {}
        return finite(_npy_z(body, header, z_dim, most)), {}
    if content_type != JSON:
        return fit_pictures([body], image, limits), {}
    check_amount(body, z_dim, most)
    value = load_json(body)
    found = [key for key in wants if isinstance(value, dict) and key in value]
    if not isinstance(value, dict) or len(found) != 1:
        shapes = {"z": '{"z": [[...], ...]}', "images": '{"images": ["base64 of an image file", ...]}'}
        raise ValueError(f"the JSON body must be {' or '.join(shapes[key] for key in wants)}")
    options = {key: option for key, option in value.items() if key != found[0]}
    if found == ["z"]:
        return check_z(value["z"], z_dim, most), options
    return check_pictures(value["images"], image, limits), options


def check_amount(body: bytes, z_dim: int, max_points: int) -> None:
    """Raise TooLarge when a JSON text has more brackets and commas than `max_points` z-points, before it is built."""
    points, numbers = body.count(b"[") - 1, body.count(b",") + 1
    if points > max_points or numbers > max_points * (z_dim + 1):
        raise TooLarge(f"about {max(points, numbers // z_dim)} z-points: one request takes at most {max_points}")


def check_z(rows: object, z_dim: int, max_points: int) -> np.ndarray:
    """The z-points that a JSON value `[[...], ...]` names, float32 `(n, z_dim)`, finite."""
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError("z must be a list of lists of numbers, one list per z-point")
    _check_count(len(rows), max_points)
    for index, row in enumerate(rows):
        if len(row) != z_dim:
            raise ValueError(f"z[{index}] has {len(row)} components: this model takes z_dim {z_dim}")
    if not set(map(type, chain.from_iterable(rows))) <= {int, float}:
        raise ValueError("z must hold numbers only")
    try:
        return finite(np.array(rows, np.float64))
    except OverflowError:
        raise ValueError("z holds a number too large for a float32") from None


def finite(z: np.ndarray) -> np.ndarray:
    """`z` as float32 of its own. Raises ValueError when a component is not a finite float32."""
    with np.errstate(over="ignore"):
        z = np.array(z, np.float32, order="C")  # a copy: the body is read-only
    if not np.isfinite(z).all():
        raise ValueError("z holds NaN or infinity: every component must be a finite float32")
    return z


def load_json(body: bytes) -> object:
    """The value of a JSON text. Raises ValueError when it is none."""
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("the body is JSON nested too deeply") from None
    except ValueError as error:  # not JSON, not UTF-8, or an integer of thousands of digits
        raise ValueError(f"the body is not JSON: {error}") from None


Header = tuple[tuple[int, ...], bool, np.dtype, int]


def npy_header(body: bytes) -> Header:
    """Shape, order, dtype and start of the data of a .npy file. Raises ValueError when that does not read."""
    length = slice(8, 10) if body[6:7] == b"\1" else slice(8, 12)
    return _npy_header(body[: length.stop + int.from_bytes(body[length], "little")])


@lru_cache(64)
def _npy_header(head: bytes) -> Header:
    # Nearly all requests have one of a few headers, and numpy takes a tenth of a millisecond for one.
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran_order, dtype = read[version](stream)
    except Exception:  # numpy evaluates the header as a Python literal, which fails in many ways
        raise ValueError("the body is not a .npy file: its header does not read") from None
    return shape, fortran_order, dtype, stream.tell()


def _npy_z(body: bytes, header: Header, z_dim: int, most: int) -> np.ndarray:
    shape, _, dtype, _ = header
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise ValueError(f"the .npy array is of {dtype}: z takes float16, float32 or float64")
    if len(shape) != 2:
        raise ValueError(f"the .npy array has shape {shape}: z takes (n, {z_dim})")
    _check_count(shape[0], most)
    if shape[1] != z_dim:
        raise ValueError(f"the .npy array has {shape[1]} components per z-point: this model takes z_dim {z_dim}")
    return _npy_data(body, header)


def _npy_pictures(body: bytes, header: Header, image: ImageShape, most: int) -> np.ndarray:
    shape, _, dtype, _ = header
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
        raise ValueError(f"the .npy array is of {dtype} with shape {shape}: pictures take uint8 (n, H, W, 1 or 3)")
    _check_count(shape[0], most, "pictures")
    if min(shape) < 1:
        raise ValueError(f"the .npy array has shape {shape}: pictures need a pixel at least")
    return np.stack([fit_square(each, image.size, image.channels) for each in _npy_data(body, header)])


def _npy_data(body: bytes, header: Header) -> np.ndarray:
    shape, fortran_order, dtype, start = header
    promised, given = math.prod(shape) * dtype.itemsize, len(body) - start
    if promised != given:
        raise ValueError(f"the .npy header promises {promised} bytes of data, the body holds {given}")
    return np.frombuffer(body, dtype, offset=start).reshape(shape, order="F" if fortran_order else "C")


def check_pictures(value: object, shape: ImageShape, limits: Limits) -> np.ndarray:
    """The pictures of a JSON value `["base64 of an image file", ...]`, uint8 (n, size, size, channels)."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("images must be a list of image files in base64")
    _check_count(len(value), limits.points_of(shape), "pictures")
    files = []
    for index, text in enumerate(value):
        try:
            files.append(base64.b64decode(text.rpartition("base64,")[2], validate=True))  # data: URLs too
        except (binascii.Error, ValueError):
            raise ValueError(f"images[{index}] is not base64") from None
    return fit_pictures(files, shape, limits)


def fit_pictures(files: list[bytes], shape: ImageShape, limits: Limits) -> np.ndarray:
    """Image files, decoded and cut: uint8 (n, size, size, channels). Their pixels are counted by their headers."""
    pixels = sum(_pixels(data) for data in files)
    if pixels > limits.upload_pixels:
        raise TooLarge(f"{pixels:,} pixels: one request takes pictures of at most {limits.upload_pixels:,}")
    fitted = []
    for index, data in enumerate(files):
        try:
            fitted.append(fit_square(decode_image(data, UPLOADS), shape.size, shape.channels))
        except ValueError as error:
            raise ValueError(f"images[{index}]: {error}") from None
    return np.stack(fitted)


def _pixels(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(data), formats=UPLOADS) as image:  # reads the header only
            return image.size[0] * image.size[1]
    except Exception:  # decode_image says what is wrong
        return 0


def _check_count(n: int, most: int, what: str = "z-points") -> None:
    if n < 1:
        raise ValueError("z holds no z-point: at least one is needed" if what == "z-points" else "there is no picture")
    if n > most:
        raise TooLarge(f"{n} {what}: one request takes at most {most}")
