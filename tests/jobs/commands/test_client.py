"""The commands that query an endpoint, against the real app on a local port."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from PIL import Image

from aecore.data.images import encode_image
from aecore.data.synthetic_faces import draw_face
from serving.client import Client
from serving.client import client as client_module
from tests.serving.app_server import IMAGE, Z_DIM, make_slot, serve_app

TOKEN = "test-token"
SIZE = IMAGE.size


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_app(make_slot(), token=TOKEN) as url:
        yield url


@pytest.fixture
def query(zpoint, url, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a command with the token, in a folder with images and z-points."""
    monkeypatch.setenv("ZPOINT_TOKEN", TOKEN)
    faces = np.stack([draw_face(seed, 0, SIZE)[0] for seed in range(3)])
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


def read_png(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def split_grid(path: str) -> np.ndarray:
    """The pictures of a grid with gaps of 2 pixels: (rows, columns, SIZE, SIZE, 3)."""
    sheet, step = read_png(path), SIZE + 2
    rows, columns = (sheet.shape[0] + 2) // step, (sheet.shape[1] + 2) // step
    starts = [[(y * step, x * step) for x in range(columns)] for y in range(rows)]
    return np.array([[sheet[y : y + SIZE, x : x + SIZE] for y, x in row] for row in starts])


def almost_equal(images: np.ndarray, expected: np.ndarray) -> bool:
    return images.shape == expected.shape and np.abs(images.astype(int) - expected).max() <= 1


def test_decode_writes_png_and_npy(query, client):
    assert query("decode", "z.npy") == {"out": "decoded.png", "images": 2}
    images = client.decode(np.load("z.npy"))
    assert almost_equal(read_png("decoded.png"), np.concatenate(images, axis=1))
    query("decode", "z.npy", "--out", "folder/images.npy")
    assert almost_equal(np.load("folder/images.npy"), images)


def test_sample_passes_sampler_count_seed_and_parameters(query, client):
    assert query("sample", "--sampler", "cube", "--n", "4", "--seed", "3", "boundary=5") == {
        "out": "decoded.png", "images": 4,
    }  # fmt: skip
    assert read_png("decoded.png").shape == (2 * SIZE, 2 * SIZE, 3)
    query("sample", "boundary=5", "--sampler", "cube", "--n", "4", "--seed", "3", "--out", "images.npy")
    assert almost_equal(np.load("images.npy"), client.sample("cube", 4, 3, boundary=5))
    assert not almost_equal(np.load("images.npy"), client.sample("cube", 4, 3))


def test_reconstruct_shows_corrupted_images_above_reconstructions(query, client):
    faces = np.load("faces.npy")
    assert query("reconstruct", "face.png", "--out", "one.png") == {"out": "one.png", "images": 1}
    [[corrupted], [reconstructed]] = split_grid("one.png")
    np.testing.assert_array_equal(corrupted, faces[0])
    assert almost_equal(reconstructed[None], client.reconstruct(faces[:1]))
    argv = ("reconstruct", "faces.npy", "--task", "denoise", "--seed", "2", "sigma=0.4")
    assert query(*argv)["images"] == 3
    images = client.reconstruct(faces, "denoise", 2, sigma=0.4)
    np.testing.assert_array_equal(split_grid("decoded.png"), [images.corrupted, images])
    query(*argv, "--out", "images.npy")
    np.testing.assert_array_equal(np.load("images.npy"), images)


def test_interpolate_between_z_points_and_images(query, client):
    assert query("interpolate", "start.npy", "end.npy", "--steps", "5", "--path", "spherical")["images"] == 5
    expected = client.interpolate(np.load("z.npy"), 5, "spherical")
    assert almost_equal(split_grid("decoded.png")[0], expected)
    query("interpolate", "face.png", "end.npy", "--out", "path.npy")
    ends = np.concatenate([client.encode(np.load("faces.npy")[:1]), np.load("end.npy")])
    assert almost_equal(np.load("path.npy"), client.interpolate(ends, 8))


def test_many_images_are_wrapped_to_a_png_that_is_about_square(query, client):
    images = np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), np.uint8)
    np.save("many.npy", images)
    assert query("reconstruct", "many.npy")["images"] == 40
    bands = split_grid("decoded.png")
    reconstructed = client.reconstruct(images)
    assert bands.shape[:2] == (6, 16)  # 16, 16 and 8 corrupted images, each above their reconstructions
    for band, start in enumerate((0, 16)):
        np.testing.assert_array_equal(bands[2 * band], images[start : start + 16])
        assert almost_equal(bands[2 * band + 1], reconstructed[start : start + 16])
    np.testing.assert_array_equal(bands[4, :8], images[32:])
    assert (bands[4:, 8:] == 255).all()
    query("interpolate", "start.npy", "end.npy", "--steps", "400")
    assert split_grid("decoded.png").shape[:2] == (20, 20)


def test_images_are_written_to_s3_also_over_earlier_ones(query, client, s3: str):
    for seed in ("1", "2"):
        out = f"{s3}/folder/images.npy"
        assert query("sample", "--n", "1", "--seed", seed, "--out", out) == {"out": out, "images": 1}
        data = boto3.client("s3").get_object(Bucket=s3[5:], Key="folder/images.npy")["Body"].read()
        assert almost_equal(np.load(BytesIO(data)), client.sample(n=1, seed=int(seed)))
    assert not Path("s3:").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sample", "n=5"], "n is an option: write it as --n 5"),
        (["sample", "boundary=wide"], "boundary takes a number, not 'wide'"),
        (["sample", "boundary="], "'boundary=' is not a parameter: write it as name=value"),
        (["sample", "boundary=1"], "normal takes temperature, not boundary"),
        (["sample", "--sampler", "magic"], "unknown sampler 'magic'"),
        (["reconstruct", "missing.png"], "missing.png: No such file"),
        (["reconstruct", "notes.txt"], "images[0]"),
        (["reconstruct", "face.png", "--task", "denoise", "keep=1"], "keep"),
        (["reconstruct", "z.npy"], "images of floats take values in [0, 1]"),
        (["interpolate", "z.npy", "end.npy"], "an end takes one z-point"),
        (["interpolate", "start.npy", "end.npy", "--steps", "1"], "steps"),
        (["interpolate", "start.npy", "end.npy", "--path", "winding"], "unknown path 'winding'"),
        (["decode", "z.npy", "--out", "gs://bucket/a.png"], "unknown scheme in 'gs://bucket/a.png'"),
        (["interpolate", "start.npy", "end.npy", "--out", "a.jpg"], "--out takes a .png or .npy file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_input_is_refused_and_nothing_is_written(query, url, refused, argv, message):
    Path("notes.txt").write_text("not an image")
    assert message in refused(*argv, "--url", url)
    assert not Path("decoded.png").exists()


def test_missing_token_is_reported(query, url, refused, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ZPOINT_TOKEN")
    assert "Authorization: Bearer" in refused("decode", "z.npy", "--url", url)


def test_missing_endpoint_is_reported(refused, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_module, "FIRST_DELAY_S", 0.001)
    assert "start one with: zpoint serve" in refused("sample", "--url", "http://127.0.0.1:9")
