"""Both clients: their results equal the model's, and which failures they retry."""

import asyncio
import base64
import io
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from aecore.data.images import encode_image
from aecore.data.synthetic_faces import draw_face
from aecore.latent.samplers import sample
from serving.client import AsyncClient, Client, EndpointError
from serving.client import client as client_module
from serving.client.client import to_npy
from serving.http.decoding import Limits
from serving.runtime.model_slot import ModelSlot
from tests.serving.app_server import IMAGE, Z_DIM, make_model, make_slot, make_stored_points, serve_app

REPO = Path(__file__).parents[3]
TOKEN = "of the clients' test"
SLOT, MODEL, POINTS = make_slot(), make_model(), make_stored_points()
Z = np.random.default_rng(0).normal(size=(5, Z_DIM)).astype(np.float32)
NOW = datetime(2026, 11, 29, 12, 0, 0, tzinfo=UTC)
FACES = np.stack([draw_face(index, 0, IMAGE.size)[0] for index in range(3)])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_app(SLOT, token=TOKEN) as url:
        yield url


@pytest.fixture(params=[Client, AsyncClient])
def call(request: pytest.FixtureRequest) -> Any:
    """Return a function that calls a method of one of the two clients: `call(url, "decode", z)`."""

    def call(url: str, method: str, *args: Any, token: str = TOKEN, timeout: float = 60.0, **kwargs: Any) -> Any:
        if request.param is Client:
            with Client(url, token, timeout) as client:
                return getattr(client, method)(*args, **kwargs)

        async def call_async() -> Any:
            async with AsyncClient(url, token, timeout) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(call_async())

    return call


@pytest.fixture(autouse=True)
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """List the seconds that the clients would sleep before a retry. Time stands still at NOW; jitter is at its most."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(client_module, "time", SimpleNamespace(sleep=slept.append, time=NOW.timestamp))
    monkeypatch.setattr(client_module, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(client_module, "random", SimpleNamespace(uniform=lambda low, high: high))
    return slept


def images_close(images: np.ndarray, expected: np.ndarray) -> bool:
    """Return true if no pixel differs by more than 1: sums in another order."""
    return (
        images.dtype == np.uint8 and images.shape == expected.shape and np.abs(images.astype(int) - expected).max() <= 1
    )


def decoded(z: np.ndarray) -> np.ndarray:
    return MODEL.decode(torch.from_numpy(z)).numpy()


def read_png(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_decode_and_sample_return_the_images_of_the_model(call, url):
    assert images_close(call(url, "decode", Z), decoded(Z))
    assert images_close(call(url, "decode", Z.astype(np.float64)), decoded(Z))
    assert images_close(read_png(call(url, "decode_png", Z[:1])), decoded(Z)[0])
    z = sample("gaussian", 4, SLOT.current.info.latents, 5, temperature=0.5).numpy()
    assert images_close(call(url, "sample", "gaussian", 4, 5, temperature=0.5), decoded(z))
    assert read_png(call(url, "sample_png", n=4)).shape == (2 * IMAGE.size, 2 * IMAGE.size, 3)
    images = call(url, "sample", "gaussian", 4, 5, temperature=0.5)
    np.testing.assert_array_equal(images.z, z)
    assert (images.seed, images.model) == (5, "zpoint/7")


def test_answers_carry_z_seed_and_version(call, url):
    images = call(url, "decode", Z)
    np.testing.assert_array_equal(images.z, Z)
    assert (images.model, images.z.model, images.seed) == ("zpoint/7", "zpoint/7", None)
    images = call(url, "sample", n=2)
    assert images_close(call(url, "sample", n=2, seed=images.seed), images)
    assert images_close(call(url, "decode", images.z), images)
    images = call(url, "reconstruct", FACES, "denoise")
    np.testing.assert_array_equal(call(url, "encode", images.corrupted), images.z)
    np.testing.assert_array_equal(call(url, "reconstruct", FACES, "denoise", images.seed).corrupted, images.corrupted)
    images = call(url, "interpolate", Z[:2], 3)
    np.testing.assert_allclose(images.z[1], (Z[0] + Z[1]) / 2, atol=1e-6)


def test_one_z_point_and_integers_are_decoded(call, url):
    assert images_close(call(url, "decode", Z[0]), decoded(Z[:1]))
    assert images_close(call(url, "decode", np.arange(Z_DIM)), decoded(np.arange(Z_DIM, dtype=np.float32)[None]))
    assert images_close(read_png(call(url, "decode_png", Z[0].tolist())), decoded(Z[:1])[0])
    for z in (np.zeros((1, 2, Z_DIM)), ["a"], np.zeros(Z_DIM, bool)):
        with pytest.raises(ValueError, match=r"z takes numbers, \(n, z_dim\) or \(z_dim,\)"):
            call(url, "decode", z)


def test_encode_and_reconstruct_take_images_in_every_form(call, url, tmp_path):
    expected_z = MODEL.encode(torch.from_numpy(FACES).permute(0, 3, 1, 2) / 255).mean.numpy()
    files = [encode_image(face, "png") for face in FACES]
    path = tmp_path / "face.png"
    path.write_bytes(files[0])
    pillow = [Image.fromarray(face) for face in FACES]
    for image in (path, str(path), files[0], pillow[0], FACES[0], FACES[0] / 255):
        np.testing.assert_allclose(call(url, "encode", image), expected_z[:1], atol=1e-4)
    for images in (FACES, files, pillow, FACES / np.float32(255), [path, pillow[1], FACES[2]]):
        z = call(url, "encode", images)
        assert z.dtype == np.float32
        np.testing.assert_allclose(z, expected_z, atol=1e-4)
        assert images_close(call(url, "reconstruct", images), decoded(expected_z))
        encoder_input = call(url, "reconstruct", images, "drop", 3, keep=0.5).corrupted
        kept_pixels = (encoder_input == FACES).all(-1)
        assert 0.4 < kept_pixels.mean() < 0.6
        assert (encoder_input[~kept_pixels] == 0).all()
        gray = call(url, "reconstruct", images, "drop", 3, keep=0.5, fill="gray").corrupted
        assert (gray[~kept_pixels] == 128).all()


def test_interpolate_and_model(call, url):
    straight = call(url, "interpolate", Z[:2], 3)
    assert images_close(straight, decoded(np.stack([Z[0], (Z[0] + Z[1]) / 2, Z[1]])))
    spherical = call(url, "interpolate", Z[:2], 3, "spherical")
    assert images_close(spherical[[0, 2]], straight[[0, 2]])
    assert not images_close(spherical, straight)
    z = MODEL.encode(torch.from_numpy(FACES).permute(0, 3, 1, 2) / 255).mean.numpy()
    for ends in (FACES[:2], [Image.fromarray(FACES[0]), encode_image(FACES[1], "png")]):
        assert images_close(call(url, "interpolate", ends, 2), decoded(z[:2]))
    assert images_close(call(url, "interpolate", [FACES[0], Z[1]], 2), decoded(np.stack([z[0], Z[1]])))
    encoded = [call(url, "encode", face) for face in FACES[:2]]
    assert images_close(call(url, "interpolate", encoded, 2), decoded(z[:2]))
    for ends in ([FACES[0], FACES[:2]], [FACES[0], []], [Z[0], FACES[:2]]):
        with pytest.raises(ValueError, match="an end takes one image"):
            call(url, "interpolate", ends)
    with pytest.raises(ValueError, match="5 z-points or images: interpolation needs two"):
        call(url, "interpolate", Z)
    model = call(url, "model")
    assert (model["name"], model["version"], model["z_dim"]) == ("zpoint", "7", Z_DIM)


def test_stored_points_come_with_map_thumbnails_and_neighbours(call, url, monkeypatch):
    points = call(url, "points", "Smiling")
    np.testing.assert_allclose(points["points"], POINTS.xy, atol=1e-5)
    assert points["points"].dtype == points["values"].dtype == np.float32
    np.testing.assert_array_equal(points["values"], POINTS.attributes["Smiling"])
    assert call(url, "points")["values"] is None
    thumbnails = call(url, "thumbnails")
    assert len(thumbnails) == len(POINTS) == len(points["splits"])
    assert all((thumbnails[row] == POINTS.thumbnail(row)).all() for row in (0, 11, 99))
    distances = np.linalg.norm(Z[:, None] - POINTS.z.numpy(), axis=2)
    monkeypatch.setattr(client_module, "SMALL", replace(client_module.SMALL, points=6))  # two z-points a request
    for nearest, expected in zip(call(url, "neighbours", Z, k=3), distances, strict=True):
        assert [one["index"] for one in nearest] == expected.argsort()[:3].tolist()
        np.testing.assert_array_equal(nearest[0]["thumbnail"], thumbnails[nearest[0]["index"]])
    image = call(url, "decode_at", *POINTS.xy[5].tolist())
    assert images_close(image, decoded(image.z))
    np.testing.assert_allclose(image.z[0], POINTS.z[5], atol=1e-3)


def test_a_model_without_stored_points_is_a_404(call):
    slot = make_slot()
    slot.current.info = replace(slot.current.info, points=None)
    with serve_app(slot, token=TOKEN) as url:
        for method, arguments in (("points", []), ("thumbnails", []), ("neighbours", [Z]), ("decode_at", [0, 0])):
            with pytest.raises(EndpointError, match="stored without points") as caught:
                call(url, method, *arguments)
            assert caught.value.status == 404


@pytest.mark.parametrize(
    ("method", "arguments", "status", "message"),
    [
        ("decode", [np.zeros((1, Z_DIM + 1))], 422, "this model takes z_dim 8"),
        ("decode", [np.full((1, Z_DIM), np.nan)], 422, "finite"),
        ("sample", ["magic"], 422, "unknown sampler 'magic'"),
        ("reconstruct", [FACES, "magic"], 422, "unknown task 'magic'"),
        ("encode", [[b"no picture"]], 422, "images"),
        ("interpolate", [Z[:2], 5000], 413, "at most 4096"),
    ],
)
def test_a_refused_request_raises_the_endpoints_message(call, url, method, arguments, status, message):
    with pytest.raises(EndpointError, match=message) as caught:
        call(url, method, *arguments)
    assert caught.value.status == status
    assert isinstance(caught.value, ValueError)


def test_large_input_is_split_into_requests_of_one_version(call, monkeypatch):
    """With an endpoint that takes 100 z-points, 64 kB and 300,000 pixels in a request."""
    monkeypatch.setattr(client_module, "SMALL", client_module.Limits(8, 1 << 15, 100_000))
    limits = Limits(max_points=100, max_body_bytes=1 << 16, max_upload_pixels=300_000)
    z = np.random.default_rng(0).normal(size=(250, Z_DIM)).astype(np.float32)
    faces = np.tile(FACES, (80, 1, 1, 1))
    files = [encode_image(np.tile(face, (20, 20, 1)), "png") for face in FACES] * 2  # 102,400 pixels each
    with serve_app(make_slot(), token=TOKEN, limits=limits) as url:
        images = call(url, "decode", z)
        assert images_close(images, decoded(z))
        np.testing.assert_array_equal(images.z, z)
        np.testing.assert_allclose(call(url, "encode", faces), np.tile(call(url, "encode", FACES), (80, 1)), atol=1e-4)
        assert call(url, "encode", files).shape == (6, Z_DIM)
        samples = call(url, "sample", "normal", 250, 3)
        assert images_close(samples[:100], call(url, "sample", "normal", 100, 3))
        assert len(np.unique(samples.z, axis=0)) == 250
        again = call(url, "sample", n=250)
        np.testing.assert_array_equal(call(url, "sample", n=250, seed=again.seed).z, again.z)
        noisy = call(url, "reconstruct", faces, "denoise", 3)
        assert noisy.corrupted.shape == noisy.shape == faces.shape
        assert images_close(call(url, "reconstruct", faces, "denoise", 3), noisy)


@pytest.mark.parametrize("shape", [(170, 140), (140, 171), (256, 192), (192, 257)])
def test_photo_beyond_the_body_limit_is_sent_as_its_centre_square(call, monkeypatch, shape):
    """With an endpoint that takes 64 kB in a request: square pixels of 58,800 and, reduced, 110,592 bytes."""
    monkeypatch.setattr(client_module, "SMALL", client_module.Limits(8, 1 << 15, 100_000))
    faces = [Image.fromarray(face).resize(shape, Image.Resampling.BICUBIC) for face in FACES[:2]]
    files = [encode_image(np.asarray(face), "jpeg") for face in faces]
    with serve_app(make_slot(), token=TOKEN, limits=Limits(max_body_bytes=1 << 16)) as url:
        z = call(url, "encode", files)
        for photos in (faces, [np.asarray(face) for face in faces]):
            np.testing.assert_allclose(call(url, "encode", photos), z, atol=0.1)
            np.testing.assert_allclose(call(url, "encode", photos[0]), z[:1], atol=0.1)
            np.testing.assert_allclose(call(url, "reconstruct", photos).z, z, atol=0.1)
            np.testing.assert_allclose(call(url, "interpolate", photos, 2).z, z, atol=0.1)
            np.testing.assert_allclose(call(url, "interpolate", [photos[0], files[1]], 2).z, z, atol=0.1)


def test_z_points_are_decoded_by_their_version_alone(call, url):
    z = call(url, "encode", FACES)
    assert z.model == "zpoint/7"
    with serve_app(make_slot("8"), token=TOKEN) as newer:
        for method, *arguments in (
            ("decode", z), ("decode", z[0] + z[1]), ("decode_png", z), ("interpolate", z[:2]),
            ("interpolate", [z[0], FACES[1]]),
        ):  # fmt: skip
            with pytest.raises(EndpointError, match="serves zpoint/8, not zpoint/7") as caught:
                call(newer, method, *arguments)
            assert caught.value.status == 409
        assert call(newer, "decode", z, version=8).model == "zpoint/8"
        assert call(newer, "decode", np.array(z.tolist())).model == "zpoint/8"
        with pytest.raises(ValueError, match="the ends are z-points of zpoint/7 and zpoint/8"):
            call(newer, "interpolate", [z[0], call(newer, "encode", FACES)[0]])


@pytest.mark.parametrize("version", ["7", 7, "zpoint/7"])
def test_a_version_pins_every_method(call, url, version):
    arguments = {"decode": [Z], "decode_png": [Z], "sample": [], "sample_png": [], "encode": [FACES],
                 "reconstruct": [FACES], "interpolate": [Z[:2]], "neighbours": [Z], "points": [], "thumbnails": [],
                 "decode_at": [0.1, 0.2]}  # fmt: skip
    for method, values in arguments.items():
        call(url, method, *values, version=version)
        with pytest.raises(EndpointError, match="serves zpoint/7, not zpoint/6") as caught:
            call(url, method, *values, version="zpoint/6")
        assert caught.value.status == 409


def test_a_split_call_starts_over_when_the_version_changes(call, scripted_url):
    def npy(version: str, value: int) -> Any:
        return npy_response(version, np.full((1, 2, 2, 3), value, np.uint8))

    limits = {"limits": {"points": 1, "body": 1000, "pixels": 1000}}
    model = (200, {"x-zpoint-model": "zpoint/1"}, json.dumps(limits).encode())
    z = np.zeros((65, 2), np.float32)[:65]
    ScriptedHandler.responses += [model, npy("zpoint/1", 1), CONFLICT, *[npy("zpoint/2", 2)] * 65]
    images = call(scripted_url, "decode", z)
    assert (images.model, len(images), set(images.ravel().tolist())) == ("zpoint/2", 65, {2})
    ScriptedHandler.responses += [model, npy("zpoint/1", 1), CONFLICT]
    with pytest.raises(EndpointError, match="moved on"):
        call(scripted_url, "decode", z, version="1")


def npy_response(version: str, array: np.ndarray) -> Any:
    return (200, {"x-zpoint-model": version}, to_npy(array))


CONFLICT = (409, {"content-type": "application/problem+json"}, b'{"detail": "moved on"}')


def test_a_split_call_waits_while_replicas_swap_one_after_the_other(call, scripted_url, delays, monkeypatch):
    monkeypatch.setattr(client_module, "SMALL", replace(client_module.SMALL, points=1))
    limits = json.dumps({"limits": {"points": 1, "body": 1000, "pixels": 1000}}).encode()
    model = (200, {"x-zpoint-model": "zpoint/1"}, limits)
    old, new = (npy_response(f"zpoint/{version}", np.zeros((1, 2, 2, 3), np.uint8)) for version in (1, 2))
    z = np.zeros((2, 2), np.float32)
    ScriptedHandler.responses += [model, *[old, CONFLICT] * 5, new, new]
    assert call(scripted_url, "decode", z).model == "zpoint/2"
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2])
    delays.clear()
    ScriptedHandler.responses += [model, *[old, CONFLICT] * 8]
    with pytest.raises(EndpointError, match="moved on") as caught:
        call(scripted_url, "decode", z)
    assert (caught.value.status, ScriptedHandler.responses) == (409, [])
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])


def test_interpolation_from_a_z_point_to_an_image_starts_over_when_the_version_changes(call, scripted_url, delays):
    png = base64.b64encode(encode_image(np.zeros((4, 4, 3), np.uint8), "png")).decode()
    images = (200, {"x-zpoint-model": "zpoint/2"}, json.dumps({"images": [png], "z": [[0, 0]]}).encode())
    old, new = (npy_response(f"zpoint/{version}", np.full((1, 2), version, np.float32)) for version in (1, 2))
    ScriptedHandler.responses += [old, CONFLICT, new, images]
    assert call(scripted_url, "interpolate", [np.zeros(2, np.float32), FACES[0]]).model == "zpoint/2"
    np.testing.assert_array_equal(np.load(io.BytesIO(ScriptedHandler.bodies[-1])), [[0, 0], [2, 2]])
    assert delays == pytest.approx([0.2])
    ScriptedHandler.responses += [old, CONFLICT]
    with pytest.raises(EndpointError, match="moved on"):
        call(scripted_url, "interpolate", [np.zeros(2, np.float32), FACES[0]], version="1")


def test_a_wrong_token_raises_401(call, url):
    with pytest.raises(EndpointError, match="Authorization: Bearer") as caught:
        call(url, "model", token="wrong")
    assert caught.value.status == 401


class ScriptedHandler(BaseHTTPRequestHandler):
    """Sends `responses` one after the other: (status, headers, body), or None to close the connection."""

    responses: ClassVar[list[Any]] = []
    requests: ClassVar[list[str]] = []
    bodies: ClassVar[list[bytes]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        self.bodies.append(self.rfile.read(int(self.headers.get("content-length", 0))))
        response = self.responses.pop(0)
        if response is None:
            self.close_connection = True
            return
        status, headers, body = response
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def scripted_url(scripted_server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{scripted_server.server_port}"


@pytest.fixture
def scripted_server() -> Iterator[ThreadingHTTPServer]:
    ScriptedHandler.responses.clear()
    ScriptedHandler.requests.clear()
    ScriptedHandler.bodies.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), ScriptedHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


OK = (200, {"content-type": "application/json"}, b'{"a": 1}')
BUSY = (503, {"content-type": "text/plain"}, b"busy")


def test_options_are_sent_unless_they_are_none(call, scripted_url):
    png = base64.b64encode(encode_image(np.zeros((4, 4, 3), np.uint8), "png")).decode()
    ScriptedHandler.responses += [(200, {}, json.dumps({"images": [png], "z": [[0]]}).encode())] * 4
    call(scripted_url, "sample", "cube", 2, 0, boundary=0.0)
    call(scripted_url, "sample")
    call(scripted_url, "reconstruct", FACES, "drop", 0, keep=0.0)
    call(scripted_url, "reconstruct", [b"file"], "drop")
    bodies = [json.loads(ScriptedHandler.bodies[index]) for index in (0, 1, 3)]
    assert bodies[0] == {"sampler": "cube", "n": 2, "seed": 0, "parameters": {"boundary": 0.0}}
    assert bodies[1] == {"n": 1, "parameters": {}}
    assert bodies[2] == {"images": ["ZmlsZQ=="], "task": "drop"}
    assert ScriptedHandler.requests[2] == "/v1/reconstruct?task=drop&seed=0&keep=0.0"


def test_numpy_scalars_are_taken_as_numbers(call, url):
    images = call(url, "sample", "normal", np.int64(2), np.uint32(3), temperature=np.float32(0.5))
    assert images_close(images, call(url, "sample", "normal", 2, 3, temperature=0.5))
    assert call(url, "decode_at", np.float32(0), np.float64(0), k=np.int64(3)).shape == (1, 16, 16, 3)
    assert len(call(url, "interpolate", Z[:2], np.int64(3))) == 3
    assert len(call(url, "neighbours", Z, np.int64(3))[0]) == 3
    assert call(url, "reconstruct", [encode_image(FACES[0], "png")], "denoise", np.int64(3)).seed == 3


@pytest.mark.parametrize(("method", "arguments"), [("sample", ["normal", 100]), ("reconstruct", [[FACES[0]] * 100])])
def test_what_is_no_number_is_no_mistake_of_the_endpoint(call, url, method, arguments):
    with pytest.raises(ValueError, match="array of size 1") as error:
        call(url, method, *arguments, temperature=np.ones(2))
    assert not isinstance(error.value, EndpointError)


PAGE = (200, {"content-type": "text/html"}, b"<title>Log in</title>")


@pytest.mark.parametrize("response", [PAGE, (200, {"content-type": "application/json"}, b"{}"), (200, {}, b"")])
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("decode", [Z]), ("decode", [np.tile(Z, (20, 1))]), ("decode_png", [Z]), ("sample", []), ("sample_png", []),
        ("encode", [FACES]), ("reconstruct", [FACES]), ("interpolate", [[Z[0], FACES[0]]]), ("neighbours", [Z]),
        ("points", []), ("thumbnails", []), ("models", []),
    ],
)  # fmt: skip
def test_response_of_another_server_raises(call, scripted_url, method, arguments, response):
    ScriptedHandler.responses += [response] * 2
    message = f"the response of {scripted_url} is not that of a zpoint endpoint"
    with pytest.raises(EndpointError, match=message) as caught:
        call(scripted_url, method, *arguments)
    assert caught.value.status == 200


def test_redirect_names_its_target(call, scripted_url):
    ScriptedHandler.responses += [(302, {"location": "https://login.example/"}, b"")]
    with pytest.raises(EndpointError, match=r"answered 302, a redirect to https://login\.example/"):
        call(scripted_url, "model")


def test_ends_of_different_z_dim_are_refused(call, url):
    with pytest.raises(ValueError, match="the ends have 3 and 8 dimensions"):
        call(url, "interpolate", [np.zeros(3), FACES[0]])


def test_gray_images_have_an_axis_of_channels(call, scripted_url):
    png = base64.b64encode(encode_image(np.full((4, 4, 1), 7, np.uint8), "png")).decode()
    body = json.dumps({"images": [png, png], "z": [[1.0], [2.0]]}).encode()
    ScriptedHandler.responses += [(200, {"content-type": "application/json"}, body)]
    images = call(scripted_url, "sample", n=2)
    assert (images.shape, images.dtype, images.z.shape, images.z.dtype) == ((2, 4, 4, 1), np.uint8, (2, 1), np.float32)
    assert (images == 7).all()


def test_connecting_takes_at_most_five_seconds():
    for timeout, connect in ((60.0, 5.0), (2.0, 2.0)):
        with Client("http://127.0.0.1:9", timeout=timeout) as client:
            assert (client._http.timeout.connect, client._http.timeout.read) == (connect, timeout)


def test_transient_failures_are_retried(call, scripted_url, delays):
    # HAProxy answers 500 in plain text while no replica is up, and a replica that dies closes the connection.
    ScriptedHandler.responses += [BUSY, (500, {"content-type": "text/plain"}, b""), None, (502, {}, b"")]
    ScriptedHandler.responses += [(504, {}, b""), OK]
    assert call(scripted_url, "model") == {"a": 1}
    assert ScriptedHandler.requests == ["/v1/model"] * 6
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2])


def test_retries_end_after_eight_attempts_and_no_delay_exceeds_five_seconds(call, scripted_url, delays):
    ScriptedHandler.responses += [BUSY] * 20
    with pytest.raises(EndpointError, match="answered 503 busy") as caught:
        call(scripted_url, "model")
    assert caught.value.status == 503
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 429])
def test_other_failures_are_not_retried(call, scripted_url, delays, status):
    ScriptedHandler.responses += [(status, {}, b"no"), OK]
    with pytest.raises(EndpointError, match=f"answered {status} no") as caught:
        call(scripted_url, "model")
    assert (caught.value.status, delays) == (status, [])


def test_delays_have_jitter(call, scripted_url, delays, monkeypatch):
    monkeypatch.setattr(client_module, "random", SimpleNamespace(uniform=lambda low, high: low))
    ScriptedHandler.responses += [BUSY, BUSY, (503, {"retry-after": "7"}, b""), OK]
    call(scripted_url, "model")
    assert delays == pytest.approx([0.1, 0.2, 7])


def test_a_request_that_took_too_long_is_not_retried(call, delays):
    """The endpoint's own 503 without Retry-After asks for less."""
    slot = make_slot()

    async def never(_: np.ndarray) -> np.ndarray:
        await asyncio.sleep(60)
        raise AssertionError

    slot = ModelSlot(SimpleNamespace(info=slot.current.info, decode=never, encode=never))
    with (
        serve_app(slot, token=TOKEN, limits=Limits(timeout_s=0.1)) as url,
        pytest.raises(EndpointError, match=r"longer than 0.1 s; request fewer images") as caught,
    ):
        call(url, "decode", Z)
    assert (caught.value.status, delays) == (503, [])


def test_an_internal_error_of_the_endpoint_is_not_retried(call, scripted_url):
    body = b'{"status": 500, "title": "Internal Server Error", "detail": "see the log"}'
    ScriptedHandler.responses += [(500, {"content-type": "application/problem+json"}, body), OK]
    with pytest.raises(EndpointError, match="see the log"):
        call(scripted_url, "model")
    assert ScriptedHandler.requests == ["/v1/model"]


@pytest.mark.parametrize(
    ("retry_after", "delay"),
    [
        ("1", 1.2), ("0", 0.2), ("30", 30.2), (format_datetime(NOW + timedelta(seconds=3), usegmt=True), 3.2),
        (format_datetime(NOW - timedelta(hours=1), usegmt=True), 0.2), ("soon", 0.2), ("-1", 0.2),
    ],
)  # fmt: skip
def test_retry_after_is_respected_in_seconds_and_as_a_date(call, scripted_url, delays, retry_after, delay):
    ScriptedHandler.responses += [(503, {"retry-after": retry_after}, b""), OK]
    assert call(scripted_url, "model") == {"a": 1}
    assert delays == pytest.approx([delay])


@pytest.mark.parametrize("retry_after", ["31", "3600", format_datetime(NOW + timedelta(days=1), usegmt=True)])
def test_a_retry_after_beyond_the_limit_raises_at_once(call, scripted_url, delays, retry_after):
    ScriptedHandler.responses += [(503, {"retry-after": retry_after}, b"come back later"), OK]
    with pytest.raises(EndpointError, match="come back later"):
        call(scripted_url, "model")
    assert delays == []


def test_a_response_later_than_the_timeout_raises(call, delays):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts the connection
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EndpointError, match=r"no answer from .* within 2 s") as caught:
            call(url, "decode", Z, timeout=2.0)
    assert (caught.value.status, delays) == (0, [])


def test_an_unreachable_endpoint_is_tried_five_times(call, delays):
    with pytest.raises(EndpointError, match=r"no endpoint answers at .*; start one with: zpoint serve"):
        call("http://127.0.0.1:9", "model")
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6])


@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:9"])
def test_certificates_of_loopback_are_those_of_ssl_cert_file(
    call, scripted_server, delays, monkeypatch, tmp_path, proxy
):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -subj /CN=localhost"
    subprocess.run([*command.split(), "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    scripted_server.socket = context.wrap_socket(scripted_server.socket, server_side=True)
    url = f"https://localhost:{scripted_server.server_port}"
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(EndpointError, match=rf"the certificate of {url} is not trusted: .*SSL_CERT_FILE"):
        call(url, "model")
    assert delays == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    ScriptedHandler.responses += [OK]
    assert call(url, "model") == {"a": 1}
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(EndpointError, match="cannot read the certificates of SSL_CERT_FILE"):
        call(url, "model")


def test_plain_http_reads_no_certificates(call, scripted_url, monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nowhere"))
    ScriptedHandler.responses += [OK]
    assert call(scripted_url, "model") == {"a": 1}


def test_a_bad_url_raises(call):
    for url in ("ftp://127.0.0.1", "", "http://[", "http://host:port"):
        with pytest.raises(EndpointError, match=r"."):
            call(url, "model")
    with pytest.raises(EndpointError, match="'localhost:8000' is no URL: write http://localhost:8000"):
        call("localhost:8000", "model")


@pytest.mark.parametrize("token", ["pässword", "of a file\n"])
def test_a_token_that_no_header_holds_raises(call, url, token):
    with pytest.raises(EndpointError, match="a token takes printable ASCII characters"):
        call(url, "model", token=token)


def test_threads_share_one_client(url):
    with Client(url, TOKEN) as client, ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda z: client.decode(z[None])[0], np.tile(Z, (8, 1))))
    assert images_close(np.stack(images), np.tile(decoded(Z), (8, 1, 1, 1)))


def test_the_client_needs_numpy_pillow_and_httpx2_alone(url):
    """In a process that can import nothing else of what zpoint installs."""
    blocked = [re.match(r"[\w-]+", line)[0] for line in _dependencies() if line not in _client_requirements()]
    names = [IMPORT_NAMES.get(name, name) for name in blocked]
    assert {"torch", "ray", "mlflow", "pyarrow", "simplejpeg", "fastapi", "pydantic"} <= set(names)
    shape = (8, IMAGE.size, IMAGE.size, 3)
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({names!r}))\n"  # None: importing it raises ImportError
        "from serving.client import AsyncClient, Client; import numpy as np\n"
        f"with Client({url!r}, {TOKEN!r}) as c:\n"
        f"    z = c.encode(np.zeros((9, 9, 3))); assert c.interpolate([z[0], z[0]]).shape == {shape}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


IMPORT_NAMES = {
    "scikit-learn": "sklearn", "pyyaml": "yaml", "grpcio": "grpc", "prometheus-client": "prometheus_client",
    "opencv-python-headless": "cv2", "fastapi-offline": "fastapi_offline",
}  # fmt: skip


def _dependencies() -> list[str]:
    """Return zpoint's dependencies, without spaces."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    return [line.replace(" ", "") for line in project["dependencies"]]


def _client_requirements() -> list[str]:
    lines = (REPO / "serving" / "client" / "requirements.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_the_clients_requirements_have_the_ranges_of_the_project():
    assert sorted(_client_requirements()) == [
        line for line in sorted(_dependencies()) if re.match(r"(httpx2|numpy|pillow)\b", line)
    ]
