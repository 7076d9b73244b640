import io

import numpy as np
import pytest
from PIL import Image

from aecore.data import images
from aecore.data.images import Crop, decode_image, decode_rows, encode_image, fit_square, sniff_format
from aecore.data.synthetic_faces import draw_face

FACE = draw_face(0, 0)[0]


def encode_with_pillow(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def two_halves(left: int, right: int) -> np.ndarray:
    """Return a gray image (20, 40) whose halves differ."""
    return np.repeat([[left] * 20 + [right] * 20], 20, axis=0).astype(np.uint8)


def test_gray_stays_gray_and_colour_stays_colour():
    assert decode_image(encode_with_pillow(Image.fromarray(two_halves(10, 200)), "PNG")).shape == (20, 40, 1)
    assert decode_image(encode_with_pillow(Image.fromarray(two_halves(10, 200)), "JPEG")).shape == (20, 40, 1)
    assert (decode_image(encode_with_pillow(Image.fromarray(FACE), "PNG")) == FACE).all()


def test_the_pixel_limit_applies_before_decoding(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 9000)
    with pytest.raises(ValueError, match="96 x 96 pixels is over the limit"):
        decode_image(encode_image(FACE, "jpeg"))


def test_fit_square_crops_the_centre():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert (fit_square(wide, 10, 3) == 255).all()
    assert fit_square(wide, 5, 1).shape == (5, 5, 1)
    assert fit_square(two_halves(0, 255)[..., None], 16, 3).shape == (16, 16, 3)
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    assert np.abs(fit_square(checks, 16, 1).astype(int) - 127).max() < 12  # antialiased


@pytest.mark.parametrize(
    ("text", "shape", "square"),
    [
        ("square", (109, 89), (0, 10, 89, 99)),
        ("1.0", (109, 89), (0, 10, 89, 99)),
        ("0.8", (100, 200), (60, 10, 140, 90)),
        ("0.5", (89, 89), (22, 22, 67, 67)),  # 44.5 becomes 45
        ("0.001", (20, 30), (14, 9, 15, 10)),
        ("3,5,10,10", (20, 30), (3, 5, 13, 15)),
        ("0,0,30,20", (20, 30), (5, 0, 25, 20)),  # the middle of a box that is no square
    ],
)
def test_a_crop_is_parsed_and_applied(text: str, shape: tuple[int, int], square: tuple[int, ...]):
    crop = Crop.parse(text)
    assert Crop.parse(str(crop)) == crop
    assert crop.square(shape[1], shape[0]) == square
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    left, top, right, bottom = square
    cropped = pixels[top:bottom, left:right]
    assert (fit_square(pixels, right - left, 3, crop) == cropped).all()
    assert (fit_square(pixels, 7, 3, crop) == fit_square(np.ascontiguousarray(cropped), 7, 3)).all()


def test_a_box_of_the_output_size_is_cropped():
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    assert fit_square(pixels, 8, 1, Crop.parse("0,0,8,8")).tolist() == pixels.tolist()
    assert fit_square(pixels, 4, 1, Crop.parse("4,4,4,4")).tolist() == pixels[4:, 4:].tolist()


@pytest.mark.parametrize("text", ["", "round", "0", "-0.5", "1.5", "nan", "1,2,3", "1,2,3,0", "-1,0,5,5", "1,2,3,x"])
def test_a_wrong_crop_is_refused(text: str):
    with pytest.raises(ValueError, match=r"crop takes square, a fraction over 0 up to 1, or left,top,width,height"):
        Crop.parse(text)


def test_a_box_that_exceeds_the_image_is_refused():
    with pytest.raises(ValueError, match="the crop 90,0,10,10 exceeds its 96 x 96 pixels"):
        fit_square(FACE, 16, 3, Crop.parse("90,0,10,10"))


def test_jpeg_size_grows_with_quality():
    sizes = [len(encode_image(FACE, "jpeg", quality)) for quality in (1, 50, 95, 100)]
    assert sizes == sorted(set(sizes))
    assert encode_image(FACE, "jpeg") == encode_image(FACE, "jpeg", 95)


@pytest.mark.parametrize("encoding", ["jpeg", "png", "raw"])
@pytest.mark.parametrize("channels", [1, 3])
def test_encoded_rows_round_trip(encoding: str, channels: int):
    faces = [fit_square(draw_face(1, i)[0], 32, channels) for i in range(5)]
    encoded = [encode_image(face, encoding) for face in faces]
    out = np.empty((5, 32, 32, channels), np.uint8)
    decode_rows(encoded, encoding, 32, channels, out)
    assert np.abs(out.astype(int) - np.stack(faces)).mean() < (4 if encoding == "jpeg" else 1e-9)


@pytest.mark.parametrize("encoding", ["jpeg", "png", "raw"])
def test_rows_of_another_size_or_invalid_bytes_are_refused(encoding: str):
    good = encode_image(FACE, encoding)
    for size, data in ((32, good), (128, good), (96, b"rubbish")):
        with pytest.raises(ValueError, match=f"row 0 does not decode as {encoding}"):
            decode_rows([data], encoding, size, 3, np.empty((1, size, size, 3), np.uint8))


def test_an_unknown_encoding_is_refused():
    with pytest.raises(ValueError, match="jpeg, png, raw"):
        encode_image(FACE, "webp")


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "BMP", "WebP", "TIFF", "AVIF", "JPEG 2000", "PNM"])
def test_a_format_is_known_by_its_first_bytes(name: str):
    file = io.BytesIO()
    Image.fromarray(FACE).save(file, {"JPEG 2000": "JPEG2000", "PNM": "PPM"}.get(name, name))
    assert sniff_format(file.getvalue()[:64]) == name


def test_bytes_of_no_image_have_no_format():
    assert sniff_format(b"sizes: 96x96\n") is None
