"""Several aliases at one endpoint, each with routes of its own."""

import numpy as np
import pytest

from serving.runtime.metrics import EndpointMetrics
from tests.serving.app_client import is_problem, make_client, make_slot_with, make_z
from tests.serving.app_server import make_slot, serve_app


@pytest.fixture
def slots():
    return make_slot_with(), make_slot_with(alias="near-ae", version="3", recipe={"loss": {"kl_factor": 1e-6}})


@pytest.fixture
def http(slots):
    return make_client(*slots)


def test_routes_without_an_alias_are_the_first_ones(http):
    for prefix, label in {
        "/v1": "zpoint/7",
        "/v1/models/champion": "zpoint/7",
        "/v1/models/near-ae": "zpoint/3",
    }.items():
        response = http.post(f"{prefix}/decode", json={"z": make_z(1).tolist()})
        assert (response.status_code, response.headers["x-zpoint-model"]) == (200, label)
        model = http.get(f"{prefix}/model").json()
        assert f"{model['name']}/{model['version']}" == label


def test_models_lists_the_aliases_with_their_key_figures(http, slots):
    slots[1].refused = {"version": "4", "reason": "broken"}
    models = http.get("/v1/models").json()["models"]
    assert [(m["alias"], m["version"], m["kl_factor"], m["refused"]) for m in models] == [
        ("champion", "7", 1.0, None), ("near-ae", "3", 1e-6, {"version": "4", "reason": "broken"}),
    ]  # fmt: skip
    assert models[0]["z_dim"] == 8
    assert models[0]["metrics"] == {"psnr": 20.0}
    assert http.get("/v1/models/near-ae/model").json()["refused"] == slots[1].refused
    assert http.get("/v1/model").json()["refused"] is None
    is_problem(http.get("/v1/models?a=1"), 422, "a")


@pytest.mark.parametrize(
    "path", ["/v1/models/ae/model", "/v1/models/", "/v1/models/Champion/no/such", "/v1/models/%2e/model"]
)
def test_an_unknown_alias_is_a_404_that_names_those_served(http, path):
    is_problem(http.get(path), 404, "is not served here: use one of champion, near-ae")


def test_an_unknown_alias_is_not_revealed_without_the_token(slots):
    http = make_client(*slots, token="secret")
    is_problem(http.get("/v1/models/ae/model"), 401)
    assert http.get("/v1/models/near-ae/model", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_a_pinned_version_is_that_of_the_alias(http):
    body = {"json": {}, "headers": {"X-Zpoint-Model": "zpoint/3"}}
    assert http.post("/v1/models/near-ae/sample", **body).status_code == 200
    is_problem(http.post("/v1/sample", **body), 409, "the endpoint serves zpoint/7, not zpoint/3")


def test_one_alias_is_swapped_without_the_other(http, slots):
    slots[1].current = make_slot("9", "near-ae").current
    assert [model["version"] for model in http.get("/v1/models").json()["models"]] == ["7", "9"]
    assert http.get("/v1/model").json()["version"] == "7"


def test_ready_only_if_the_model_of_each_alias_decodes():
    async def broken(_):
        raise RuntimeError

    is_problem(make_client(make_slot_with(), make_slot_with(broken, alias="near-ae")).get("/readyz"), 500)


def test_metrics_count_the_waiting_items_of_all_models_and_name_each_served_version():
    metrics = EndpointMetrics("1")
    metrics.add_waiting("decode", 3)
    metrics.add_waiting("decode", 4)
    metrics.add_waiting("decode", -3)
    for alias, version in {"champion": "1", "near-ae": "2"}.items():
        metrics.set_served_version(alias, "zpoint", version, swap=False)
    metrics.set_served_version("near-ae", "zpoint", "3", swap=True)
    lines = metrics.exposition().decode().splitlines()
    assert 'zpoint_waiting_items{operation="decode",replica="1"} 4.0' in lines
    assert [line for line in lines if line.startswith("zpoint_model{")] == [
        'zpoint_model{alias="champion",name="zpoint",replica="1",version="1"} 1.0',
        'zpoint_model{alias="near-ae",name="zpoint",replica="1",version="3"} 1.0',
    ]


def test_faces_of_a_sample_are_counted_once_for_the_same_version_and_options(http, monkeypatch):
    counted = []

    def face_hits(images):
        counted.append(len(images))
        return np.arange(len(images)) % 3 == 0

    monkeypatch.setattr("aecore.metrics.face_detector.face_hits", face_hits)
    monkeypatch.setattr("aecore.metrics.face_detector.typical_face", lambda images: (0.5, 0.5, 0.6))
    options = {"n": 4, "seed": 1, "count_faces": True}
    assert "x-zpoint-faces" not in http.post("/v1/sample", json={"n": 4}).headers
    sampler = http.get("/v1/model").json()["sampler"]  # without one in the options; another promotion may change it
    for named in ({}, {}, {"sampler": sampler}):
        response = http.post("/v1/sample", json={**options, **named}, headers={"Accept": "application/json"})
        assert (response.json()["faces"], response.headers["x-zpoint-faces"]) == (2, "2")
    assert counted == [4]
    for changed in ({"seed": 2}, {"n": 5}, {"sampler": "cube"}, {"parameters": {"temperature": 2}}):
        response = http.post("/v1/sample", json={**options, **changed}, headers={"Accept": "image/webp"})
        assert response.headers["x-zpoint-faces"] == "2"
    http.post("/v1/models/near-ae/sample", json=options)
    assert len(counted) == 6
    is_problem(http.post("/v1/sample", json={**options, "n": 65}), 413, "at most 64 images")


def test_client_asks_one_of_the_models():
    from serving.client import Client

    with serve_app(make_slot(), make_slot("3", "near-ae")) as url:
        with Client(url, alias="near-ae") as client:
            assert client.model()["version"] == "3"
            z = client.encode(client.sample(n=2, seed=1))
            assert z.model == "zpoint/3"
            assert client.interpolate(z, steps=3).model == "zpoint/3"
            assert [model["alias"] for model in client.models()] == ["champion", "near-ae"]
        with Client(url) as client:
            assert client.decode(make_z(1)).model == "zpoint/7"
        with Client(url, alias="ae") as client, pytest.raises(ValueError, match="use one of champion, near-ae"):
            client.decode(make_z(1))
