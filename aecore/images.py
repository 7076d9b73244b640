"""One image between bytes and pixels: decode what users have, cut it square, encode it, decode shard rows."""

import io
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000  # 8,000 x 8,000; decoding such an image takes 0.2 GB
JPEG_QUALITY = 95
Encoding = Literal["jpeg", "png", "raw"]
ENCODINGS: tuple[str, ...] = get_args(Encoding)
_ORIENTATION = 0x0112  # the EXIF tag


def decode_image(data: bytes) -> np.ndarray:
    """Decode the bytes of an image file to uint8 (H, W, 3), or (H, W, 1) for a gray one.

    EXIF orientation is applied, transparency lies on white, 16 bits become 8, an animation gives its first
    frame. Raises ValueError with the reason when the bytes are no image, are cut short or are a bomb.
    """
    if not data:
        raise ValueError("it is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header only
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
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than the limit of {MAX_PIXELS:,} pixels") from None
    except ValueError:
        raise
    except (
        Exception
    ) as error:  # Pillow's parsers raise many kinds (OSError, SyntaxError, struct.error, ...) on bad bytes
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
        return ((wide + 128) // 257).astype(np.uint8)[..., None]
    if image.mode == "F":
        raise ValueError("it has floating-point pixels, whose range is unknown; save it with 8 or 16 bits")
    gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image.convert("L" if gray else "RGB"))
    return pixels[..., None] if gray else pixels


def fit_square(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Cut the centre square out of uint8 (H, W, 1 or 3) and give uint8 (size, size, channels).

    Shrinking is antialiased. Gray becomes colour by repetition, colour becomes gray by ITU-R 601 luma.
    """
    height, width, have = image.shape
    side = min(height, width)
    if (height, width) != (size, size):
        left, top = (width - side) // 2, (height - side) // 2
        pillow = Image.fromarray(image[..., 0] if have == 1 else image)
        box = (left, top, left + side, top + side)
        image = np.asarray(pillow.resize((size, size), Image.Resampling.BICUBIC, box=box)).reshape(size, size, have)
    if channels == have:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def encode_image(image: np.ndarray, encoding: str) -> bytes:
    """Encode uint8 (H, W, 1 or 3) as 'jpeg' (quality 95, colour at full resolution), 'png' or 'raw' bytes.

    The bytes depend on the pixels alone. Raises ValueError for another encoding.
    """
    gray = image.shape[2] == 1
    image = np.ascontiguousarray(image)
    if encoding == "jpeg":
        colours, sampling = ("GRAY", "Gray") if gray else ("RGB", "444")
        return simplejpeg.encode_jpeg(image, JPEG_QUALITY, colours, sampling)
    if encoding == "png":
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0] if gray else image).save(buffer, "PNG")
        return buffer.getvalue()
    if encoding == "raw":
        return image.tobytes()
    raise ValueError(f"unknown encoding {encoding!r}; it is one of {', '.join(ENCODINGS)}")


def decode_rows(
    images: pa.ChunkedArray | pa.Array | list[bytes], encoding: str, size: int, channels: int, out: np.ndarray
) -> None:
    """Decode a shard's `image` column into `out`, contiguous uint8 (n, size, size, channels), one row each.

    Threads may decode into slices of one array: the JPEG decoder lets the interpreter go on meanwhile.
    Raises ValueError naming the row that does not decode to exactly this shape.
    """
    rows = images if isinstance(images, list) else images.to_pylist()
    shape = (size, size, channels)
    assert out.shape == (len(rows), *shape), (out.shape, len(rows), shape)
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    colours = "GRAY" if channels == 1 else "RGB"
    for index, data in enumerate(rows):
        try:
            if encoding == "jpeg":
                found = simplejpeg.decode_jpeg(data, colours, buffer=out[index])
                if found.shape != shape:
                    raise ValueError(f"it is {found.shape}, not {shape}")
            elif encoding == "raw":
                out[index] = np.frombuffer(data, np.uint8).reshape(shape)
            else:
                with Image.open(io.BytesIO(data)) as image:
                    out[index] = np.asarray(image).reshape(shape)
        except (ValueError, OSError) as error:
            raise ValueError(f"image {index} of the shard does not decode as {encoding}: {error}") from error
