"""Images as callers have them become files or uint8 arrays."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aecore.data import image_input
from aecore.data.image_input import is_z_point, read_end, read_images, split_ends
from aecore.latent.arrays import ZPoints

PIXELS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)


def test_files_and_bytes_are_read_as_they_are(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"file")
    assert read_images([tmp_path / "a.png", str(tmp_path / "a.png"), b"x", bytearray(b"y")]) == [b"file"] * 2 + [
        b"x",
        b"y",
    ]


@pytest.mark.parametrize(
    ("array", "count", "shape"),
    [
        (np.zeros((4, 5)), 1, (4, 5, 1)), (np.zeros((4, 5, 1)), 1, (4, 5, 1)), (np.zeros((4, 5, 3)), 1, (4, 5, 3)),
        (np.zeros((6, 4, 5)), 6, (4, 5, 1)), (np.zeros((6, 4, 5, 3)), 6, (4, 5, 3)),
    ],
)  # fmt: skip
def test_array_holds_one_image_or_several(array: np.ndarray, count: int, shape: tuple[int, ...]):
    images = read_images(array)
    assert [image.shape for image in images if isinstance(image, np.ndarray)] == [shape] * count


def test_floats_are_rounded():
    values = np.array([[0, 0.3, 0.7, 1.4, 254.6, 255]])
    for dtype in (np.float16, np.float32, np.float64):
        (image,) = read_images((values / 255).astype(dtype))
        assert np.ravel(image).tolist() == [0, 0, 1, 1, 255, 255]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 2), -0.1), r"floats take values in \[0, 1\]"),
        (np.full((2, 2), 1.1), r"floats take values in \[0, 1\]"),
        (np.full((2, 2), np.nan), r"floats take values in \[0, 1\]"),
        (np.zeros((2, 2), np.int64), "not int64"),
        (np.zeros((0, 2, 2, 3)), r"shape \(0, 2, 2, 3\) holds no images"),
        (np.zeros((2, 2, 2, 5)), "holds no images"),
        (np.zeros(2), "holds no images"),
        (5, "not int"),
        (ZPoints(np.zeros((2, 3))), r"z-points \(2, 3\) are no image"),
    ],
)
def test_anything_else_is_refused(array, message: str):
    with pytest.raises(ValueError, match=message):
        read_images(array)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "I"])
@pytest.mark.parametrize("size", [(13, 5), (5, 13), (40, 1), (1, 40)])
def test_pil_image_is_converted_in_bands(mode: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 65536, size[::-1])
    image = Image.fromarray(values.astype(np.uint16)) if mode == "I;16" else Image.fromarray(values.astype(np.int32))
    if mode not in ("I", "I;16"):
        image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 4), np.uint8), "RGBA").convert(mode)
    if mode == "P":
        image.info["transparency"] = bytes(rng.integers(0, 256, 256, np.uint8))
    [whole] = read_images(image)
    for band_pixels in (1, 7, 30):
        monkeypatch.setattr(image_input, "BAND_PIXELS", band_pixels)
        np.testing.assert_array_equal(read_images(image)[0], whole)


def test_pil_image_is_upright_and_on_white():
    photo = Image.fromarray(PIXELS)
    photo.getexif()[0x0112] = 6  # the camera was turned
    (image,) = read_images(photo)
    assert np.array_equal(image, np.rot90(PIXELS, -1))
    buffer = io.BytesIO()
    photo.save(buffer, "PNG", exif=photo.getexif())
    assert np.array_equal(read_images(Image.open(buffer))[0], image)
    assert read_images(Image.fromarray(PIXELS[..., 0]))[0].shape == (2, 3, 1)
    assert (read_images(Image.new("RGBA", (3, 2)))[0] == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_array_with_transparency_is_read_as_its_pil_image_is(mode: str):
    image = Image.fromarray(PIXELS).convert(mode)
    image.putalpha(Image.fromarray(PIXELS[..., 0] * 14))
    pixels, expected = np.asarray(image), read_images(image)[0]
    for array in (pixels, pixels / 255, pixels[None]):
        np.testing.assert_array_equal(read_images(array), [expected])


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_pil_image_of_16_bits_is_reduced_to_8(dtype: type):
    gray16 = np.array([[0, 257, 32896, 65535]], dtype)
    (image,) = read_images(Image.fromarray(gray16))
    assert np.ravel(image).tolist() == [0, 1, 128, 255]


def test_pil_image_of_floats_is_refused():
    with pytest.raises(ValueError, match="floating-point pixels"):
        read_images(Image.fromarray(np.zeros((2, 3), np.float32)))


def test_ends_of_an_interpolation_are_two():
    assert split_ends(["a", "b"]) == ("a", "b")
    for ends, count in ((["a"], 1), ([1, 2, 3], 3), ("ab", 1), (b"ab", 1), (np.zeros((3, 2)), 3), (5, 1)):
        with pytest.raises(ValueError, match=f"{count} z-points or images: interpolation needs two"):
            split_ends(ends)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("end", "count"), [([], 0), ([b"a", b"b"], 2), (np.zeros((2, 4, 5)), 2)])
def test_end_of_an_interpolation_is_one_image(end, count: int):
    assert read_end(b"a") == read_end([b"a"]) == b"a"
    with pytest.raises(ValueError, match=f"an end takes one image, not {count}"):
        read_end(end)


def test_z_point_is_a_vector_of_numbers():
    for end, expected in (
        (np.zeros(3), True), ([1, 2.5], True), ((1,), True), (np.zeros((2, 2)), False), ("ab", False), (b"ab", False),
        (["a", "b"], False), (np.array([True]), False), (ZPoints(np.zeros((1, 3))), True),
        (ZPoints(np.zeros((2, 3))), False),
    ):  # fmt: skip
        assert is_z_point(end) == expected
