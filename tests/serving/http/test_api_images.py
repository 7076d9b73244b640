"""The app without Ray: images in requests and responses, tasks, interpolation."""

import asyncio
import base64
import io
import threading
import time
import zipfile

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from aecore.config import TASKS, Denoise, Drop, Inpaint
from aecore.data import images
from aecore.latent.interpolation import INTERPOLATIONS
from aecore.model.autoencoder import to_float, to_uint8
from aecore.model.corruptions import BatchNoise, corrupt
from serving.http import decoding, operations
from serving.http.decoding import HEIC, JPEG, JSON, NPY, PNG, WEBP, ZIP
from serving.http.encoding import encode_npy
from serving.runtime.face_finder import FaceFinder
from serving.runtime.model_slot import ModelSlot
from tests.serving.app_client import (
    MODEL,
    SLOT,
    decoded,
    images_close,
    is_problem,
    make_client,
    make_image_file,
    make_slot_with,
    make_z,
    post_decode,
    read_image,
    read_npy,
)
from tests.serving.app_server import IMAGE, Z_DIM, make_slot


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_encode_returns_the_means_of_the_encoder():
    http, body = make_client(), make_image_file()
    for file_format in ("PNG", "JPEG", "WEBP"):
        headers = {"content-type": f"image/{file_format.lower()}"}
        response = http.post("/v1/encode", content=make_image_file(kind=file_format), headers=headers)
        assert np.shape(response.json()["z"]) == (1, Z_DIM)
    response = http.post("/v1/encode", content=body, headers={"content-type": PNG, "accept": NPY})
    z = read_npy(response.content)
    cropped = (
        Image.open(io.BytesIO(body)).crop((5, 0, 35, 30)).resize((IMAGE.size, IMAGE.size), Image.Resampling.BICUBIC)
    )
    pixels = torch.from_numpy(np.array(cropped)).permute(2, 0, 1)[None] / 255
    np.testing.assert_allclose(z, MODEL.encode(pixels).mean.numpy(), atol=1e-4)
    from_json = http.post("/v1/encode", json={"images": [base64.b64encode(body).decode()] * 2}).json()
    np.testing.assert_allclose(from_json["z"], np.repeat(z, 2, axis=0), atol=1e-5)
    pixels = np.array(cropped)[None]
    from_npy = http.post("/v1/encode", content=encode_npy(pixels), headers={"content-type": NPY, "accept": NPY})
    np.testing.assert_allclose(read_npy(from_npy.content), z, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_reconstruct_corrupts_by_the_task_and_returns_the_corrupted_images(task):
    http, files = make_client(), [base64.b64encode(make_image_file(seed=seed)).decode() for seed in range(3)]
    body = http.post(
        "/v1/reconstruct", json={"images": files, "task": task, "seed": 4}, headers={"accept": JSON}
    ).json()
    corrupted = np.stack([read_image(base64.b64decode(text)) for text in body["corrupted"]])
    images = np.stack([read_image(base64.b64decode(text)) for text in body["images"]])
    z = MODEL.encode(torch.from_numpy(corrupted).permute(0, 3, 1, 2) / 255).mean
    np.testing.assert_allclose(body["z"], z.numpy(), atol=1e-4)
    assert images_close(images, decoded(np.float32(body["z"])))
    from_query = http.post(
        f"/v1/reconstruct?task={task}&seed=4", content=make_image_file(), headers={"content-type": PNG}
    )
    assert from_query.headers["x-zpoint-seed"] == "4"
    uncorrupted = http.post("/v1/reconstruct", json={"images": files, "seed": 4}, headers={"accept": JSON}).json()
    assert (body["corrupted"] == uncorrupted["corrupted"]) == (task == "reconstruct")


NOISY_TASKS = ("task=denoise", "task=drop", "task=drop&fill=random", "task=inpaint", "task=inpaint&fill=random")


@pytest.mark.parametrize("query", NOISY_TASKS)
def test_a_seed_repeats_the_noise_of_a_task_and_another_changes_it(query):
    http, image = make_client(), read_image(make_image_file(16, 16))
    body = encode_npy(np.stack([image, image]))

    def corrupt(options=""):
        headers = {"content-type": NPY, "accept": JSON}
        response = http.post(f"/v1/reconstruct?{query}{options}", content=body, headers=headers)
        assert response.status_code == 200, response.text
        return response

    first = corrupt("&seed=3")
    assert corrupt("&seed=3").content == first.content
    assert corrupt("&seed=4").json()["corrupted"] != first.json()["corrupted"]
    corrupted = first.json()["corrupted"]
    assert corrupted[0] != corrupted[1]  # equal images get noise of their own
    unseeded = corrupt()
    assert corrupt().json()["corrupted"] != unseeded.json()["corrupted"]
    assert corrupt(f"&seed={unseeded.headers['x-zpoint-seed']}").content == unseeded.content


@pytest.mark.parametrize("task", [Denoise(kind="denoise"), Drop(kind="drop"), Inpaint(kind="inpaint", block=0.1)])
def test_a_large_batch_is_corrupted_in_blocks_with_the_noise_of_one_batch(task, monkeypatch):
    sizes = []

    def record_size(task, clean, noise):
        sizes.append(len(clean))
        return corrupt(task, clean, noise)

    monkeypatch.setattr(operations, "corrupt", record_size)
    images = np.random.default_rng(0).integers(0, 256, (150, 16, 16, 3), np.uint8)
    noise = BatchNoise(torch.Generator().manual_seed(3), torch.arange(150), 150)
    expected = to_uint8(corrupt(task, to_float(torch.from_numpy(images)), noise)).numpy()
    np.testing.assert_array_equal(operations.corrupt_images(task, images, 3), expected)
    assert sizes == [64, 64, 22]


def test_reconstruct_takes_parameters_of_the_task_from_the_query():
    headers = {"content-type": PNG, "accept": JSON}

    def post(query):
        return make_client().post(f"/v1/reconstruct?{query}", content=make_image_file(), headers=headers)

    black = read_image(base64.b64decode(post("task=drop&keep=0&fill=black").json()["corrupted"][0]))
    assert not black.any()
    is_problem(post("task=drop&keep=2"), 422, "keep")
    is_problem(post("task=drop&boundary=1"), 422, "boundary")
    is_problem(post("task=magic"), 422, "use one of reconstruct")
    is_problem(post("seed=x"), 422, "seed")


@pytest.mark.parametrize("path", INTERPOLATIONS)
def test_interpolate_starts_and_ends_at_the_given_z_points(path):
    ends = make_z(2)
    http, request = make_client(), {"z": ends.tolist(), "steps": 5, "path": path}
    body = http.post("/v1/interpolate", json=request, headers={"accept": JSON}).json()
    z = np.float32(body["z"])
    assert z.shape == (5, Z_DIM)
    np.testing.assert_allclose(z[[0, -1]], ends, atol=1e-5)
    assert len(body["images"]) == 5
    from_query = http.post(
        f"/v1/interpolate?steps=5&path={path}", content=encode_npy(ends), headers={"content-type": NPY, "accept": NPY}
    )
    assert images_close(read_npy(from_query.content), decoded(z))


def test_interpolate_between_images_and_its_errors():
    http, files = make_client(), [base64.b64encode(make_image_file(seed=seed)).decode() for seed in range(2)]
    body = http.post("/v1/interpolate", json={"images": files, "steps": 3}, headers={"accept": JSON}).json()
    ends = http.post("/v1/encode", json={"images": files}).json()["z"]
    np.testing.assert_allclose(np.array(body["z"])[[0, 2]], ends, atol=1e-5)
    is_problem(http.post("/v1/interpolate", json={"z": make_z(3).tolist()}), 422, "interpolation needs two")
    is_problem(http.post("/v1/interpolate", json={"z": make_z(2).tolist(), "images": files}), 422, "must be")
    is_problem(http.post("/v1/interpolate", json={"z": make_z(2).tolist(), "steps": 1}), 422, "steps")
    is_problem(http.post("/v1/interpolate", json={"z": make_z(2).tolist(), "steps": 5000}), 413, "at most 4096")
    far = [[3e38] * Z_DIM, [-3e38] * Z_DIM]
    assert http.post("/v1/interpolate", json={"z": far, "path": "spherical"}).status_code in (200, 422)


def test_decode_returns_each_image_format():
    http, z = make_client(), make_z(3)
    for media_type in (PNG, JPEG, WEBP):
        response = post_decode(http, z, media_type)
        assert response.headers["content-type"] == media_type
        assert Image.open(io.BytesIO(response.content)).size == (2 * IMAGE.size, 2 * IMAGE.size)
    with zipfile.ZipFile(io.BytesIO(post_decode(http, z, ZIP).content)) as archive:
        assert archive.namelist() == ["0000.png", "0001.png", "0002.png"]
        assert archive.testzip() is None
        images = np.stack([read_image(archive.read(name)) for name in archive.namelist()])
    assert images_close(images, decoded(z))


@pytest.mark.parametrize("body", [b"", b"no image at all", make_image_file()[:200]], ids=["empty", "text", "truncated"])
def test_invalid_image_file_is_a_422(body):
    is_problem(make_client().post("/v1/encode", content=body, headers={"content-type": PNG}), 422, "images[0]: ")
    files = {"images": [base64.b64encode(body).decode()]}
    is_problem(make_client().post("/v1/reconstruct", json=files), 422, "images[0]: ")


def test_decompression_bomb_is_a_413_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(decoding, "decode_image", lambda *_: pytest.fail("it was decoded"))

    def make_black_file(side):
        buffer = io.BytesIO()
        Image.new("1", (side, side)).save(buffer, "PNG")
        return buffer.getvalue()

    response = make_client().post("/v1/encode", content=make_black_file(9_000), headers={"content-type": PNG})
    is_problem(response, 413, "81,000,000")
    over_half_of_limit = base64.b64encode(make_black_file(6_000)).decode()
    is_problem(make_client().post("/v1/encode", json={"images": [over_half_of_limit] * 2}), 413, "72,000,000 pixels")


@pytest.mark.parametrize("content_type", [HEIC, "image/heif", "application/octet-stream", ""])
def test_heic_is_read_as_other_image_files_are(content_type):
    image = Image.open(io.BytesIO(make_image_file(64, 48, kind="HEIF")))  # lossy, so its own pixels are expected
    expected = make_client().post("/v1/encode", content=as_png(image), headers={"content-type": PNG, "accept": NPY})
    headers = {"accept": NPY} | ({"content-type": content_type} if content_type else {})
    response = make_client().post("/v1/encode", content=make_image_file(64, 48, kind="HEIF"), headers=headers)
    assert response.status_code == 200, response.text
    np.testing.assert_allclose(read_npy(response.content), read_npy(expected.content), atol=1e-4)


def test_heic_is_bounded_by_the_pixels_that_it_declares():
    file = make_image_file(320, 320, kind="HEIF")
    size = file.index(b"ispe") + 8
    for side, status, text in ((9_000, 413, "81,000,000 pixels"), (16, 422, "Image size 320x320 exceeds the maximum")):
        declared = file[:size] + side.to_bytes(4, "big") * 2 + file[size + 8 :]
        is_problem(make_client().post("/v1/encode", content=declared, headers={"content-type": HEIC}), status, text)


def test_heic_without_its_library_is_refused_with_its_name(monkeypatch):
    file = make_image_file(kind="HEIF")
    for module in (images, decoding):
        monkeypatch.setattr(module, "register_heif", lambda: False)
    response = make_client().post("/v1/encode", content=file, headers={"content-type": HEIC})
    is_problem(response, 422, "it is a HEIF image, which Pillow does not decode: install zpoint[heic], or convert it")


@pytest.mark.parametrize("media_type", [JPEG, PNG, WEBP])
def test_convert_returns_the_image_in_the_accepted_format(media_type):
    headers = {"content-type": HEIC, "accept": media_type}
    response = make_client().post("/v1/convert", content=make_image_file(kind="HEIF"), headers=headers)
    assert (response.status_code, response.headers["content-type"]) == (200, media_type)
    assert Image.open(io.BytesIO(response.content)).size == (40, 30)


def test_convert_keeps_proportions_orientation_and_at_most_1024_pixels_a_side():
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6  # turned by a quarter, as a phone writes it
    Image.new("L", (3000, 1500)).save(buffer, "JPEG", exif=exif)
    response = make_client().post("/v1/convert", content=buffer.getvalue(), headers={"content-type": JPEG})
    image = Image.open(io.BytesIO(response.content))
    assert (image.size, image.mode) == ((512, 1024), "L")
    files = [base64.b64encode(make_image_file()).decode()] * 2
    is_problem(make_client().post("/v1/convert", json={"images": files}), 422, "one is converted at a time")


@pytest.mark.parametrize("route", ["convert", "frames"])
def test_decoded_pixels_are_of_two_requests_at_most(route, monkeypatch):
    """The others wait with their small bodies: a PNG of 9 kB may hold 9 million pixels."""
    full_sizes, in_memory, both_decode = [], [], threading.Barrier(2, timeout=60)

    def decode(*_):
        in_memory.append(1)
        full_sizes.append(len(in_memory))
        both_decode.wait()
        time.sleep(0.01)  # a third one would begin meanwhile
        return np.zeros((30, 40, 3), np.uint8)

    def drop_after(shrink):
        def call(image, *args, **options):
            in_memory.pop()
            return shrink(image, *args, **options)

        return call

    monkeypatch.setattr(decoding, "decode_image", decode)
    monkeypatch.setattr(operations, "shrink", drop_after(operations.shrink))
    monkeypatch.setattr(FaceFinder, "shrink_photo", staticmethod(drop_after(FaceFinder.shrink_photo)))

    async def post_concurrently():
        transport = httpx2.ASGITransport(make_client().app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            request = {"content": make_image_file(), "headers": {"content-type": PNG}}
            return await asyncio.gather(*(http.post(f"/v1/{route}", **request) for _ in range(8)))

    assert [response.status_code for response in asyncio.run(post_concurrently())] == [200] * 8
    assert max(full_sizes) == 2


def test_metrics_count_requests_by_route_and_status():
    http = make_client()
    for n in (1, 2):
        post_decode(http, make_z(n))
    http.get("/nothing/made/up")
    http.get("/static/app.js")
    http.post("/v1/decode", content=b"{}", headers={"content-type": "text/plain"})
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = response.text.splitlines()
    assert 'zpoint_requests_total{replica="",route="/v1/decode",status="200"} 2.0' in lines
    assert 'zpoint_requests_total{replica="",route="/v1/decode",status="415"} 1.0' in lines
    assert 'zpoint_requests_total{replica="",route="other",status="404"} 1.0' in lines
    assert 'zpoint_requests_total{replica="",route="/static/",status="200"} 1.0' in lines
    assert 'zpoint_request_seconds_count{replica="",route="/v1/decode"} 3.0' in lines


def test_one_model_version_answers_a_request_during_a_swap():
    slot = ModelSlot(SLOT.current)
    next_model = make_slot("8").current

    async def swap_and_decode(z):
        slot.current = next_model
        return await SLOT.current.decode(z)

    slot.current = make_slot_with(swap_and_decode).current
    http = make_client(slot)
    response = post_decode(http, make_z(2), JSON)
    assert (response.headers["x-zpoint-model"], response.json()["model"]) == ("zpoint/7", "zpoint/7")
    assert post_decode(http, make_z(2)).headers["x-zpoint-model"] == "zpoint/8"
