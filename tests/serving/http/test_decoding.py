import base64
import io
import json
import pickle
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from aecore.model.autoencoder import ImageShape
from serving.http.decoding import JSON, NPY, PNG, Limits, TooLarge, parse_body
from serving.http.encoding import JPEG, WEBP, encode_images, encode_npy, encode_png, negotiate_media_type

Z_DIM, IMAGE = 3, ImageShape(16, 3)


def parse_z(body, content_type, z_dim=Z_DIM, max_points=4096):
    z, beside = parse_body(body, content_type, ("z",), IMAGE, z_dim, Limits(points=max_points))
    assert beside == {}
    return z


def parse_pictures(body, content_type):
    return parse_body(body, content_type, ("images",), IMAGE, Z_DIM, Limits(upload_pixels=1_000_000))[0]


def npy_header(shape, descr="<f4", fortran=False):
    buffer = io.BytesIO()
    header = {"shape": shape, "fortran_order": fortran, "descr": descr}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def read_json(value, **limits):
    return parse_z(value if isinstance(value, bytes) else json.dumps(value).encode(), JSON, Z_DIM, **limits)


def test_npy_is_what_numpy_writes():
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


def test_json_and_npy_give_the_same_z():
    z = np.array([[1, 2, 3], [-0.5, 1e-3, 7]])
    from_json = read_json({"z": z.tolist()})
    assert from_json.dtype == np.float32
    np.testing.assert_array_equal(from_json, z.astype(np.float32))
    for array in (z, z.astype(np.float32), z.astype(">f8"), np.asfortranarray(z)):
        np.testing.assert_array_equal(parse_z(encode_npy(array), NPY, Z_DIM), from_json)
    half = z.astype(np.float16)
    np.testing.assert_array_equal(parse_z(encode_npy(half), NPY, Z_DIM), half.astype(np.float32))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        ([1, 2, 3], "must be"),
        ({}, "must be"),
        ({"z": None}, "list of lists"),
        ({"z": "abc"}, "list of lists"),
        ({"z": [1, 2, 3]}, "list of lists"),
        ({"z": []}, "no z-point"),
        ({"z": [[]]}, "z_dim 3"),
        ({"z": [[1, 2]]}, r"z\[0\] has 2 components: this model takes z_dim 3"),
        ({"z": [[1, 2, 3], [1, 2, 3, 4]]}, r"z\[1\] has 4"),
        ({"z": [["1", "2", "3"]]}, "numbers only"),
        ({"z": [[True, 2, 3]]}, "numbers only"),
        ({"z": [[None, 2, 3]]}, "numbers only"),
        ({"z": [[[1], [2], [3]]]}, "numbers only"),
        (b'{"z": [[NaN, 0, 0]]}', "finite"),
        (b'{"z": [[1e999, 0, 0]]}', "finite"),
        (b'{"z": [[-Infinity, 0, 0]]}', "finite"),
        (b'{"z": [[1e300, 0, 0]]}', "finite"),
        (b'{"z": [[1' + b"0" * 400 + b", 0, 0]]}", "too large for a float32"),
        (b'{"z": [[1' + b"0" * 9000 + b", 0, 0]]}", "not JSON"),
        (b'{"z": ' + b"[" * 3000 + b"]" * 3000 + b"}", "nested too deeply"),
    ],
)
def test_wrong_json_is_refused_in_one_line(value, message):
    with pytest.raises(ValueError, match=message) as error:
        read_json(value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not a .npy"),
        (b"\x93NUMPY", "not a .npy"),
        (pickle.dumps(np.zeros((1, 3))), "not a .npy"),
        (b"\x93NUMPY\x03\x00\x10\x00\x00\x00" + b" " * 16, "not a .npy"),
        (encode_npy(np.zeros((1, 3), np.int64)), "float16, float32 or float64"),
        (encode_npy(np.zeros((1, 3), np.complex64)), "float16, float32 or float64"),
        (encode_npy(np.zeros((1, 3), np.longdouble)), "float16, float32 or float64"),
        (encode_npy(np.array([["a", "b", "c"]])), "float16, float32 or float64"),
        (encode_npy(np.zeros(3)), r"shape \(3,\)"),
        (encode_npy(np.zeros((1, 1, 3))), r"takes \(n, 3\)"),
        (encode_npy(np.zeros((0, 3))), "no z-point"),
        (encode_npy(np.zeros((1, 4))), "z_dim 3"),
        (encode_npy(np.full((1, 3), np.nan)), "finite"),
        (encode_npy(np.full((1, 3), 1e300)), "finite"),
        (encode_npy(np.zeros((1, 3)))[:-1], "promises 24 bytes of data, the body holds 23"),
        (encode_npy(np.zeros((1, 3))) + b"x", "promises 24 bytes of data, the body holds 25"),
        (npy_header((4, 3)), "promises 48 bytes of data, the body holds 0"),
        (npy_header((-1, 3)), "no z-point"),
        (npy_header((1 << 62, 1 << 62)), "at most 4096"),
        (npy_header((10_000_000, 3)), "10000000 z-points: one request takes at most 4096"),
    ],
)
def test_wrong_npy_is_refused_in_one_line(body, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_z(body, NPY, Z_DIM)
    assert "\n" not in str(error.value)


def test_pickled_npy_is_refused_and_not_unpickled():
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("it was unpickled",)

    buffer = io.BytesIO()
    np.save(buffer, np.array([[Trap()] * 3], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="of object: z takes float16"):
        parse_z(buffer.getvalue(), NPY, Z_DIM)


@pytest.mark.parametrize(
    "body",
    [
        b'{"z":[' + b"[0,0,0]," * 9_999_999 + b"[0,0,0]]}",
        b'{"z":[' + b"[]," * 9_999_999 + b"[]]}",
        b'{"z":[[' + b"0," * 9_999_999 + b"0]]}",
    ],
    ids=["full", "empty", "one"],
)
def test_ten_million_points_are_refused_at_once_and_without_memory(body):
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(TooLarge, match="one request takes at most 4096"):
        parse_z(body, JSON, Z_DIM)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 1 << 20


def test_the_limit_itself_is_taken():
    z = np.ones((5, Z_DIM))
    assert len(read_json({"z": z.tolist()}, max_points=5)) == 5
    assert len(parse_z(encode_npy(z), NPY, Z_DIM, 5)) == 5
    for body, kind in ((json.dumps({"z": z.tolist()}).encode(), JSON), (encode_npy(z), NPY)):
        with pytest.raises(TooLarge):
            parse_z(body, kind, Z_DIM, 4)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([JSON, NPY]), st.booleans())
@example(b"\x93NUMPY\x01\x00\x02\x00((", NPY, False)
def test_any_bytes_parse_or_raise_value_error(body, kind, framed):
    if framed:
        body = (b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") if kind == NPY else b'{"z": [') + body
    try:
        z = parse_z(body, kind, Z_DIM)
    except ValueError:
        return
    assert z.shape[1] == Z_DIM
    assert np.isfinite(z).all()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([JSON, NPY, PNG, JPEG, WEBP]), st.booleans())
def test_any_bytes_are_pictures_or_raise_value_error(body, kind, framed):
    frames = {
        JSON: b'{"images": ["', NPY: b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little"), JPEG: b"\xff\xd8\xff\xe0",
        PNG: b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR", WEBP: b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    }  # fmt: skip
    try:
        images = parse_pictures(frames[kind] + body if framed else body, kind)
    except ValueError:
        return
    assert images.shape[1:] == (16, 16, 3)
    assert images.dtype == np.uint8


def test_what_would_start_a_program_is_no_picture():
    """Pillow hands PostScript to Ghostscript, which runs for as long as the sender likes."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n{} loop\n"
    with pytest.raises(ValueError, match="it is not an image"):
        parse_pictures(postscript, PNG)


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.integers(-2, 2**62)] * 4), st.sampled_from(["|u1", "<f4", "<u8", "|O", "|S9"]), st.booleans())
def test_any_npy_header_promises_what_is_there_or_is_refused(shape, descr, fortran):
    with pytest.raises(ValueError, match=r"\.npy|picture"):
        parse_pictures(npy_header(shape, descr, fortran) + b"x" * 7, NPY)


@pytest.mark.parametrize(
    ("accept", "kind"),
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
def test_choose_answer(accept, kind):
    assert negotiate_media_type(accept) == kind


@pytest.mark.parametrize("accept", ["text/html", "image/gif, text/*", "*/*;q=0", "image/png;q=x"])
def test_choose_answer_refuses(accept):
    with pytest.raises(ValueError, match=r"it takes image/png, image/jpeg, .* or application/json"):
        negotiate_media_type(accept)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_back_from_every_answer(channels):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, channels), np.uint8)
    np.testing.assert_array_equal(np.load(io.BytesIO(encode_images(images, NPY))), images)

    answer = json.loads(encode_images(images, JSON, {"model": "zpoint/1"}))
    assert answer["model"] == "zpoint/1"
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(p)))) for p in answer["images"]]
    np.testing.assert_array_equal(np.reshape(pictures, images.shape), images)

    single = Image.open(io.BytesIO(encode_images(images[:1], PNG)))
    assert (single.format, single.mode) == ("PNG", "L" if channels == 1 else "RGB")
    np.testing.assert_array_equal(np.asarray(single).reshape(images[0].shape), images[0])

    grid = np.asarray(Image.open(io.BytesIO(encode_images(images, PNG)))).reshape(8, 12, channels)
    for index, image in enumerate(images):
        row, column = divmod(index, 3)
        np.testing.assert_array_equal(grid[4 * row : 4 * row + 4, 4 * column : 4 * column + 4], image)
    assert not grid[4:, 8:].any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3]), st.integers(0, 3))
def test_every_png_holds_its_pixels(height, width, channels, depth):
    image = np.random.default_rng(width).integers(0, 256 >> 2 * depth, (height, width, channels), np.uint8)
    found = Image.open(io.BytesIO(encode_png(image)))
    found.load()  # checks each part's sum
    np.testing.assert_array_equal(np.asarray(found).reshape(image.shape), image)


def test_a_grid_larger_than_webp_takes_is_refused():
    with pytest.raises(ValueError, match="16383 pixels a side"):
        encode_images(np.zeros((1, 16, 16_400, 1), np.uint8), WEBP)
