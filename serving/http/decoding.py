"""Decode request bodies: z-points and images from JSON, .npy and image files. Independent of HTTP.

Invalid input raises ValueError with a one-line message, and TooLarge, a subclass, if it exceeds a limit. The size of
a body's content is checked before anything is allocated for it, so a refused request costs no more memory than an
allowed one.
"""

import binascii
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from aecore.data.images import decode_image, fit_square, register_heif, sniff_format
from aecore.model.autoencoder import ImageShape

PNG, JPEG, WEBP, HEIC = "image/png", "image/jpeg", "image/webp", "image/heic"
NPY, JSON, ZIP = "application/x-npy", "application/json", "application/zip"
IMAGE_FILES = (PNG, JPEG, WEBP, HEIC)
PILLOW_FORMATS = ("PNG", "JPEG", "WEBP")  # Pillow starts external programs for some of its other formats
ANY_IMAGE = "image/*"
MEDIA_TYPE_ALIASES = {  # names that clients use beside the registered ones
    "image/jpg": JPEG, "image/pjpeg": JPEG, "image/x-png": PNG, "image/x-webp": WEBP,
    "image/heif": HEIC,
    "application/npy": NPY, "application/numpy": NPY, "application/x-numpy": NPY, "application/vnd.numpy": NPY,
    "text/json": JSON, "text/x-json": JSON, "application/x-json": JSON,
    "application/x-zip": ZIP, "application/x-zip-compressed": ZIP, "*": "*/*",
}  # fmt: skip
MAX_JSON_VALUES = 1_100_000  # 4,096 z-points of z_dim 256 and options
MAX_JSON_KEYS = 1000  # and colons in names
ReduceFn = Callable[[np.ndarray], Any]
CollectFn = Callable[[Iterable[np.ndarray]], Any]
BASE64URL_TO_BASE64 = bytes.maketrans(b"-_", b"+/")


class TooLarge(ValueError):
    """The request exceeds one of `Limits`."""


@dataclass(frozen=True)
class Limits:
    """The bounds of one request, and of all concurrent requests together.

    max_points: z-points or images of one request. max_body_bytes: bytes of one body. max_buffered_bytes: bytes of the
    bodies of all unanswered requests of a replica. max_output_bytes: bytes of the decoded uint8 images of one request.
    max_upload_pixels: pixels of the uploaded images of one request. timeout_s: seconds until a request must be
    answered. body_timeout_s: seconds until its body must have arrived.
    """

    max_points: int = 4096
    max_body_bytes: int = 32 << 20
    max_buffered_bytes: int = 512 << 20
    max_output_bytes: int = 256 << 20
    max_upload_pixels: int = 64_000_000
    timeout_s: float = 60.0
    body_timeout_s: float = 20.0

    def max_points_of(self, image: ImageShape) -> int:
        """Return the number of z-points whose images fit into `max_output_bytes`: 1 to `max_points`."""
        return min(self.max_points, max(1, self.max_output_bytes // (image.size**2 * image.channels)))

    def check_option(self, option: str, n: int, image: ImageShape) -> None:
        """Raise TooLarge if `option` (n, steps) asks for more than `max_points_of` z-points."""
        if n > (max_points := self.max_points_of(image)):
            raise TooLarge(f"{option} is {n}: one request takes at most {max_points} z-points")


def parse_body(
    body: bytes, content_type: str, keys: tuple[str, ...], image: ImageShape, z_dim: int, limits: Limits, *,
    reduce: ReduceFn | None = None,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """Return the array in a body, and the options beside it in a JSON body.

    The array holds z-points, float32 (n, z_dim), all finite, or images, uint8 (n, size, size, channels), cropped and
    resized to the model's `image`. With `reduce` they are a list of its results: it gets each image, uint8 (H, W, 1 or
    3), as soon as it is decoded, so that memory holds the pixels of one. `keys` are the allowed kinds: "z", "images" or
    both. `content_type` is JSON (`{"z": [[...], ...]}` or `{"images": ["base64 of an image file", ...]}`), NPY (floats
    (n, z_dim) or uint8 (n, H, W, 1 or 3)); any other is an image file. Nothing is unpickled.

    Raises ValueError for any other body, TooLarge for one beyond `limits`.
    """
    max_points = limits.max_points_of(image)
    collect = partial(_fit_all, image=image) if reduce is None else lambda images: list(map(reduce, images))
    if content_type == NPY:
        header = read_npy_header(body)
        if "images" in keys and ("z" not in keys or header.dtype == np.uint8):
            return _images_from_npy(body, header, collect, max_points), {}
        return to_finite_float32(_z_from_npy(body, header, z_dim, max_points)), {}
    if content_type != JSON:
        if "images" not in keys:
            raise ValueError("the body is an image file: send z-points, as JSON or .npy")
        return decode_image_files([body], collect, limits), {}
    check_json_size(body, z_dim, max_points)
    value = load_json(body)
    present = [key for key in keys if isinstance(value, dict) and key in value]
    if not isinstance(value, dict) or len(present) != 1:
        forms = {"z": '{"z": [[...], ...]}', "images": '{"images": ["base64 of an image file", ...]}'}
        raise ValueError(f"the JSON body must be {' or '.join(forms[key] for key in keys)}")
    options = {key: option for key, option in value.items() if key != present[0]}
    if present == ["z"]:
        return z_from_lists(value["z"], z_dim, max_points), options
    return images_from_base64(value["images"], collect, max_points, limits), options


def canonical_media_type(header: str) -> str:
    """Return the media type of a Content-Type header in lower case, without parameters, by its registered name."""
    media_type = header.partition(";")[0].strip().lower()
    return MEDIA_TYPE_ALIASES.get(media_type, media_type)


def detect_media_type(body: bytes) -> str:
    """Return NPY, or ANY_IMAGE for an image file, by the first bytes of `body`; JSON for any other."""
    if body.startswith(b"\x93NUMPY"):
        return NPY
    return ANY_IMAGE if sniff_format(body[:64]) else JSON


def check_json_size(body: bytes, z_dim: int, max_points: int) -> None:
    """Raise TooLarge if a JSON text has more brackets, commas or keys than `max_points` z-points, or too many to parse.

    Parsing holds the interpreter lock: a million numbers take up to a second, in which no other request is answered.
    """
    num_rows, num_values = body.count(b"[") - 1, body.count(b",") + 1
    if num_rows > max_points or num_values > max_points * (z_dim + 1):
        raise TooLarge(f"about {max(num_rows, num_values // z_dim)} z-points: one request takes at most {max_points}")
    if num_values > MAX_JSON_VALUES:
        raise TooLarge(f"about {num_values} numbers: JSON takes at most {MAX_JSON_VALUES}; send a .npy body")
    if body.count(b":") + body.count(b"{") > max_points + MAX_JSON_KEYS:  # each image may be a `data:` URL
        raise TooLarge("too many keys: the JSON body is one object of z-points or images and options")


def z_from_lists(rows: object, z_dim: int, max_points: int) -> np.ndarray:
    """Return the z-points of a JSON value `[[...], ...]` as finite float32 (n, z_dim)."""
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError("z must be a list of lists of numbers, one list per z-point")
    _check_count(len(rows), max_points)
    for index, row in enumerate(rows):
        if len(row) != z_dim:
            raise ValueError(f"z[{index}] has {len(row)} components: this model takes z_dim {z_dim}")
    if not set(map(type, chain.from_iterable(rows))) <= {int, float}:
        raise ValueError("z must hold numbers only")
    try:
        return to_finite_float32(np.array(rows, np.float64))
    except OverflowError:
        raise ValueError("z holds a number too large for a float32") from None


def to_finite_float32(z: np.ndarray) -> np.ndarray:
    """Return a float32 copy of `z`. Raises ValueError if a component is not a finite float32."""
    with np.errstate(over="ignore"):
        z = np.array(z, np.float32, order="C")  # a copy: the body's buffer is read-only
    if not np.isfinite(z).all():
        raise ValueError("z holds NaN or infinity: every component must be a finite float32")
    return z


def load_json(body: bytes) -> object:
    """Return the value of a JSON text. Raises ValueError if it is invalid."""
    try:
        return json.loads(body, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ValueError("the body is JSON nested too deeply") from None
    except ValueError as error:  # invalid JSON or UTF-8, or an integer of thousands of digits
        raise ValueError(f"the body is not JSON: {error}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(f"duplicate key '{Counter(name for name, _ in pairs).most_common(1)[0][0][:50]}'")
    return value


class NpyHeader(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    data_offset: int


def read_npy_header(body: bytes) -> NpyHeader:
    """Return the header of a .npy file. Raises ValueError if it is invalid."""
    length_field = slice(8, 10) if body[6:7] == b"\1" else slice(8, 12)
    return _parse_npy_header(body[: length_field.stop + int.from_bytes(body[length_field], "little")])


@lru_cache(64)
def _parse_npy_header(header: bytes) -> NpyHeader:
    # Cached: numpy takes 0.1 ms for a header, and nearly all requests have one of a few.
    stream = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran_order, dtype = readers[version](stream)
    except Exception:  # numpy evaluates the header as a Python literal, which fails in many ways
        raise ValueError("the body is not a .npy file: invalid header") from None
    return NpyHeader(shape, fortran_order, dtype, stream.tell())


def _z_from_npy(body: bytes, header: NpyHeader, z_dim: int, max_points: int) -> np.ndarray:
    shape, dtype = header.shape, header.dtype
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise ValueError(f"the .npy array is of {dtype}: z takes float16, float32 or float64")
    if len(shape) != 2:
        raise ValueError(f"the .npy array has shape {shape}: z takes (n, {z_dim})")
    _check_count(shape[0], max_points)
    if shape[1] != z_dim:
        raise ValueError(f"the .npy array has {shape[1]} components per z-point: this model takes z_dim {z_dim}")
    return _npy_data(body, header)


def _images_from_npy(body: bytes, header: NpyHeader, collect: CollectFn, max_images: int) -> Any:
    shape, dtype = header.shape, header.dtype
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
        raise ValueError(f"the .npy array is of {dtype} with shape {shape}: images take uint8 (n, H, W, 1 or 3)")
    _check_count(shape[0], max_images, "images")
    if min(shape) < 1:
        raise ValueError(f"the .npy array has shape {shape}: images need at least one pixel")
    return collect(_npy_data(body, header))


def _npy_data(body: bytes, header: NpyHeader) -> np.ndarray:
    expected, actual = math.prod(header.shape) * header.dtype.itemsize, len(body) - header.data_offset
    if expected != actual:
        raise ValueError(f"the .npy header promises {expected} bytes of data, the body holds {actual}")
    order = "F" if header.fortran_order else "C"
    return np.frombuffer(body, header.dtype, offset=header.data_offset).reshape(header.shape, order=order)


def images_from_base64(value: object, collect: CollectFn, max_images: int, limits: Limits) -> Any:
    """Pass the images of a JSON value `["base64 of an image file", ...]` to `collect` as `decode_image_files` does."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("images must be a list of image files in base64")
    _check_count(len(value), max_images, "images")
    files = []
    for index, text in enumerate(value):
        try:
            files.append(decode_base64(text))
        except ValueError:
            raise ValueError(f"images[{index}] is not base64") from None
    return decode_image_files(files, collect, limits)


def decode_base64(text: str) -> bytes:
    """Decode base64 or base64url (RFC 4648), padded or not, with or without line breaks, or a data: URL (RFC 2397).

    Raises ValueError for another text.
    """
    data = text.strip().encode("ascii")
    if data[:5].lower() == b"data:":
        header, comma, data = data.partition(b",")
        if not (comma and header.lower().endswith(b";base64")):
            raise ValueError("the data: URL is not in base64")
        data = unquote_to_bytes(data)
    data = data.translate(BASE64URL_TO_BASE64, b" \t\r\n").rstrip(b"=")
    return binascii.a2b_base64(data + b"=" * (-len(data) % 4), strict_mode=True)


def decode_image_files(files: list[bytes], collect: CollectFn, limits: Limits) -> Any:
    """Decode image files to uint8 (H, W, 1 or 3) one by one, and return what `collect` makes of them.

    Their headers are read first: TooLarge if they have more than `max_upload_pixels` in total.
    """
    pixels = sum(_pixel_count(data) for data in files)
    if pixels > limits.max_upload_pixels:
        raise TooLarge(f"{pixels:,} pixels: one request takes images of at most {limits.max_upload_pixels:,} in total")
    return collect(_decode_file(index, data) for index, data in enumerate(files))


def _fit_all(images: Iterable[np.ndarray], image: ImageShape) -> np.ndarray:
    """Crop and resize images (H, W, 1 or 3) to uint8 (n, size, size, channels)."""
    return np.stack([fit_square(pixels, image.size, image.channels) for pixels in images])


def _decode_file(index: int, data: bytes) -> np.ndarray:
    try:
        return decode_image(data, _pillow_formats())
    except ValueError as error:
        raise ValueError(f"images[{index}]: {error}") from None


def _pixel_count(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(data), formats=_pillow_formats()) as image:  # reads the header only
            return image.size[0] * image.size[1]
    except Exception:  # decode_image reports the cause
        return 0


def _pillow_formats() -> tuple[str, ...]:
    return (*PILLOW_FORMATS, "HEIF") if register_heif() else PILLOW_FORMATS


def _check_count(n: int, max_count: int, noun: str = "z-points") -> None:
    if n < 1:
        raise ValueError(f"the body holds no {noun}: send at least one")
    if n > max_count:
        raise TooLarge(f"{n} {noun}: one request takes at most {max_count}")
