"""The app without Ray: pictures in and out, tasks, ways from one to another."""

import base64
import io
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from aecore.config import TASKS
from aecore.latent.interpolation import PATHS
from serving.http.decoding import JPEG, JSON, NPY, PNG, WEBP, ZIP
from serving.http.encoding import encode_npy
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


def test_encode_gives_the_means_of_the_encoder():
    http, body = make_client(), make_image_file()
    for kind in ("PNG", "JPEG", "WEBP"):
        answer = http.post(
            "/v1/encode", content=make_image_file(kind=kind), headers={"content-type": f"image/{kind.lower()}"}
        )
        assert np.shape(answer.json()["z"]) == (1, Z_DIM)
    answer = http.post("/v1/encode", content=body, headers={"content-type": PNG, "accept": NPY})
    z = read_npy(answer.content)
    cut = Image.open(io.BytesIO(body)).crop((5, 0, 35, 30)).resize((IMAGE.size, IMAGE.size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1)[None] / 255
    np.testing.assert_allclose(z, MODEL.encode(pixels).mean.numpy(), atol=1e-4)
    again = http.post("/v1/encode", json={"images": [base64.b64encode(body).decode()] * 2}).json()
    np.testing.assert_allclose(again["z"], np.repeat(z, 2, axis=0), atol=1e-5)
    fitted = np.array(cut)[None]
    as_array = http.post("/v1/encode", content=encode_npy(fitted), headers={"content-type": NPY, "accept": NPY})
    np.testing.assert_allclose(read_npy(as_array.content), z, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_reconstruct_does_the_task_and_tells_what_the_encoder_saw(task):
    http, files = make_client(), [base64.b64encode(make_image_file(seed=seed)).decode() for seed in range(3)]
    told = http.post(
        "/v1/reconstruct", json={"images": files, "task": task, "seed": 4}, headers={"accept": JSON}
    ).json()
    seen = np.stack([read_image(base64.b64decode(text)) for text in told["seen"]])
    images = np.stack([read_image(base64.b64decode(text)) for text in told["images"]])
    z = MODEL.encode(torch.from_numpy(seen).permute(0, 3, 1, 2) / 255).mean
    np.testing.assert_allclose(told["z"], z.numpy(), atol=1e-4)
    assert images_close(images, decoded(np.float32(told["z"])))
    again = http.post(f"/v1/reconstruct?task={task}&seed=4", content=make_image_file(), headers={"content-type": PNG})
    assert again.headers["x-zpoint-seed"] == "4"
    plain = http.post("/v1/reconstruct", json={"images": files, "seed": 4}, headers={"accept": JSON}).json()
    assert (told["seen"] == plain["seen"]) == (task == "reconstruct")


def test_reconstruct_takes_the_tasks_parameters_from_the_query():
    headers = {"content-type": PNG, "accept": JSON}
    ask = lambda query: make_client().post(f"/v1/reconstruct?{query}", content=make_image_file(), headers=headers)  # noqa: E731
    black = read_image(base64.b64decode(ask("task=drop&keep=0&fill=black").json()["seen"][0]))
    assert not black.any()
    is_problem(ask("task=drop&keep=2"), 422, "keep")
    is_problem(ask("task=drop&boundary=1"), 422, "boundary")
    is_problem(ask("task=magic"), 422, "it takes one of reconstruct")
    is_problem(ask("seed=x"), 422, "seed")


@pytest.mark.parametrize("path", PATHS)
def test_interpolate_goes_from_one_end_to_the_other(path):
    ends = make_z(2)
    told = (
        make_client()
        .post("/v1/interpolate", json={"z": ends.tolist(), "steps": 5, "path": path}, headers={"accept": JSON})
        .json()
    )
    z = np.float32(told["z"])
    assert z.shape == (5, Z_DIM)
    np.testing.assert_allclose(z[[0, -1]], ends, atol=1e-5)
    assert len(told["images"]) == 5
    http = make_client()
    as_query = http.post(
        f"/v1/interpolate?steps=5&path={path}", content=encode_npy(ends), headers={"content-type": NPY, "accept": NPY}
    )
    assert images_close(read_npy(as_query.content), decoded(z))


def test_interpolate_between_pictures_and_what_it_refuses():
    http, files = make_client(), [base64.b64encode(make_image_file(seed=seed)).decode() for seed in range(2)]
    told = http.post("/v1/interpolate", json={"images": files, "steps": 3}, headers={"accept": JSON}).json()
    ends = http.post("/v1/encode", json={"images": files}).json()["z"]
    np.testing.assert_allclose(np.array(told["z"])[[0, 2]], ends, atol=1e-5)
    is_problem(http.post("/v1/interpolate", json={"z": make_z(3).tolist()}), 422, "between two")
    is_problem(http.post("/v1/interpolate", json={"z": make_z(2).tolist(), "images": files}), 422, "must be")
    is_problem(http.post("/v1/interpolate", json={"z": make_z(2).tolist(), "steps": 1}), 422, "steps")
    is_problem(http.post("/v1/interpolate", json={"z": make_z(2).tolist(), "steps": 5000}), 413, "at most 4096")
    far = [[3e38] * Z_DIM, [-3e38] * Z_DIM]
    assert http.post("/v1/interpolate", json={"z": far, "path": "spherical"}).status_code in (200, 422)


def test_every_kind_of_picture_goes_out():
    http, z = make_client(), make_z(3)
    for kind in (PNG, JPEG, WEBP):
        answer = post_decode(http, z, kind)
        assert answer.headers["content-type"] == kind
        assert Image.open(io.BytesIO(answer.content)).size == (2 * IMAGE.size, 2 * IMAGE.size)
    with zipfile.ZipFile(io.BytesIO(post_decode(http, z, ZIP).content)) as archive:
        assert archive.namelist() == ["0000.png", "0001.png", "0002.png"]
        assert archive.testzip() is None
        images = np.stack([read_image(archive.read(name)) for name in archive.namelist()])
    assert images_close(images, decoded(z))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "empty"),
        (b"no image at all", "not an image"),
        (make_image_file()[:200], "does not decode"),
    ],
)
def test_what_is_no_picture_is_a_422(body, text):
    is_problem(make_client().post("/v1/encode", content=body, headers={"content-type": PNG}), 422, text)
    files = {"images": [base64.b64encode(body).decode()]}
    is_problem(make_client().post("/v1/reconstruct", json=files), 422, text)


def test_a_bomb_of_pixels_is_refused_before_it_is_decoded():
    buffer = io.BytesIO()
    Image.new("L", (9_000, 9_000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 200_000
    start = time.perf_counter()
    is_problem(
        make_client().post("/v1/encode", content=buffer.getvalue(), headers={"content-type": PNG}), 413, "81,000,000"
    )
    half = base64.b64encode(make_image_file(6_000, 6_000, mode="1")).decode()
    is_problem(make_client().post("/v1/encode", json={"images": [half] * 2}), 413, "72,000,000 pixels")
    assert time.perf_counter() - start < 20


def test_counters_tell_what_was_asked():
    http = make_client()
    for n in (1, 2):
        post_decode(http, make_z(n))
    http.get("/nothing/made/up")
    http.post("/v1/decode", content=b"{}")
    told = http.get("/metrics")
    assert told.headers["content-type"].startswith("text/plain")
    lines = told.text.splitlines()
    assert 'zpoint_requests_total{replica="",route="/v1/decode",status="200"} 2.0' in lines
    assert 'zpoint_requests_total{replica="",route="/v1/decode",status="415"} 1.0' in lines
    assert 'zpoint_requests_total{replica="",route="other",status="404"} 1.0' in lines
    assert 'zpoint_request_seconds_count{replica="",route="/v1/decode"} 3.0' in lines


def test_a_request_ends_on_the_model_it_began_with():
    slot = ModelSlot(SLOT.current)
    later = make_slot("8").current

    async def swap_meanwhile(z):
        slot.current = later
        return await SLOT.current.decode(z)

    slot.current = make_slot_with(swap_meanwhile).current
    http = make_client(slot)
    answer = post_decode(http, make_z(2), JSON)
    assert (answer.headers["x-zpoint-model"], answer.json()["model"]) == ("zpoint/7", "zpoint/7")
    assert post_decode(http, make_z(2)).headers["x-zpoint-model"] == "zpoint/8"
