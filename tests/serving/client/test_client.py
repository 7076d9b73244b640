"""Both clients: what they give is what the model gives, and when they ask again."""

import asyncio
import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
from tests.serving.app_server import IMAGE, Z_DIM, make_model, make_slot, serve_app

TOKEN = "of the clients' test"
SLOT, MODEL = make_slot(), make_model()
Z = np.random.default_rng(0).normal(size=(5, Z_DIM)).astype(np.float32)
FACES = np.stack([draw_face(number, 0, IMAGE.size)[0] for number in range(3)])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_app(SLOT, TOKEN) as url:
        yield url


@pytest.fixture(params=[Client, AsyncClient])
def ask(request: pytest.FixtureRequest) -> Any:
    """Calls a method of one of the two clients: `ask(url, "decode", z)`."""

    def call(url: str, method: str, *args: Any, token: str = TOKEN, timeout: float = 60.0, **named: Any) -> Any:
        if request.param is Client:
            with Client(url, token, timeout) as client:
                return getattr(client, method)(*args, **named)

        async def wait() -> Any:
            async with AsyncClient(url, token, timeout) as client:
                return await getattr(client, method)(*args, **named)

        return asyncio.run(wait())

    return call


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_WAIT", 0.001)


def close(images: np.ndarray, wanted: np.ndarray) -> bool:
    """Alike but for a step of a pixel: sums in another order."""
    return images.dtype == np.uint8 and images.shape == wanted.shape and np.abs(images.astype(int) - wanted).max() <= 1


def decoded(z: np.ndarray) -> np.ndarray:
    return MODEL.decode(torch.from_numpy(z)).numpy()


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_decode_and_sample(ask, url):
    assert close(ask(url, "decode", Z), decoded(Z))
    assert close(ask(url, "decode", Z.astype(np.float64)), decoded(Z))
    assert close(pixels(ask(url, "decode_png", Z[:1])), decoded(Z)[0])
    z = sample("gaussian", 4, SLOT.current.info.latents, 5, temperature=0.5).numpy()
    assert close(ask(url, "sample", "gaussian", 4, 5, temperature=0.5), decoded(z))
    assert pixels(ask(url, "sample_png", n=4)).shape == (2 * IMAGE.size, 2 * IMAGE.size, 3)
    images, points = ask(url, "sample_with_z", "gaussian", 4, 5, temperature=0.5)
    assert close(images, decoded(z))
    np.testing.assert_array_equal(points, z)


def test_encode_and_reconstruct(ask, url):
    z = MODEL.encode(torch.from_numpy(FACES).permute(0, 3, 1, 2) / 255).mean.numpy()
    files = [encode_image(face, "png") for face in FACES]
    for pictures in (FACES, files):
        given = ask(url, "encode", pictures)
        assert given.dtype == np.float32
        np.testing.assert_allclose(given, z, atol=1e-4)
        assert close(ask(url, "reconstruct", pictures), decoded(z))
        images, seen = ask(url, "reconstruct_with_input", pictures, "drop", 3, keep=0.5)
        assert close(ask(url, "reconstruct", pictures, "drop", 3, keep=0.5), images)
        kept = (seen == FACES).all(-1)
        assert 0.4 < kept.mean() < 0.6
        assert (seen[~kept] == 0).all()
        gray = ask(url, "reconstruct_with_input", pictures, "drop", 3, keep=0.5, fill="gray")[1]
        assert (gray[~kept] == 128).all()


def test_interpolate_and_model(ask, url):
    steps = ask(url, "interpolate", Z[:2], 3)
    assert close(steps, decoded(np.stack([Z[0], (Z[0] + Z[1]) / 2, Z[1]])))
    turned = ask(url, "interpolate", Z[:2], 3, "spherical")
    assert close(turned[[0, 2]], steps[[0, 2]])
    assert not close(turned, steps)
    told = ask(url, "model")
    assert (told["name"], told["version"], told["z_dim"]) == ("zpoint", "7", Z_DIM)


@pytest.mark.parametrize(
    ("method", "arguments", "status", "says"),
    [
        ("decode", [np.zeros((1, Z_DIM + 1))], 422, "this model takes z_dim 8"),
        ("decode", [np.full((1, Z_DIM), np.nan)], 422, "finite"),
        ("sample", ["magic"], 422, "unknown sampler 'magic'"),
        ("reconstruct", [FACES, "magic"], 422, "unknown task 'magic'"),
        ("encode", [[b"no picture"]], 422, "images"),
        ("interpolate", [Z], 422, "5 ends"),
        ("decode", [np.zeros((5000, Z_DIM), np.float32)], 413, "at most 4096"),
    ],
)
def test_a_refusal_is_told_at_once(ask, url, method, arguments, status, says):
    with pytest.raises(EndpointError, match=says) as caught:
        ask(url, method, *arguments)
    assert caught.value.status == status
    assert isinstance(caught.value, ValueError)


def test_a_wrong_token_is_told(ask, url):
    with pytest.raises(EndpointError, match="Authorization: Bearer") as caught:
        ask(url, "model", token="wrong")
    assert caught.value.status == 401


class Moody(BaseHTTPRequestHandler):
    """Answers what stands in `answers`, one after the other: (status, headers, body), or None to hang up."""

    answers: ClassVar[list[Any]] = []
    asked: ClassVar[list[float]] = []

    def do_GET(self) -> None:
        self.asked.append(time.monotonic())
        answer = self.answers.pop(0)
        if answer is None:
            self.close_connection = True
            return
        status, headers, body = answer
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def moody() -> Iterator[str]:
    Moody.answers.clear()
    Moody.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


GOOD = (200, {"content-type": "application/json"}, b'{"a": 1}')
BUSY = (503, {"content-type": "text/plain"}, b"busy")


def test_what_passes_is_asked_again(ask, moody):
    # HAProxy says 500 in plain text while no replica is up, and a replica that dies hangs up.
    Moody.answers += [BUSY, (500, {"content-type": "text/plain"}, b""), None, (502, {}, b""), GOOD]
    assert ask(moody, "model") == {"a": 1}
    assert len(Moody.asked) == 5


def test_it_gives_up_in_the_end(ask, moody):
    Moody.answers += [BUSY] * 20
    with pytest.raises(EndpointError, match="answered 503 busy") as caught:
        ask(moody, "model")
    assert caught.value.status == 503
    assert len(Moody.asked) == client_module.ATTEMPTS


def test_the_endpoints_own_fault_is_not_asked_again(ask, moody):
    body = b'{"status": 500, "title": "Internal Server Error", "detail": "see the log"}'
    Moody.answers += [(500, {"content-type": "application/problem+json"}, body), GOOD]
    with pytest.raises(EndpointError, match="see the log"):
        ask(moody, "model")
    assert len(Moody.asked) == 1


def test_retry_after_is_kept_in_seconds_and_as_a_date(ask, moody):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    Moody.answers += [(503, {"retry-after": "1"}, b""), (503, {"retry-after": date}, b""), GOOD]
    assert ask(moody, "model") == {"a": 1}
    assert 1.0 <= Moody.asked[1] - Moody.asked[0] < 1.9
    assert Moody.asked[2] - Moody.asked[0] >= 1.9  # dates have whole seconds


def test_too_long_a_retry_after_is_an_answer(ask, moody):
    Moody.answers += [(503, {"retry-after": "3600"}, b"come back later"), GOOD]
    with pytest.raises(EndpointError, match="come back later"):
        ask(moody, "model")


def test_an_answer_that_takes_too_long(ask):
    with serve_app(SlowSlot()) as url, pytest.raises(EndpointError, match=r"no answer from .* within 0.3 s") as caught:
        ask(url, "decode", Z, timeout=0.3)
    assert caught.value.status == 0


class SlowSlot:
    """A slot whose model decodes in no less than a second."""

    def __init__(self) -> None:
        self.current, self.refused = self, None
        self.info = SLOT.current.info

    async def decode(self, z: np.ndarray) -> np.ndarray:
        await asyncio.sleep(1)
        return decoded(z)


def test_no_endpoint(ask):
    with pytest.raises(EndpointError, match="no endpoint answers at"):
        ask("http://127.0.0.1:9", "model")
    for url in ("localhost:8000", "ftp://127.0.0.1", "", "http://[", "http://host:port"):
        with pytest.raises(EndpointError, match=r"."):
            ask(url, "model")


def test_a_thread_pool_shares_one_client(url):
    with Client(url, TOKEN) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda row: client.decode(row[None])[0], np.tile(Z, (8, 1))))
    assert close(np.stack(answers), np.tile(decoded(Z), (8, 1, 1, 1)))


def test_it_imports_neither_torch_nor_ray():
    code = "import sys, serving.client; assert not {'torch', 'ray', 'fastapi', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
