"""Parsing of request bodies."""

import base64
import io
import json
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aecore.data.images import encode_image
from aecore.model.autoencoder import ImageShape
from serving.http import decoding
from serving.http.decoding import JPEG, JSON, NPY, PNG, WEBP, Limits, TooLarge, parse_body
from serving.http.encoding import encode_npy

Z_DIM, IMAGE = 3, ImageShape(16, 3)
FACE = encode_image(np.zeros((16, 16, 3), np.uint8), "png")


def parse_z(body, content_type, z_dim=Z_DIM, max_points=4096):
    z, options = parse_body(body, content_type, ("z",), IMAGE, z_dim, Limits(max_points=max_points))
    assert options == {}
    return z


def parse_images(body, content_type):
    return parse_body(body, content_type, ("images",), IMAGE, Z_DIM, Limits(max_upload_pixels=1_000_000))[0]


def make_npy_header(shape, descr="<f4", fortran=False):
    buffer = io.BytesIO()
    header = {"shape": shape, "fortran_order": fortran, "descr": descr}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def parse_json(value, **limits):
    return parse_z(value if isinstance(value, bytes) else json.dumps(value).encode(), JSON, Z_DIM, **limits)


def test_json_and_npy_yield_the_same_z():
    z = np.array([[1, 2, 3], [-0.5, 1e-3, 7]])
    from_json = parse_json({"z": z.tolist()})
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
        ({"z": []}, "no z-points"),
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
def test_invalid_json_raises_a_one_line_error(value, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_json(value)
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
        (encode_npy(np.zeros((0, 3))), "no z-points"),
        (encode_npy(np.zeros((1, 4))), "z_dim 3"),
        (encode_npy(np.full((1, 3), np.nan)), "finite"),
        (encode_npy(np.full((1, 3), 1e300)), "finite"),
        (encode_npy(np.zeros((1, 3)))[:-1], "promises 24 bytes of data, the body holds 23"),
        (encode_npy(np.zeros((1, 3))) + b"x", "promises 24 bytes of data, the body holds 25"),
        (make_npy_header((4, 3)), "promises 48 bytes of data, the body holds 0"),
        (make_npy_header((-1, 3)), "no z-points"),
        (make_npy_header((1 << 62, 1 << 62)), "at most 4096"),
        (make_npy_header((10_000_000, 3)), "10000000 z-points: one request takes at most 4096"),
    ],
)
def test_invalid_npy_raises_a_one_line_error(body, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_z(body, NPY, Z_DIM)
    assert "\n" not in str(error.value)


def test_pickled_npy_is_never_unpickled():
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
def test_ten_million_z_points_are_rejected_unparsed_without_memory(body, monkeypatch):
    monkeypatch.setattr(decoding, "load_json", lambda body: pytest.fail("it was parsed"))
    tracemalloc.start()
    with pytest.raises(TooLarge, match="one request takes at most 4096"):
        parse_z(body, JSON, Z_DIM)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_exactly_max_points_are_accepted():
    z = np.ones((5, Z_DIM))
    assert len(parse_json({"z": z.tolist()}, max_points=5)) == 5
    assert len(parse_z(encode_npy(z), NPY, Z_DIM, 5)) == 5
    for body, content_type in ((json.dumps({"z": z.tolist()}).encode(), JSON), (encode_npy(z), NPY)):
        with pytest.raises(TooLarge):
            parse_z(body, content_type, Z_DIM, 4)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (lambda n: json.dumps({"images": [base64.b64encode(FACE).decode()] * n}).encode(), JSON),
        (lambda n: encode_npy(np.zeros((n, 20, 16, 3), np.uint8)), NPY),
    ],
)
def test_exactly_max_images_are_accepted(body, content_type):
    def parse(n):
        return parse_body(body(n), content_type, ("images",), IMAGE, Z_DIM, Limits(max_points=5))[0]

    assert parse(5).shape == (5, 16, 16, 3)
    with pytest.raises(TooLarge, match="6 images: one request takes at most 5"):
        parse(6)
    with pytest.raises(ValueError, match="the body holds no images: send at least one"):
        parse(0)


@settings(max_examples=300)
@given(st.binary(max_size=300), st.sampled_from([JSON, NPY]), st.booleans())
@example(b"\x93NUMPY\x01\x00\x02\x00((", NPY, False)
def test_arbitrary_bytes_parse_as_z_or_raise_value_error(body, content_type, has_prefix):
    if has_prefix:
        body = (b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") if content_type == NPY else b'{"z": [') + body
    try:
        z = parse_z(body, content_type, Z_DIM)
    except ValueError:
        return
    assert z.shape[1] == Z_DIM
    assert np.isfinite(z).all()


@settings(max_examples=300)
@given(st.binary(max_size=300), st.sampled_from([JSON, NPY, PNG, JPEG, WEBP]), st.booleans())
def test_arbitrary_bytes_parse_as_images_or_raise_value_error(body, content_type, has_prefix):
    prefixes = {
        JSON: b'{"images": ["', NPY: b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little"), JPEG: b"\xff\xd8\xff\xe0",
        PNG: b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR", WEBP: b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    }  # fmt: skip
    try:
        images = parse_images(prefixes[content_type] + body if has_prefix else body, content_type)
    except ValueError:
        return
    assert images.shape[1:] == (16, 16, 3)
    assert images.dtype == np.uint8


def test_postscript_is_rejected():
    """Pillow runs Ghostscript on PostScript, and the sender decides for how long."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n{} loop\n"
    with pytest.raises(ValueError, match=r"images\[0\]: "):
        parse_images(postscript, PNG)


@settings(max_examples=100)
@given(st.tuples(*[st.integers(-2, 2**62)] * 4), st.sampled_from(["|u1", "<f4", "<u8", "|O", "|S9"]), st.booleans())
def test_npy_header_that_contradicts_its_data_is_rejected(shape, descr, fortran):
    with pytest.raises(ValueError, match=r"\.npy|images"):
        parse_images(make_npy_header(shape, descr, fortran) + b"x" * 7, NPY)


@pytest.mark.parametrize(
    "body",
    [
        b'{"z":[' + b",".join([b"[" + b",".join([b"1"] * 300) + b"]"] * 4096) + b"]}",
        b"{" + b",".join(b'"%x":0' % key for key in range(10_000)) + b"}",
        b'{"z":[' + b",".join([b"{}"] * 10_000) + b"]}",
    ],
    ids=["values", "keys", "objects"],
)
def test_json_that_takes_seconds_is_refused_before_it_is_parsed(body: bytes, monkeypatch: pytest.MonkeyPatch):
    """Parsing holds the interpreter lock, and other requests wait."""
    monkeypatch.setattr(decoding, "load_json", lambda body: pytest.fail("it was parsed"))
    with pytest.raises(TooLarge, match=r"\.npy|keys"):
        parse_body(body, JSON, ("z",), ImageShape(32, 3), 300, Limits())


def test_z_points_of_z_dim_256_and_images_as_data_urls_pass_as_json():
    rows = b'{"z":[' + b",".join([b"[" + b",".join([b"1"] * 256) + b"]"] * 4096) + b"]}"
    assert parse_body(rows, JSON, ("z",), ImageShape(32, 3), 256, Limits())[0].shape == (4096, 256)
    urls = b'{"images":[' + b",".join([b'"data:image/png;base64,iVBO"'] * 4096) + b"]}"
    decoding.check_json_size(urls, 256, 4096)
