"""The commands that query an endpoint, against the real app at a real URL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aecore.data.images import encode_image
from aecore.data.synthetic_faces import draw_face
from serving.client import Client
from serving.client import client as client_module
from tests.serving.app_server import IMAGE, Z_DIM, make_slot, serve_app

TOKEN = "of the commands' test"
SIZE = IMAGE.size


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_app(make_slot(), TOKEN) as url:
        yield url


@pytest.fixture
def ask(zpoint, url, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls the command as a user who knows the token, beside a photo, its pixels and two z-points."""
    monkeypatch.setenv("ZPOINT_TOKEN", TOKEN)
    faces = np.stack([draw_face(number, 0, SIZE)[0] for number in range(3)])
    Path("face.png").write_bytes(encode_image(faces[0], "png"))
    np.save("faces.npy", faces)
    z = np.random.default_rng(0).normal(size=(2, Z_DIM))
    np.save("z.npy", z)
    np.save("start.npy", z[0])
    np.save("end.npy", z[1:].astype(np.float32))
    return lambda *argv: zpoint(*argv, "--url", url)


@pytest.fixture
def client(url) -> Iterator[Client]:
    with Client(url, TOKEN) as client:
        yield client


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def cells(path: str) -> np.ndarray:
    """The pictures of a grid with gaps of 2 pixels: (rows, columns, SIZE, SIZE, 3)."""
    sheet, step = pixels(path), SIZE + 2
    rows, columns = (sheet.shape[0] + 2) // step, (sheet.shape[1] + 2) // step
    starts = [[(y * step, x * step) for x in range(columns)] for y in range(rows)]
    return np.array([[sheet[y : y + SIZE, x : x + SIZE] for y, x in row] for row in starts])


def close(images: np.ndarray, wanted: np.ndarray) -> bool:
    return images.shape == wanted.shape and np.abs(images.astype(int) - wanted).max() <= 1


def test_decode(ask, client):
    assert ask("decode", "z.npy") == {"out": "decoded.png", "images": 2}
    images = client.decode(np.load("z.npy"))
    assert close(pixels("decoded.png"), np.concatenate(images, axis=1))
    ask("decode", "z.npy", "--out", "folder/images.npy")
    assert close(np.load("folder/images.npy"), images)


def test_sample(ask, client):
    assert ask("sample", "--sampler", "cube", "--n", "4", "--seed", "3", "boundary=5") == {
        "out": "decoded.png", "images": 4,
    }  # fmt: skip
    assert pixels("decoded.png").shape == (2 * SIZE, 2 * SIZE, 3)
    ask("sample", "boundary=5", "--sampler", "cube", "--n", "4", "--seed", "3", "--out", "images.npy")
    assert close(np.load("images.npy"), client.sample("cube", 4, 3, boundary=5))
    assert not close(np.load("images.npy"), client.sample("cube", 4, 3))


def test_reconstruct(ask, client):
    faces = np.load("faces.npy")
    assert ask("reconstruct", "face.png", "--out", "one.png") == {"out": "one.png", "images": 1}
    [[seen], [back]] = cells("one.png")
    np.testing.assert_array_equal(seen, faces[0])
    assert close(back[None], client.reconstruct(faces[:1]))
    argv = ("reconstruct", "faces.npy", "--task", "denoise", "--seed", "2", "sigma=0.4")
    assert ask(*argv)["images"] == 3
    images, noisy = client.reconstruct_with_input(faces, "denoise", 2, sigma=0.4)
    np.testing.assert_array_equal(cells("decoded.png"), [noisy, images])
    ask(*argv, "--out", "images.npy")
    np.testing.assert_array_equal(np.load("images.npy"), images)


def test_interpolate(ask, client):
    assert ask("interpolate", "start.npy", "end.npy", "--steps", "5", "--path", "spherical")["images"] == 5
    wanted = client.interpolate(np.load("z.npy"), 5, "spherical")
    assert close(cells("decoded.png")[0], wanted)
    ask("interpolate", "face.png", "end.npy", "--out", "way.npy")
    ends = np.concatenate([client.encode(np.load("faces.npy")[:1]), np.load("end.npy")])
    assert close(np.load("way.npy"), client.interpolate(ends, 8))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["sample", "n=5"], "n is an option: give --n 5"),
        (["sample", "boundary=wide"], "boundary takes a number, not 'wide'"),
        (["sample", "boundary="], "'boundary' is no parameter: it takes name=value"),
        (["sample", "boundary=1"], "normal takes temperature, not boundary"),
        (["sample", "--sampler", "magic"], "unknown sampler 'magic'"),
        (["reconstruct", "missing.png"], "missing.png: No such file"),
        (["reconstruct", "notes.txt"], "images[0]"),
        (["reconstruct", "face.png", "--task", "denoise", "keep=1"], "keep"),
        (["reconstruct", "z.npy"], "uint8 (n, H, W, 1 or 3)"),
        (["interpolate", "z.npy", "end.npy"], "an end takes one z-point"),
        (["interpolate", "start.npy", "end.npy", "--steps", "1"], "steps"),
        (["interpolate", "start.npy", "end.npy", "--path", "winding"], "unknown path 'winding'"),
        (["interpolate", "start.npy", "end.npy", "--out", "a.jpg"], "--out takes a .png or .npy file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(ask, url, refused, argv, says):
    Path("notes.txt").write_text("no picture")
    assert says in refused(*argv, "--url", url)
    assert not Path("decoded.png").exists()


def test_a_missing_token_is_told(ask, url, refused, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ZPOINT_TOKEN")
    assert "Authorization: Bearer" in refused("decode", "z.npy", "--url", url)


def test_no_endpoint_is_told(refused, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_module, "FIRST_DELAY_S", 0.001)
    assert "start one with: zpoint serve" in refused("sample", "--url", "http://127.0.0.1:9")
