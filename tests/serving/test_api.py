import asyncio
import io
import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from aecore.config import Recipe
from aecore.model import ImageShape, build_model
from aecore.samplers import SAMPLERS, fit_latents, sample
from serving.api import Decoder, Facts, Limits, make_api
from serving.batching import Batcher
from serving.formats import encode_npy

NPY, PNG, JSON = "application/x-npy", "image/png", "application/json"
Z_DIM, IMAGE = 8, ImageShape(16, 3)
RECIPE = Recipe.model_validate({"model": {"z_dim": Z_DIM, "channels": [4, 4, 8, 8]}})


class Direct:
    """A decoder without batches."""

    def __init__(self):
        self.model = build_model(RECIPE, IMAGE).eval()

    def now(self, z):
        return self.model.decode(torch.from_numpy(z)).numpy()

    async def decode(self, z):
        return self.now(z)


class Broken:
    async def decode(self, z):
        raise ValueError("a fault of ours")


LATENTS = fit_latents(torch.randn(200, Z_DIM, generator=torch.Generator().manual_seed(0)))
FACTS = Facts("zpoint", "7", "champion", "run-1", RECIPE.model_dump(mode="json"), IMAGE, Z_DIM, {"psnr": 20.0}, LATENTS)
DIRECT = Direct()


def client(decoder: Decoder = DIRECT, **options):
    return TestClient(make_api(decoder, FACTS, **options), raise_server_exceptions=False)


def points(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, Z_DIM)).astype(np.float32)


def decode(http, z, accept=NPY):
    return http.post("/v1/decode", content=encode_npy(z), headers={"content-type": NPY, "accept": accept})


def is_problem(answer, status, text=""):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-zpoint-model"] == "zpoint/7"
    body = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert text in body["detail"]
    return True


def test_png_of_one_z_has_the_decoded_pixels():
    z = points(1)
    answer = client().post("/v1/decode", json={"z": z.tolist()})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == PNG
    assert answer.headers["x-zpoint-model"] == "zpoint/7"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), DIRECT.now(z)[0])


def test_npy_of_many_and_json():
    z = points(300)
    answer = decode(client(), z)
    assert answer.headers["content-type"] == NPY
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), DIRECT.now(z))
    answer = decode(client(), z[:2], JSON).json()
    assert answer["model"] == "zpoint/7"
    assert len(answer["images"]) == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"z": [[0] * (Z_DIM + 1)]}, "z_dim 8"),
        ({"z": []}, "no z-point"),
        ({"z": [["a"] * Z_DIM]}, "numbers only"),
        ({"z": [[0] * Z_DIM, [0]]}, "z[1] has 1"),
        ({}, "must be"),
    ],
)
def test_wrong_z_is_a_422(value, text):
    is_problem(client().post("/v1/decode", json=value), 422, text)


def test_nan_and_bad_npy_are_422():
    body = json.dumps({"z": [[float("nan")] * Z_DIM]})
    is_problem(client().post("/v1/decode", content=body, headers={"content-type": JSON}), 422, "finite")
    is_problem(decode(client(), np.zeros((1, Z_DIM), np.int32)), 422, "float32")
    broken = client().post("/v1/decode", content=b"\x93NUMPY", headers={"content-type": NPY})
    is_problem(broken, 422, "not a .npy")


def test_too_large_is_a_413_by_length_by_reading_and_by_count():
    http = client(limits=Limits(points=4, body=1000))
    text = "larger than 1000 bytes: one request takes 4 z-points"
    is_problem(http.post("/v1/decode", content=b"x" * 1001, headers={"content-type": JSON}), 413, text)

    sent = []

    def chunks():
        for _ in range(100_000):
            sent.append(1)
            yield b"x" * 100

    is_problem(http.post("/v1/decode", content=chunks(), headers={"content-type": JSON}), 413, text)
    is_problem(decode(http, points(5)), 413, "5 z-points: one request takes at most 4")
    assert decode(http, points(4)).status_code == 200


def test_ten_million_points_are_refused():
    body = b'{"z":[' + b"[0,0,0,0,0,0,0,0]," * 9_999_999 + b"[0,0,0,0,0,0,0,0]]}"
    is_problem(client().post("/v1/decode", content=body, headers={"content-type": JSON}), 413, "4096 z-points")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (10_000_000, Z_DIM), "fortran_order": False, "descr": "<f4"})
    answer = client().post("/v1/decode", content=header.getvalue(), headers={"content-type": NPY})
    is_problem(answer, 413, "10000000 z-points")
    is_problem(client().post("/v1/sample", json={"n": 10_000_000}), 413, "at most 4096")


def test_pixels_bound_the_points_of_large_images():
    assert Limits().points_of(ImageShape(96, 3)) == 4096
    assert Limits().points_of(ImageShape(512, 3)) == 341
    http = client(limits=Limits(pixels=2 * 16 * 16 * 3))
    assert http.get("/v1/model").json()["limits"]["points"] == 2
    is_problem(decode(http, points(3)), 413, "at most 2")


def test_types_that_are_not_known():
    is_problem(client().post("/v1/decode", content=b"{}"), 415, "takes application/json or application/x-npy")
    is_problem(client().post("/v1/sample", content=b"", headers={"content-type": NPY}), 415)
    is_problem(decode(client(), points(1), "text/html"), 406, "image/png")
    is_problem(client().get("/v1/decode"), 405)
    is_problem(client().get("/etc/passwd"), 404)


def test_token():
    http = client(token="secret")
    assert http.get("/healthz").status_code == 200
    for given in ("", "Bearer", "Bearer wrong", "Bearer secrets", "Basic secret", "secret", "Bearer sécret"):
        for path in ("/v1/model", "/docs", "/openapi.json", "/nothing"):
            answer = http.get(path, headers=[(b"authorization", given.encode())])
            is_problem(answer, 401, "Bearer")
            assert answer.headers["www-authenticate"] == "Bearer"
    allowed = {"authorization": "bearer secret"}
    assert http.get("/v1/model", headers=allowed).status_code == 200
    assert http.post("/v1/sample", json={}, headers=allowed).status_code == 200


def test_our_own_fault_is_a_500_that_tells_nothing():
    answer = decode(client(Broken()), points(1))
    is_problem(answer, 500)
    assert "fault" not in answer.text


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sample_decodes_what_the_sampler_gives(sampler):
    answer = client().post("/v1/sample", json={"sampler": sampler, "n": 5, "seed": 3}, headers={"accept": NPY})
    assert answer.headers["x-zpoint-seed"] == "3"
    wanted = DIRECT.now(sample(sampler, 5, LATENTS, 3).numpy())
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), wanted)


def test_sample_without_a_seed_names_the_one_it_drew():
    http = client()
    first = http.post("/v1/sample", json={"n": 2})
    again = http.post("/v1/sample", json={"n": 2, "seed": int(first.headers["x-zpoint-seed"])})
    assert first.content == again.content
    assert first.content != http.post("/v1/sample", json={"n": 2}).content


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], "body"),
        ({"sampler": "magic"}, "unknown sampler 'magic': it takes one of cube"),
        ({"n": 0}, "n: "),
        ({"n": "3"}, "n: "),
        ({"seed": -1}, "seed: "),
        ({"seed": 2**63}, "seed: "),
        ({"size": 3}, "size: "),
        ({"parameters": {"boundary": 1}}, "normal takes temperature, not boundary"),
        ({"parameters": {"seed": 1}}, "normal takes temperature, not seed"),
        ({"parameters": {"generator": 1}}, "not generator"),
        ({"parameters": {"temperature": "hot"}}, "parameters.temperature"),
        ({"parameters": {"temperature": 1e300}}, "not finite"),
    ],
)
def test_wrong_sample_is_a_422(value, text):
    is_problem(client().post("/v1/sample", json=value), 422, text)


def test_model_tells_the_facts():
    told = client().get("/v1/model").json()
    assert (told["name"], told["version"], told["alias"], told["run_id"]) == (
        "zpoint",
        "7",
        "champion",
        "run-1",
    )
    assert told["image"] == {"size": 16, "channels": 3}
    assert told["z_dim"] == Z_DIM
    assert told["recipe"]["model"]["z_dim"] == Z_DIM
    assert told["metrics"] == {"psnr": 20.0}
    assert told["samplers"]["cube"] == {"boundary": 1.0}
    assert set(told["samplers"]) == set(SAMPLERS)


def test_docs_list_every_route_and_load_nothing():
    http = client()
    page = http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for path in http.get("/openapi.json").json()["paths"]:
        assert path in page.text
    for loading in ("src=", "<link", "@import", "url(", "<script", "https://"):
        assert loading not in page.text


def test_concurrent_requests_are_batched_and_equal_single_decodes():
    sizes, lock = [], threading.Lock()

    def decode_batch(z):
        with lock:
            sizes.append(len(z))
        return DIRECT.now(z)

    async def run():
        batcher = Batcher(decode_batch, max_points=16)
        requests = [points(n, seed) for seed, n in enumerate([1, 3, 40, 1, 1, 7, 16, 2])]
        return requests, await asyncio.gather(*map(batcher.decode, requests))

    requests, answers = asyncio.run(run())
    assert max(sizes) <= 16
    assert len(sizes) < sum(-(-len(z) // 16) for z in requests)
    for z, images in zip(requests, answers, strict=True):
        alone = np.concatenate([DIRECT.now(row[None]) for row in z])
        # Batches may sum in another order; that moves a pixel by one step at most.
        assert images.shape == alone.shape
        assert np.abs(images.astype(int) - alone).max() <= 1


def test_a_failing_batch_fails_its_requests_and_no_others():
    def decode_batch(z):
        if (z == 666).any():
            raise RuntimeError("no")
        return DIRECT.now(z)

    async def run():
        batcher = Batcher(decode_batch)
        with pytest.raises(RuntimeError, match="no"):
            await batcher.decode(np.full((1, Z_DIM), 666, np.float32))
        gone = asyncio.ensure_future(batcher.decode(points(1)))
        kept = asyncio.ensure_future(batcher.decode(points(2)))
        await asyncio.sleep(0)
        gone.cancel()
        return await kept

    np.testing.assert_array_equal(asyncio.run(run()), DIRECT.now(points(2)))
