"""Decode image files, crop them to a square, encode them, and decode the rows of a shard."""

import io
import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from aecore.data.image_input import to_pillow, to_pixels

MAX_PIXELS = 64_000_000  # 8,000 x 8,000; decoding such an image takes 0.5 GB
MAX_SCANS = 100  # of a JPEG; libtiff has the same limit, progressive files of cameras and editors have about 10
JPEG_QUALITY = 95
# Those of _SIGNATURES by Pillow's names. Pillow starts external programs for others.
FILE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF")
Encoding = Literal["jpeg", "png", "raw"]
ENCODINGS: tuple[str, ...] = get_args(Encoding)
_ORIENTATION = 0x0112  # the EXIF tag
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # those with a length, and the end of the image
_SIGNATURES = {  # the first bytes of a file
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "WebP": rb"RIFF.{4}WEBP",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "AVIF": rb".{4}ftyp(avi[fs]|(mif1|msf1).{4}(.{4})*avi[fs])",
    "JPEG 2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "PNM": rb"P[1-6]\s+[#\d]",
    "HEIF": rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
}


@dataclass(frozen=True)
class Crop:
    """The square of an upright image to keep: the centre of `box`, or of the image, times `fraction`."""

    fraction: float = 1.0
    box: tuple[int, int, int, int] | None = None  # left, top, width, height, in pixels of the source

    @classmethod
    def parse(cls, text: str) -> "Crop":
        """Parse `square`, a fraction such as `0.8`, or `left,top,width,height`. Raises ValueError for another text."""
        try:
            if text == "square":
                return cls()
            if "," not in text:
                fraction = float(text)
                if 0 < fraction <= 1:
                    return cls(fraction)
            else:
                left, top, width, height = (int(word) for word in text.split(","))
                if min(left, top) >= 0 and min(width, height) >= 1:
                    return cls(box=(left, top, width, height))
        except ValueError:
            pass
        raise ValueError(f"crop takes square, a fraction over 0 up to 1, or left,top,width,height, not {text!r}")

    def __str__(self) -> str:
        """Return the text that `parse` takes, the same for equal crops."""
        if self.box is not None:
            return ",".join(map(str, self.box))
        return "square" if self.fraction == 1 else repr(self.fraction)

    def square(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, top, right, bottom in an image of that size. Raises ValueError if the box exceeds it."""
        left, top, box_width, box_height = self.box or (0, 0, width, height)
        if left + box_width > width or top + box_height > height:
            raise ValueError(f"the crop {self} exceeds its {width} x {height} pixels")
        side = max(1, math.floor(min(box_width, box_height) * self.fraction + 0.5))
        left, top = left + (box_width - side) // 2, top + (box_height - side) // 2
        return left, top, left + side, top + side


CENTRE = Crop()


@cache
def register_heif() -> bool:
    """Let Pillow decode HEIF (HEIC) by pillow-heif, if the extra `heic` is installed; return True if it is."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
    return True


@cache
def _known_formats() -> tuple[str, ...]:
    register_heif()
    Image.init()
    return tuple(name for name in FILE_FORMATS if name in Image.OPEN)


def missing_decoder(image_format: str | None) -> str | None:
    """Return how to get by without the decoder of a format of `sniff_format` that Pillow lacks here, else None."""
    if image_format == "HEIF" and not register_heif():
        return "install zpoint[heic], or convert it"
    return "convert it" if image_format == "JPEG XL" else None


def sniff_format(head: bytes) -> str | None:
    """Return the image format that a file's first 64 bytes show, or None."""
    return next((name for name, start in _SIGNATURES.items() if re.match(start, head, re.DOTALL)), None)


def decode_image(data: bytes, formats: tuple[str, ...] | None = None) -> np.ndarray:
    """Decode an image file of one of these Pillow `formats`, by default FILE_FORMATS, to uint8 (H, W, 3 or 1 if gray).

    EXIF orientation is applied, transparency is composed on white, 16 bits become 8, an animation is its first
    frame. Raises ValueError with the reason when the bytes are not an image, are cut short or exceed MAX_PIXELS.
    """
    if not data:
        raise ValueError("it is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=formats or _known_formats()) as image:  # reads the header only
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels is over the limit of {MAX_PIXELS:,} pixels")
            if data.startswith(b"\xff\xd8") and _has_too_many_scans(data):
                raise ValueError(f"it is a JPEG of more than {MAX_SCANS} scans")
            if image.format == "JPEG" and (fast := _decode_plain_jpeg(data, image)) is not None:
                return fast
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # here, so that the image is not in memory twice
            return to_pixels(image)
    except Image.UnidentifiedImageError:
        image_format = sniff_format(data[:64])
        if remedy := missing_decoder(image_format):
            raise ValueError(f"it is a {image_format} image, which Pillow does not decode: {remedy}") from None
        if image_format and formats and image_format.upper() not in formats:
            raise ValueError(f"it is a {image_format} image: only {', '.join(formats)} are accepted") from None
        if data.startswith(b"version https://git-lfs"):
            raise ValueError("it is a pointer of Git LFS, not the image: run `git lfs pull`") from None
        raise ValueError(f"it is not an image (it starts with {data[:12]!r})") from None
    except Image.DecompressionBombError as error:  # Pillow's own limit, on the header too; its text has the count
        pixels = int("".join(re.findall(r"\((\d+) pixels\)", str(error))) or 0)
        raise ValueError(f"{pixels:,} pixels is over the limit of {MAX_PIXELS:,} pixels") from None
    except ValueError:
        raise
    except Exception as error:  # on bad bytes Pillow's parsers raise OSError, SyntaxError, struct.error and others
        raise ValueError(f"it does not decode: {str(error) or type(error).__name__}") from error


def _has_too_many_scans(data: bytes) -> bool:
    """Return True if a JPEG has more than MAX_SCANS scans: each takes the time of an image, however few its bytes."""
    if data.count(b"\xff\xda") <= MAX_SCANS:  # also those in metadata and behind the image
        return False
    position = scans = 0
    while (marker := _JPEG_MARKER.search(data, position)) and marker[0] != b"\xff\xd9":
        scans += marker[0] == b"\xff\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans > MAX_SCANS


def _decode_plain_jpeg(data: bytes, image: Image.Image) -> np.ndarray | None:
    """Decode an upright RGB or gray JPEG at 2.5 times Pillow's speed; return None for one that Pillow must decode."""
    if image.mode not in ("RGB", "L") or image.getexif().get(_ORIENTATION, 1) != 1:
        return None
    try:
        return simplejpeg.decode_jpeg(data, "RGB" if image.mode == "RGB" else "GRAY")
    except ValueError:  # simplejpeg is strict: it rejects harmless irregularities too
        return None


def fit_square(image: np.ndarray, size: int, channels: int, crop: Crop = CENTRE) -> np.ndarray:
    """Crop uint8 (H, W, 1 or 3) to the square of `crop` and resize it to uint8 (size, size, channels).

    Downscaling is antialiased. Gray becomes colour by repetition, colour becomes gray by ITU-R 601 luma.
    Raises ValueError when the crop's box exceeds the image.
    """
    height, width, image_channels = image.shape
    left, top, right, bottom = crop.square(width, height)
    image = image[top:bottom, left:right]
    if right - left != size:
        pillow = to_pillow(np.ascontiguousarray(image))
        image = np.asarray(pillow.resize((size, size), Image.Resampling.BICUBIC)).reshape(size, size, image_channels)
    if channels == image_channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(to_pillow(np.ascontiguousarray(image)).convert("L"))[..., None]


def encode_image(image: np.ndarray, encoding: str, quality: int = JPEG_QUALITY) -> bytes:
    """Encode uint8 (H, W, 1 or 3) as 'jpeg' (of that quality, chroma not subsampled), 'png' or 'raw' bytes.

    The bytes are a function of the arguments alone. Raises ValueError for another encoding.
    """
    image = np.ascontiguousarray(image)
    if encoding == "jpeg":
        colour_space, subsampling = ("GRAY", "Gray") if image.shape[2] == 1 else ("RGB", "444")
        return simplejpeg.encode_jpeg(image, quality, colour_space, subsampling)
    if encoding == "png":
        buffer = io.BytesIO()
        to_pillow(image).save(buffer, "PNG")
        return buffer.getvalue()
    if encoding == "raw":
        return image.tobytes()
    raise ValueError(f"unknown encoding {encoding!r}; it is one of {', '.join(ENCODINGS)}")


def decode_rows(
    encoded: list[bytes], encoding: str, size: int, channels: int, out: np.ndarray, first_row: int = 0
) -> None:
    """Decode rows of a shard, from `first_row` on, into `out`, contiguous uint8 (n, size, size, channels).

    Threads may decode into slices of one array: the JPEG decoder releases the interpreter lock.
    Raises ValueError naming the row that does not decode to exactly this shape.
    """
    shape = (size, size, channels)
    assert out.shape == (len(encoded), *shape), (out.shape, len(encoded), shape)
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    colour_space = "GRAY" if channels == 1 else "RGB"
    for index, data in enumerate(encoded):
        try:
            if encoding == "jpeg":
                decoded = simplejpeg.decode_jpeg(data, colour_space, buffer=out[index])
                if decoded.shape != shape:
                    raise ValueError(f"its shape is {decoded.shape}, not {shape}")
            elif encoding == "raw":
                out[index] = np.frombuffer(data, np.uint8).reshape(shape)
            else:
                with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                    out[index] = np.asarray(image).reshape(shape)
        except (ValueError, OSError) as error:
            raise ValueError(f"row {first_row + index} does not decode as {encoding}: {error}") from error
