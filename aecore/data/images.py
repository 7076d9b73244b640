"""One image between bytes and pixels: decode what users have, cut it square, encode it, decode shard rows."""

import io
import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000  # 8,000 x 8,000; decoding such an image takes 0.2 GB
JPEG_QUALITY = 95
Encoding = Literal["jpeg", "png", "raw"]
ENCODINGS: tuple[str, ...] = get_args(Encoding)
_ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class Crop:
    """Which square of an upright picture is kept: the middle of `box`, or of the whole, times `fraction`."""

    fraction: float = 1.0
    box: tuple[int, int, int, int] | None = None  # left, top, width, height, in pixels of the source

    @classmethod
    def parse(cls, text: str) -> "Crop":
        """Give the crop that `square`, a fraction as in `0.8`, or `left,top,width,height` stands for."""
        try:
            if text == "square":
                return cls()
            if "," not in text:
                fraction = float(text)
                if 0 < fraction <= 1:
                    return cls(fraction)
            else:
                left, top, width, height = (int(part) for part in text.split(","))
                if min(left, top) >= 0 and min(width, height) >= 1:
                    return cls(box=(left, top, width, height))
        except ValueError:
            pass
        raise ValueError(f"crop takes square, a fraction over 0 up to 1, or left,top,width,height, not {text!r}")

    def __str__(self) -> str:
        """Give the text that `parse` takes, one text for equal crops."""
        if self.box is not None:
            return ",".join(map(str, self.box))
        return "square" if self.fraction == 1 else repr(self.fraction)

    def square(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Give left, top, right and bottom in a picture of that size. Raises ValueError when the box leaves it."""
        left, top, wide, high = self.box or (0, 0, width, height)
        if left + wide > width or top + high > height:
            raise ValueError(f"the crop {self} leaves its {width} x {height} pixels")
        side = max(1, math.floor(min(wide, high) * self.fraction + 0.5))
        left, top = left + (wide - side) // 2, top + (high - side) // 2
        return left, top, left + side, top + side


CENTRE = Crop()


def decode_image(data: bytes, formats: tuple[str, ...] | None = None) -> np.ndarray:
    """Decode the bytes of an image file to uint8 (H, W, 3), or (H, W, 1) for a gray one; of all formats or these.

    EXIF orientation is applied, transparency lies on white, 16 bits become 8, an animation gives its first
    frame. Raises ValueError with the reason when the bytes are no image, are cut short or are a bomb.
    """
    if not data:
        raise ValueError("it is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:  # reads the header only
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels is over the limit of {MAX_PIXELS:,} pixels")
            if image.format == "JPEG" and (fast := _decode_plain_jpeg(data, image)) is not None:
                return fast
            image.load()
            upright = ImageOps.exif_transpose(image) or image
            return _to_pixels(upright)
    except Image.UnidentifiedImageError:
        raise ValueError(f"it is not an image (it starts with {data[:12]!r})") from None
    except Image.DecompressionBombError as error:  # Pillow's own limit, of the header too; its text has the number
        pixels = int("".join(re.findall(r"\((\d+) pixels\)", str(error))) or 0)
        raise ValueError(f"{pixels:,} pixels is over the limit of {MAX_PIXELS:,} pixels") from None
    except ValueError:
        raise
    except Exception as error:  # on bad bytes Pillow's parsers raise OSError, SyntaxError, struct.error and others
        raise ValueError(f"it does not decode: {str(error) or type(error).__name__}") from error


def _decode_plain_jpeg(data: bytes, image: Image.Image) -> np.ndarray | None:
    """Decode an upright RGB or gray JPEG at 2.5 times Pillow's speed; None where Pillow must look at it."""
    if image.mode not in ("RGB", "L") or image.getexif().get(_ORIENTATION, 1) != 1:
        return None
    try:
        return simplejpeg.decode_jpeg(data, "RGB" if image.mode == "RGB" else "GRAY")
    except ValueError:  # strict: any irregularity, harmless or not
        return None


def _to_pixels(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit gray, in one of several spellings
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        wide[wide == image.info.get("transparency", -1)] = 65535
        return ((wide + 128) // 257).astype(np.uint8)[..., None]
    if image.mode == "F":
        raise ValueError("it has floating-point pixels, whose range is unknown; save it with 8 or 16 bits")
    gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image.convert("L" if gray else "RGB"))
    return pixels[..., None] if gray else pixels


def fit_square(image: np.ndarray, size: int, channels: int, crop: Crop = CENTRE) -> np.ndarray:
    """Cut the square that `crop` names out of uint8 (H, W, 1 or 3) and give uint8 (size, size, channels).

    Shrinking is antialiased. Gray becomes colour by repetition, colour becomes gray by ITU-R 601 luma.
    Raises ValueError when the crop's box leaves the image.
    """
    height, width, have = image.shape
    left, top, right, bottom = crop.square(width, height)
    image = image[top:bottom, left:right]
    if right - left != size:
        pillow = Image.fromarray(np.ascontiguousarray(image[..., 0] if have == 1 else image))
        image = np.asarray(pillow.resize((size, size), Image.Resampling.BICUBIC)).reshape(size, size, have)
    if channels == have:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))[..., None]


def encode_image(image: np.ndarray, encoding: str, quality: int = JPEG_QUALITY) -> bytes:
    """Encode uint8 (H, W, 1 or 3) as 'jpeg' (of that quality, colour at full resolution), 'png' or 'raw' bytes.

    The bytes depend on the arguments alone. Raises ValueError for another encoding.
    """
    gray = image.shape[2] == 1
    image = np.ascontiguousarray(image)
    if encoding == "jpeg":
        colours, sampling = ("GRAY", "Gray") if gray else ("RGB", "444")
        return simplejpeg.encode_jpeg(image, quality, colours, sampling)
    if encoding == "png":
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0] if gray else image).save(buffer, "PNG")
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
    colours = "GRAY" if channels == 1 else "RGB"
    for index, data in enumerate(encoded):
        try:
            if encoding == "jpeg":
                decoded = simplejpeg.decode_jpeg(data, colours, buffer=out[index])
                if decoded.shape != shape:
                    raise ValueError(f"its shape is {decoded.shape}, not {shape}")
            elif encoding == "raw":
                out[index] = np.frombuffer(data, np.uint8).reshape(shape)
            else:
                with Image.open(io.BytesIO(data)) as image:
                    out[index] = np.asarray(image).reshape(shape)
        except (ValueError, OSError) as error:
            raise ValueError(f"row {first_row + index} does not decode as {encoding}: {error}") from error
