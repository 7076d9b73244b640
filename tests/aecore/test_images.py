import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from aecore import images
from aecore.faces import draw_face
from aecore.images import decode_image, decode_rows, encode_image, fit_square

FACE = draw_face(0, 0)[0]


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def halves(left: int, right: int) -> np.ndarray:
    """A gray (20, 40) picture whose halves differ."""
    return np.repeat([[left] * 20 + [right] * 20], 20, axis=0).astype(np.uint8)


def test_gray_stays_gray_and_colour_stays_colour():
    assert decode_image(saved(Image.fromarray(halves(10, 200)), "PNG")).shape == (20, 40, 1)
    assert decode_image(saved(Image.fromarray(halves(10, 200)), "JPEG")).shape == (20, 40, 1)
    assert (decode_image(saved(Image.fromarray(FACE), "PNG")) == FACE).all()


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to see it upright
    data = saved(Image.fromarray(np.stack([halves(0, 250)] * 3, 2)), "JPEG", exif=exif)
    upright = decode_image(data)
    assert upright.shape == (40, 20, 3)
    assert upright[:15].max() < 30
    assert upright[25:].min() > 220


def test_transparency_lies_on_white():
    colours = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert decode_image(saved(colours, "PNG")).min() == 255
    assert decode_image(saved(Image.new("LA", (4, 4), (0, 0)), "PNG")).tolist() == [[[255]] * 4] * 4
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    assert decode_image(saved(palette, "PNG"))[0, 0].tolist() == [9, 8, 7]
    assert decode_image(saved(palette, "GIF", transparency=1)).min() == 255


def test_cmyk_sixteen_bits_and_animations():
    cmyk = decode_image(saved(Image.fromarray(FACE).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - FACE).mean() < 8
    deep = Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16))
    assert decode_image(saved(deep, "PNG")).ravel().tolist() == [0, 1, 128, 255]
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    moving = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(moving)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><p>404", "not an image"),
        (saved(Image.fromarray(FACE), "JPEG")[:1500], "truncated"),
        (saved(Image.fromarray(FACE), "PNG")[:1500], "does not decode"),
        (saved(Image.new("1", (20_000, 20_000)), "PNG"), "limit of 64,000,000 pixels"),
        (saved(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(data: bytes, reason: str):
    with pytest.raises(ValueError, match=reason):
        decode_image(data)


def test_the_pixel_limit_counts_before_decoding(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 9000)
    with pytest.raises(ValueError, match="96 x 96 pixels is over the limit"):
        decode_image(encode_image(FACE, "jpeg"))


def test_fit_square_cuts_the_centre():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert (fit_square(wide, 10, 3) == 255).all()
    assert fit_square(wide, 5, 1).shape == (5, 5, 1)
    assert fit_square(halves(0, 255)[..., None], 16, 3).shape == (16, 16, 3)
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    assert np.abs(fit_square(checks, 16, 1).astype(int) - 127).max() < 12  # antialiased


@pytest.mark.parametrize("encoding", ["jpeg", "png", "raw"])
@pytest.mark.parametrize("channels", [1, 3])
def test_rows_come_back_from_their_encoding(encoding: str, channels: int):
    pictures = [fit_square(draw_face(1, i)[0], 32, channels) for i in range(5)]
    column = pa.chunked_array([pa.array([encode_image(p, encoding) for p in pictures], pa.binary())])
    out = np.empty((5, 32, 32, channels), np.uint8)
    decode_rows(column, encoding, 32, channels, out)
    assert np.abs(out.astype(int) - np.stack(pictures)).mean() < (4 if encoding == "jpeg" else 1e-9)


@pytest.mark.parametrize("encoding", ["jpeg", "png", "raw"])
def test_rows_of_another_size_or_of_rubbish_are_refused(encoding: str):
    good = encode_image(FACE, encoding)
    for size, data in ((32, good), (128, good), (96, b"rubbish")):
        with pytest.raises(ValueError, match=f"image 0 of the shard does not decode as {encoding}"):
            decode_rows([data], encoding, size, 3, np.empty((1, size, size, 3), np.uint8))


def test_an_unknown_encoding_is_refused():
    with pytest.raises(ValueError, match="jpeg, png, raw"):
        encode_image(FACE, "webp")
