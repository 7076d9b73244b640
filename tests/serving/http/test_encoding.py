"""Content negotiation and the encoding of responses."""

import base64
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serving.http.decoding import JSON, NPY, PNG, WEBP
from serving.http.encoding import encode_images, encode_npy, encode_png, negotiate_media_type


def test_npy_equals_the_bytes_of_numpy_save():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    for array in (
        images,
        images[1:2],
        images[:0],
        images[::2, :, ::-1],
        np.asfortranarray(images),
        np.eye(3, dtype="<f4"),
    ):
        buffer = io.BytesIO()
        np.save(buffer, array.copy())
        assert encode_npy(array) == buffer.getvalue()


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", PNG),
        ("*/*", PNG),
        ("image/*", PNG),
        ("application/x-npy", NPY),
        ("Application/JSON", JSON),
        ("application/json;q=0.5, application/x-npy", NPY),
        ("image/*;q=0, application/zip;q=0, */*;q=0.1", NPY),
        ("text/html,application/xhtml+xml,image/avif,*/*;q=0.8", PNG),
    ],
)
def test_negotiate_media_type(accept, media_type):
    assert negotiate_media_type(accept) == media_type


@pytest.mark.parametrize("accept", ["text/html", "image/gif, text/*", "*/*;q=0", "image/png;q=x"])
def test_negotiate_media_type_raises_if_none_is_acceptable(accept):
    with pytest.raises(ValueError, match=r"accept image/png, image/jpeg, .* or application/json"):
        negotiate_media_type(accept)


@pytest.mark.parametrize("channels", [1, 3])
def test_encoded_images_decode_to_the_same_pixels(channels):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, channels), np.uint8)
    np.testing.assert_array_equal(np.load(io.BytesIO(encode_images(images, NPY))), images)

    body = json.loads(encode_images(images, JSON, {"model": "zpoint/1"}))
    assert body["model"] == "zpoint/1"
    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(p)))) for p in body["images"]]
    np.testing.assert_array_equal(np.reshape(decoded, images.shape), images)

    single = Image.open(io.BytesIO(encode_images(images[:1], PNG)))
    assert (single.format, single.mode) == ("PNG", "L" if channels == 1 else "RGB")
    np.testing.assert_array_equal(np.asarray(single).reshape(images[0].shape), images[0])

    grid = np.asarray(Image.open(io.BytesIO(encode_images(images, PNG)))).reshape(8, 12, channels)
    for index, image in enumerate(images):
        row, column = divmod(index, 3)
        np.testing.assert_array_equal(grid[4 * row : 4 * row + 4, 4 * column : 4 * column + 4], image)
    assert not grid[4:, 8:].any()


@settings(max_examples=60)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3]), st.integers(0, 3))
def test_png_decodes_to_the_same_pixels(height, width, channels, depth):
    image = np.random.default_rng(width).integers(0, 256 >> 2 * depth, (height, width, channels), np.uint8)
    decoded = Image.open(io.BytesIO(encode_png(image)))
    decoded.load()  # verifies the checksum of each chunk
    np.testing.assert_array_equal(np.asarray(decoded).reshape(image.shape), image)


def test_grid_beyond_the_size_of_webp_raises():
    with pytest.raises(ValueError, match="16383 pixels a side"):
        encode_images(np.zeros((1, 16, 16_400, 1), np.uint8), WEBP)
