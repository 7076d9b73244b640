"""The routes of the stored points: neighbours, the map, its thumbnails, and places on it."""

import asyncio
import base64
import io
import threading
import time
from dataclasses import replace
from functools import partial

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from aecore.latent.interpolation import through_neighbours
from serving.http.decoding import JSON, NPY
from serving.http.encoding import encode_npy
from serving.runtime.metrics import EndpointMetrics
from tests.serving.app_client import (
    decoded,
    images_close,
    is_problem,
    make_client,
    make_slot_with,
    make_z,
    read_image,
    read_npy,
)
from tests.serving.app_server import make_stored_points

HTTP, POINTS = make_client(), make_stored_points()


def test_neighbours_are_the_nearest_points_with_distance_split_attributes_and_thumbnail():
    z = make_z(3)
    body = HTTP.post("/v1/neighbours?k=4", content=encode_npy(z), headers={"content-type": NPY}).json()
    assert body["model"] == "zpoint/7"
    distances = np.linalg.norm(z[:, None] - POINTS.z.numpy(), axis=2)
    for nearest, expected in zip(body["neighbours"], distances, strict=True):
        assert [n["index"] for n in nearest] == expected.argsort()[:4].tolist()
        np.testing.assert_allclose([n["distance"] for n in nearest], np.sort(expected)[:4], rtol=1e-5)
        for neighbour in nearest:
            row = neighbour["index"]
            assert neighbour["split"] == ("train" if row < 80 else "test")
            assert neighbour["attributes"] == {"Smiling": float(POINTS.z[row, 0] > 0)}
            thumbnail = read_image(base64.b64decode(neighbour["thumbnail"]))
            np.testing.assert_array_equal(thumbnail, POINTS.thumbnail(row))
    assert len(HTTP.post("/v1/neighbours", json={"z": z[:1].tolist()}).json()["neighbours"][0]) == 8


def test_distant_z_points_have_distances():
    response = HTTP.post("/v1/neighbours?k=2", json={"z": [[3e38] * 8]})
    distances = [neighbour["distance"] for neighbour in response.json()["neighbours"][0]]
    np.testing.assert_allclose(distances, 3e38 * 8**0.5)


def test_too_many_neighbours_are_refused():
    is_problem(HTTP.post("/v1/neighbours?k=100", json={"z": make_z(41).tolist()}), 413, "at most 4096")
    is_problem(HTTP.post("/v1/neighbours?k=101", json={"z": make_z(1).tolist()}), 422, "k")


def test_requests_that_would_wait_long_for_neighbours_are_refused_and_others_answered(monkeypatch):
    event, sizes = threading.Event(), []

    def find_neighbours(z, *_):
        sizes.append(len(z))
        if len(sizes) == 1:
            time.sleep(0.3)  # counts as that of 100 neighbours: 4,096 take 12 s
        else:
            assert event.wait(60)
        return [[]] * len(z)

    monkeypatch.setattr("serving.http.operations.find_neighbours", find_neighbours)
    metrics = EndpointMetrics("1")
    app = make_client(metrics=metrics).app

    async def post_concurrently():
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as http:
            post = partial(http.post, "/v1/neighbours?k=64", headers={"content-type": NPY})
            await post(content=encode_npy(make_z(1)))
            admitted = asyncio.ensure_future(post(content=encode_npy(make_z(64))))
            async with asyncio.timeout(20):
                while len(sizes) < 2:
                    await asyncio.sleep(0.01)
                refused = await post(content=encode_npy(make_z(1)))
                others = await asyncio.gather(*(http.post("/v1/sample", json={}) for _ in range(40)))
            event.set()
            return await admitted, refused, others

    admitted, refused, others = asyncio.run(post_concurrently())
    assert (admitted.status_code, len(admitted.json()["neighbours"])) == (200, 64)
    is_problem(refused, 503, "server overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert {response.status_code for response in others} == {200}
    assert sizes == [1] * 65  # of at most 100 neighbours
    lines = metrics.exposition().decode().splitlines()
    assert 'zpoint_shed_total{operation="neighbours",replica="1"} 1.0' in lines
    assert 'zpoint_waiting_items{operation="neighbours",replica="1"} 0.0' in lines


def test_the_map_has_the_places_of_all_points_and_the_grid_of_their_sprites():
    body = HTTP.get("/v1/points").json()
    np.testing.assert_allclose(body["points"], POINTS.xy, atol=1e-5)
    assert np.abs(body["points"]).max() == 1
    assert (body["model"], body["map"], body["splits"]) == ("zpoint/7", "tsne", ["train"] * 80 + ["test"] * 20)
    assert (body["attributes"], body["values"]) == (["Smiling"], None)
    assert body["sprites"] == {"columns": 10, "rows": 10, "size": 16}
    assert HTTP.get("/v1/points?attribute=Smiling").json()["values"] == POINTS.attributes["Smiling"].tolist()
    is_problem(
        HTTP.get("/v1/points?attribute=Beard"), 422, "unknown attribute 'Beard': this model's points have Smiling"
    )


def test_thumbnails_are_one_webp_sheet_that_is_fetched_once():
    response = HTTP.get("/v1/points/thumbnails")
    assert (response.content, response.headers["content-type"]) == (POINTS.sprites, "image/webp")
    with Image.open(io.BytesIO(response.content)) as sheet:
        assert sheet.size == (160, 160)
    etag = response.headers["etag"]
    for tags in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        unchanged = HTTP.get("/v1/points/thumbnails", headers={"if-none-match": tags})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    for tags in ('"other"', f'"other {etag}"', '"zpoint/7"'):
        assert HTTP.get("/v1/points/thumbnails", headers={"if-none-match": tags}).status_code == 200


def test_other_thumbnails_are_fetched_anew_though_the_version_has_the_same_name():
    """A new registry begins at version 1 again."""
    etag = HTTP.get("/v1/points/thumbnails").headers["etag"]
    same_sheet, other_sheet = (
        make_slot_with(version="8"), make_slot_with(points=replace(POINTS, sprites=POINTS.sprites + b"\0")),
    )  # fmt: skip
    statuses = [
        make_client(slot).get("/v1/points/thumbnails", headers={"if-none-match": etag}).status_code
        for slot in (same_sheet, other_sheet)
    ]
    assert statuses == [304, 200]


def test_a_place_on_the_map_is_decoded_between_its_nearest_points():
    x, y = POINTS.xy[3].tolist()
    body = HTTP.post("/v1/points/at", json={"x": x, "y": y, "k": 2}, headers={"accept": JSON}).json()
    np.testing.assert_allclose(body["z"], POINTS.z[3:4], atol=1e-4)
    assert images_close(read_image(base64.b64decode(body["images"][0]))[None], decoded(np.float32(body["z"])))
    assert body["nearest"][0]["index"] == 3
    assert len(body["nearest"]) == 2
    place = torch.tensor([[0.2, -0.4]])
    images = read_npy(HTTP.post("/v1/points/at?x=0.2&y=-0.4", headers={"accept": NPY}).content)
    assert images_close(images, decoded(POINTS.z_at(place, 8).numpy()))


@pytest.mark.parametrize("body", [{"x": "left"}, {"x": 11}, {"y": None}, {"x": 0, "k": 0}, {"z": [[0]]}])
def test_an_invalid_place_is_refused(body):
    is_problem(HTTP.post("/v1/points/at", json=body), 422, next(reversed(body)))


def test_missing_values_of_an_attribute_are_null():
    points = replace(POINTS, attributes={"age": torch.full((100,), float("nan"))})
    http = make_client(make_slot_with(points=points))
    assert http.get("/v1/points?attribute=age").json()["values"] == [None] * 100
    body = http.post("/v1/points/at", json={}, headers={"accept": JSON}).json()
    assert body["nearest"][0]["attributes"] == {"age": None}
    [[neighbour, *_]] = http.post("/v1/neighbours", json={"z": make_z(1).tolist()}).json()["neighbours"]
    assert neighbour["attributes"] == {"age": None}


def test_the_path_neighbours_leads_through_stored_points():
    ends = make_z(2)
    body = HTTP.post(
        "/v1/interpolate", json={"z": ends.tolist(), "path": "neighbours", "steps": 6}, headers={"accept": JSON}
    ).json()
    expected = through_neighbours(*torch.from_numpy(ends), 6, POINTS.z)
    np.testing.assert_allclose(body["z"], expected, atol=1e-5)


def test_a_model_without_points_answers_404_that_names_the_recipe_key():
    http = make_client(make_slot_with(points=None))
    for response in (
        http.post("/v1/neighbours", json={"z": make_z(1).tolist()}), http.get("/v1/points"),
        http.get("/v1/points/thumbnails"), http.post("/v1/points/at", json={}),
    ):  # fmt: skip
        is_problem(response, 404, "zpoint/7 was stored without points: train with points.images above 0")
    assert "neighbours" not in http.get("/v1/model").json()["paths"]
    is_problem(
        http.post("/v1/interpolate?path=neighbours", json={"z": make_z(2).tolist()}), 422, "unknown path 'neighbours'"
    )
