"""What goes over the wire: z-points in (JSON, .npy), images out (PNG, .npy, JSON). Nothing here knows HTTP.

Every refusal is a ValueError with a one-line message; TooLarge when it is the amount that is refused. A body
is measured before anything is made of it, so no request costs more memory than one that is allowed.
"""

import base64
import io
import json
import math
from itertools import chain

import numpy as np
from PIL import Image

PNG, NPY, JSON = "image/png", "application/x-npy", "application/json"
MAX_POINTS = 4096


class TooLarge(ValueError):
    """More than one request may hold."""


def parse_z(body: bytes, content_type: str, z_dim: int, max_points: int = MAX_POINTS) -> np.ndarray:
    """The z-points of a request body, float32 `(n, z_dim)`, 1 <= n <= max_points, all finite.

    `content_type` is JSON (`{"z": [[...], ...]}`) or NPY (a float array `(n, z_dim)`); nothing is unpickled.
    Raises ValueError for anything else, TooLarge for more than `max_points`.
    """
    z = (_parse_npy if content_type == NPY else _parse_json)(body, z_dim, max_points)
    with np.errstate(over="ignore"):
        z = np.array(z, np.float32, order="C")  # a copy: the body is read-only
    if not np.isfinite(z).all():
        raise ValueError("z holds NaN or infinity: every component must be a finite float32")
    return z


def _parse_json(body: bytes, z_dim: int, max_points: int) -> np.ndarray:
    # The brackets and commas bound what json.loads can build, before it builds it.
    points, numbers = body.count(b"[") - 1, body.count(b",") + 1
    if points > max_points or numbers > max_points * (z_dim + 1):
        raise TooLarge(f"about {max(points, numbers // z_dim)} z-points: one request takes at most {max_points}")
    value = load_json(body)
    if not isinstance(value, dict) or list(value) != ["z"]:
        raise ValueError('the JSON body must be {"z": [[...], ...]} and nothing else')
    rows = value["z"]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError("z must be a list of lists of numbers, one list per z-point")
    _check_count(len(rows), max_points)
    for index, row in enumerate(rows):
        if len(row) != z_dim:
            raise ValueError(f"z[{index}] has {len(row)} components: this model takes z_dim {z_dim}")
    if not set(map(type, chain.from_iterable(rows))) <= {int, float}:
        raise ValueError("z must hold numbers only")
    try:
        return np.array(rows, np.float64)
    except OverflowError:
        raise ValueError("z holds a number too large for a float32") from None


def load_json(body: bytes) -> object:
    """The value of a JSON text. Raises ValueError when it is none."""
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("the body is JSON nested too deeply") from None
    except ValueError as error:  # not JSON, not UTF-8, or an integer of thousands of digits
        raise ValueError(f"the body is not JSON: {error}") from None


def _parse_npy(body: bytes, z_dim: int, max_points: int) -> np.ndarray:
    shape, fortran_order, dtype, start = _npy_header(body)
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise ValueError(f"the .npy array is of {dtype}: z takes float16, float32 or float64")
    if len(shape) != 2:
        raise ValueError(f"the .npy array has shape {shape}: z takes (n, {z_dim})")
    _check_count(shape[0], max_points)
    if shape[1] != z_dim:
        raise ValueError(f"the .npy array has {shape[1]} components per z-point: this model takes z_dim {z_dim}")
    promised, given = shape[0] * shape[1] * dtype.itemsize, len(body) - start
    if promised != given:
        raise ValueError(f"the .npy header promises {promised} bytes of data, the body holds {given}")
    return np.frombuffer(body, dtype, offset=start).reshape(shape, order="F" if fortran_order else "C")


def _npy_header(body: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran_order, dtype = read[version](stream)
    except Exception:  # numpy evaluates the header as a Python literal, which fails in many ways
        raise ValueError("the body is not a .npy file: its header does not read") from None
    return shape, fortran_order, dtype, stream.tell()


def _check_count(n: int, max_points: int) -> None:
    if n < 1:
        raise ValueError("z holds no z-point: at least one is needed")
    if n > max_points:
        raise TooLarge(f"{n} z-points: one request takes at most {max_points}")


def choose_answer(accept: str) -> str:
    """PNG, NPY or JSON, whichever an Accept header likes best; PNG for an empty one and between equals.

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
        kind: next((ranges[r] for r in (kind, f"{kind.split('/')[0]}/*", "*/*") if r in ranges), 0.0)
        for kind in (PNG, NPY, JSON)
    }
    best = max(scores, key=lambda kind: scores[kind])
    if not scores[best] > 0:
        raise ValueError(f"no answer in '{accept[:100]}': it takes {PNG}, {NPY} or {JSON}")
    return best


def encode_images(images: np.ndarray, kind: str, model: str) -> bytes:
    """`images` uint8 (n, H, W, C), n >= 1, as the body of an answer.

    PNG: the image, or for many a grid without gaps, row by row, ceil(sqrt(n)) columns, black at the end.
    NPY: the array. JSON: `{"model": "name/version", "images": [...]}` with one base64 PNG per image.
    """
    if kind == PNG:
        return _png(_grid(images))
    if kind == NPY:
        return encode_npy(images)
    pictures = [base64.b64encode(_png(image)).decode() for image in images]
    return json.dumps({"model": model, "images": pictures}).encode()


def encode_npy(array: np.ndarray) -> bytes:
    """`array` as the bytes of a .npy file. Raises ValueError for an array of objects."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _grid(images: np.ndarray) -> np.ndarray:
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:n] = images
    cells = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return cells.reshape(rows * height, columns * width, channels)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    # Level 1 takes a third of the default's time for a sixth more bytes.
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
