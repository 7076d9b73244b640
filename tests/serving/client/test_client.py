"""Both clients: their results equal the model's, and which failures they retry."""

import asyncio
import base64
import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
from tests.serving.app_server import IMAGE, Z_DIM, make_model, make_slot, serve_app

TOKEN = "of the clients' test"
SLOT, MODEL = make_slot(), make_model()
Z = np.random.default_rng(0).normal(size=(5, Z_DIM)).astype(np.float32)
NOW = datetime(2026, 11, 29, 12, 0, 0, tzinfo=UTC)
FACES = np.stack([draw_face(index, 0, IMAGE.size)[0] for index in range(3)])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_app(SLOT, TOKEN) as url:
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
    images, sampled_z = call(url, "sample_with_z", "gaussian", 4, 5, temperature=0.5)
    assert images_close(images, decoded(z))
    np.testing.assert_array_equal(sampled_z, z)


def test_encode_and_reconstruct_take_arrays_and_image_files(call, url):
    expected_z = MODEL.encode(torch.from_numpy(FACES).permute(0, 3, 1, 2) / 255).mean.numpy()
    files = [encode_image(face, "png") for face in FACES]
    for images in (FACES, files):
        z = call(url, "encode", images)
        assert z.dtype == np.float32
        np.testing.assert_allclose(z, expected_z, atol=1e-4)
        assert images_close(call(url, "reconstruct", images), decoded(expected_z))
        reconstructed, encoder_input = call(url, "reconstruct_with_input", images, "drop", 3, keep=0.5)
        assert images_close(call(url, "reconstruct", images, "drop", 3, keep=0.5), reconstructed)
        kept_pixels = (encoder_input == FACES).all(-1)
        assert 0.4 < kept_pixels.mean() < 0.6
        assert (encoder_input[~kept_pixels] == 0).all()
        gray = call(url, "reconstruct_with_input", images, "drop", 3, keep=0.5, fill="gray")[1]
        assert (gray[~kept_pixels] == 128).all()


def test_interpolate_and_model(call, url):
    straight = call(url, "interpolate", Z[:2], 3)
    assert images_close(straight, decoded(np.stack([Z[0], (Z[0] + Z[1]) / 2, Z[1]])))
    spherical = call(url, "interpolate", Z[:2], 3, "spherical")
    assert images_close(spherical[[0, 2]], straight[[0, 2]])
    assert not images_close(spherical, straight)
    model = call(url, "model")
    assert (model["name"], model["version"], model["z_dim"]) == ("zpoint", "7", Z_DIM)


@pytest.mark.parametrize(
    ("method", "arguments", "status", "message"),
    [
        ("decode", [np.zeros((1, Z_DIM + 1))], 422, "this model takes z_dim 8"),
        ("decode", [np.full((1, Z_DIM), np.nan)], 422, "finite"),
        ("sample", ["magic"], 422, "unknown sampler 'magic'"),
        ("reconstruct", [FACES, "magic"], 422, "unknown task 'magic'"),
        ("encode", [[b"no picture"]], 422, "images"),
        ("interpolate", [Z], 422, "5 z-points or images: interpolation needs two"),
        ("decode", [np.zeros((5000, Z_DIM), np.float32)], 413, "at most 4096"),
    ],
)
def test_a_refused_request_raises_the_endpoints_message(call, url, method, arguments, status, message):
    with pytest.raises(EndpointError, match=message) as caught:
        call(url, method, *arguments)
    assert caught.value.status == status
    assert isinstance(caught.value, ValueError)


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
def scripted_url() -> Iterator[str]:
    ScriptedHandler.responses.clear()
    ScriptedHandler.requests.clear()
    ScriptedHandler.bodies.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), ScriptedHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


OK = (200, {"content-type": "application/json"}, b'{"a": 1}')
BUSY = (503, {"content-type": "text/plain"}, b"busy")


def test_options_are_sent_unless_they_are_none(call, scripted_url):
    npy = (200, {}, to_npy(np.zeros((1, 2, 2, 3), np.uint8)))
    ScriptedHandler.responses += [npy, npy, npy, npy]
    call(scripted_url, "sample", "cube", 2, 0, boundary=0.0)
    call(scripted_url, "sample")
    call(scripted_url, "reconstruct", FACES, "drop", 0, keep=0.0)
    call(scripted_url, "reconstruct", [b"file"], "drop")
    bodies = [json.loads(ScriptedHandler.bodies[index]) for index in (0, 1, 3)]
    assert bodies[0] == {"sampler": "cube", "n": 2, "seed": 0, "parameters": {"boundary": 0.0}}
    assert bodies[1] == {"n": 1, "parameters": {}}
    assert bodies[2] == {"images": ["ZmlsZQ=="], "task": "drop"}
    assert ScriptedHandler.requests[2] == "/v1/reconstruct?task=drop&seed=0&keep=0.0"


def test_gray_images_have_an_axis_of_channels(call, scripted_url):
    png = base64.b64encode(encode_image(np.full((4, 4, 1), 7, np.uint8), "png")).decode()
    body = json.dumps({"images": [png, png], "z": [[1.0], [2.0]]}).encode()
    ScriptedHandler.responses += [(200, {"content-type": "application/json"}, body)]
    images, z = call(scripted_url, "sample_with_z", n=2)
    assert (images.shape, images.dtype, z.shape, z.dtype) == ((2, 4, 4, 1), np.uint8, (2, 1), np.float32)
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
        with pytest.raises(EndpointError, match=r"no answer from .* within 0.3 s") as caught:
            call(url, "decode", Z, timeout=0.3)
    assert (caught.value.status, delays) == (0, [])


def test_an_unreachable_endpoint_is_tried_five_times(call, delays):
    with pytest.raises(EndpointError, match=r"no endpoint answers at .*; start one with: zpoint serve"):
        call("http://127.0.0.1:9", "model")
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6])


def test_a_bad_url_raises(call):
    for url in ("localhost:8000", "ftp://127.0.0.1", "", "http://[", "http://host:port"):
        with pytest.raises(EndpointError, match=r"."):
            call(url, "model")


def test_threads_share_one_client(url):
    with Client(url, TOKEN) as client, ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda z: client.decode(z[None])[0], np.tile(Z, (8, 1))))
    assert images_close(np.stack(images), np.tile(decoded(Z), (8, 1, 1, 1)))


def test_the_client_imports_neither_torch_nor_ray():
    code = "import sys, serving.client; assert not {'torch', 'ray', 'fastapi', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
