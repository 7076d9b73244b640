"""The app without Ray: responses and errors of each route."""

import asyncio
import io
import json
import re

import httpx2
import numpy as np
import pytest
import torch

from aecore.config import TASKS
from aecore.latent.interpolation import INTERPOLATIONS
from aecore.latent.samplers import SAMPLERS, sample
from aecore.model.autoencoder import ImageShape
from serving.http.decoding import JSON, NPY, PNG, Limits
from serving.runtime.admission import Overloaded
from serving.runtime.metrics import EndpointMetrics
from serving.runtime.model_loading import LoadedModel
from tests.serving.app_client import (
    INFO,
    MODEL,
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
from tests.serving.app_server import Z_DIM, make_slot


def test_png_of_one_z_has_the_decoded_pixels():
    z = make_z(1)
    response = make_client().post("/v1/decode", json={"z": z.tolist()})
    assert response.status_code == 200
    assert response.headers["content-type"] == PNG
    assert response.headers["x-zpoint-model"] == "zpoint/7"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert images_close(read_image(response.content), decoded(z)[0])


def test_decode_returns_npy_or_json_as_accepted():
    z = make_z(300)
    response = post_decode(make_client(), z)
    assert response.headers["content-type"] == NPY
    assert images_close(read_npy(response.content), decoded(z))
    response = post_decode(make_client(), z[:2], JSON).json()
    assert response["model"] == "zpoint/7"
    assert len(response["images"]) == 2


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
def test_invalid_z_is_a_422(value, text):
    is_problem(make_client().post("/v1/decode", json=value), 422, text)


def test_nan_and_invalid_npy_are_422():
    body = json.dumps({"z": [[float("nan")] * Z_DIM]})
    is_problem(make_client().post("/v1/decode", content=body, headers={"content-type": JSON}), 422, "finite")
    is_problem(post_decode(make_client(), np.zeros((1, Z_DIM), np.int32)), 422, "float32")
    broken = make_client().post("/v1/decode", content=b"\x93NUMPY", headers={"content-type": NPY})
    is_problem(broken, 422, "not a .npy")


def test_body_beyond_the_limit_is_a_413_by_content_length_by_stream_and_by_count():
    http = make_client(limits=Limits(max_points=4, max_body_bytes=1000))
    text = "larger than 1000 bytes: one request takes 4 z-points"
    is_problem(http.post("/v1/decode", content=b"x" * 1001, headers={"content-type": JSON}), 413, text)

    def chunks():
        for _ in range(100_000):
            yield b"x" * 100

    is_problem(http.post("/v1/decode", content=chunks(), headers={"content-type": JSON}), 413, text)
    exact = json.dumps({"z": [[0.0] * Z_DIM]}).ljust(1000)
    for content in (exact, iter([exact.encode()])):  # with a Content-Length, and in chunks
        assert http.post("/v1/decode", content=content, headers={"content-type": JSON}).status_code == 200
    is_problem(post_decode(http, make_z(5)), 413, "5 z-points: one request takes at most 4")
    assert post_decode(http, make_z(4)).status_code == 200


def test_ten_million_z_points_are_a_413():
    body = b'{"z":[' + b"[0,0,0,0,0,0,0,0]," * 9_999_999 + b"[0,0,0,0,0,0,0,0]]}"
    is_problem(make_client().post("/v1/decode", content=body, headers={"content-type": JSON}), 413, "4096 z-points")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (10_000_000, Z_DIM), "fortran_order": False, "descr": "<f4"})
    response = make_client().post("/v1/decode", content=header.getvalue(), headers={"content-type": NPY})
    is_problem(response, 413, "10000000 z-points")
    is_problem(make_client().post("/v1/sample", json={"n": 10_000_000}), 413, "at most 4096")


def test_max_points_shrinks_with_the_image_size():
    assert Limits().max_points_of(ImageShape(96, 3)) == 4096
    assert Limits().max_points_of(ImageShape(512, 3)) == 341
    http = make_client(limits=Limits(max_output_bytes=2 * 16 * 16 * 3))
    assert http.get("/v1/model").json()["limits"]["points"] == 2
    is_problem(post_decode(http, make_z(3)), 413, "at most 2")


def test_unsupported_content_type_accept_method_and_path():
    response = make_client().post("/v1/decode", content=b"{}", headers={"content-type": "text/plain"})
    is_problem(response, 415, "send application/json or application/x-npy")
    is_problem(make_client().post("/v1/sample", content=b"", headers={"content-type": NPY}), 415)
    is_problem(post_decode(make_client(), make_z(1), "text/html"), 406, "image/png")
    is_problem(make_client().get("/v1/decode"), 405)
    is_problem(make_client().get("/etc/passwd"), 404)
    for path in ("/v1", "/v1/decode/", "/redoc", "/-/routes", "/static/../api.py", "/static/%2e%2e/api.py"):
        is_problem(make_client().get(path, follow_redirects=False), 404)


def test_token_is_required_except_for_public_paths():
    http = make_client(token="secret")
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert http.get(path).status_code == 200
        is_problem(http.get(path, headers={"authorization": "Bearer wrong"}), 401)
    for path in ("/v1/model", "/v1/decode", "/metrics", "/docs/", "/nothing"):
        is_problem(http.get(path), 401, "Bearer")
    for authorization in ("", "Bearer", "Bearer wrong", "Bearer secrets", "Basic secret", "secret", "Bearer sécret"):
        for path in ("/v1/model", "/docs", "/openapi.json", "/nothing"):
            response = http.get(path, headers=[(b"authorization", authorization.encode())])
            is_problem(response, 401, "Bearer")
            assert response.headers["www-authenticate"] == "Bearer"
    allowed = {"authorization": "bearer secret"}
    assert http.get("/v1/model", headers=allowed).status_code == 200
    assert http.post("/v1/sample", json={}, headers=allowed).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_without_a_token_pages_of_other_sites_are_refused(site: str):
    """A browser sends what needs no preflight, such as a POST without a content type or an <img>, to any address."""
    http, image = make_client(), make_image_file()
    headers = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", "origin": "https://evil.example"}
    form = headers | {"sec-fetch-mode": "navigate"}  # a form's POST and an <iframe> navigate, too
    is_problem(http.post("/v1/encode", content=image, headers=headers), 403, "--cors")
    is_problem(http.post("/v1/sample?n=4", headers=headers), 403, "--cors")
    is_problem(http.post("/v1/sample?n=4", headers=form), 403, "--cors")
    is_problem(http.get("/v1/points/thumbnails", headers=headers | {"sec-fetch-dest": "image"}), 403, "--cors")
    is_problem(http.get("/v1/points/thumbnails", headers=form), 403, "--cors")
    assert http.get("/", headers=form).status_code == 200  # a link to the page
    for allowed in ({}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}):
        answer = http.post("/v1/encode", content=image, headers=allowed)
        assert answer.status_code == 200
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    with_cors = make_client(cors_origins=["https://evil.example"])
    assert with_cors.post("/v1/sample?n=4", headers=headers).status_code == 200
    is_problem(make_client(cors_origins=["https://a.example"]).post("/v1/sample?n=4", headers=headers), 403, "--cors")
    token = {"authorization": "Bearer secret"}
    assert make_client(token="secret").post("/v1/sample?n=4", headers=headers | token).status_code == 200


def test_without_a_token_only_loopback_hosts_are_served():
    """Refuse DNS rebinding: a web site whose name resolves to 127.0.0.1 reads nothing through a visitor's browser."""
    for host in ("localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:8000", "127.0.0.2", "[::1]:8000"):
        assert make_client().get("/v1/model", headers={"host": host}).status_code == 200
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "[", "", "@"):
        for path in ("/", "/v1/model"):
            is_problem(make_client().get(path, headers={"host": host}), 421, "ZPOINT_TOKEN")
    trusted = {"host": "zpoint.example", "authorization": "Bearer secret"}
    assert make_client(token="secret").get("/v1/model", headers=trusted).status_code == 200


def test_bytes_of_all_unanswered_bodies_are_bounded():
    z = make_z(100)
    http = make_client(limits=Limits(max_buffered_bytes=5000))
    for _ in range(3):
        assert post_decode(http, z).status_code == 200  # 3,328 bytes, given back each time
    response = post_decode(http, make_z(200))
    is_problem(response, 503, "retry after 1 s")
    assert response.headers["retry-after"] == "1"
    assert post_decode(http, z).status_code == 200


def test_internal_error_is_a_500_without_details(caplog):
    async def broken(z):
        raise RuntimeError("a fault of ours")

    response = post_decode(make_client(make_slot_with(broken)), make_z(1))
    is_problem(response, 500)
    assert "a fault of ours" not in response.text
    assert "a fault of ours" in caplog.text


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("sample", rb'{"sampler": "\ud800"}'),
        ("sample", rb'{"parameters": {"\ud800": 1}}'),
        ("interpolate", rb'{"z": [[0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]], "path": "\ud800"}'),
    ],
)
def test_lone_surrogate_is_quoted_in_the_problem(route, body):
    response = make_client().post(f"/v1/{route}", content=body, headers={"content-type": JSON})
    is_problem(response, 422, r"\ud800")


def test_disconnect_counts_as_499_and_logs_nothing(caplog):
    metrics, sent = EndpointMetrics("1"), []
    app = make_client(metrics=metrics).app
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", JSON.encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/decode", "headers": headers, "query_string": b""}
    asyncio.run(app(scope, receive, send))
    assert (sent, caplog.text) == ([], "")
    assert 'status="499"' in make_client(metrics=metrics).get("/metrics").text


def test_a_cancelled_request_counts_as_499():
    """Ray Serve cancels the request of a client that disconnects."""
    metrics = EndpointMetrics("1")

    async def wait(_):
        await asyncio.sleep(60)

    app = make_client(make_slot_with(wait), metrics=metrics).app

    async def cancel():
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as http:
            request = asyncio.ensure_future(http.get("/readyz"))
            await asyncio.sleep(0.1)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request

    asyncio.run(cancel())
    samples = metrics.samples()
    assert samples["zpoint_requests_total", (("route", "/readyz"), ("status", "499"))] == 1


def test_waiting_items_return_to_zero_after_the_response():
    slot, metrics = make_slot(), EndpointMetrics("1")
    slot.current = LoadedModel(INFO, MODEL, metrics=metrics)
    http = make_client(slot, metrics=metrics)
    assert post_decode(http, make_z(100)).status_code == 200
    assert 'zpoint_waiting_items{operation="decode",replica="1"} 0.0' in http.get("/metrics").text


def test_overload_is_a_503_with_retry_after():
    async def busy(z):
        raise Overloaded(3.2)

    http = make_client(make_slot_with(busy))
    for response in (post_decode(http, make_z(1)), http.post("/v1/sample", json={}), http.get("/readyz")):
        is_problem(response, 503, "server overloaded")
        assert response.headers["retry-after"] == "4"
    assert http.get("/healthz").status_code == 200


def test_timeout_is_a_503_that_is_not_to_be_retried():
    async def slow(z):
        await asyncio.sleep(60)

    response = post_decode(make_client(make_slot_with(slow), limits=Limits(timeout_s=0.1)), make_z(1))
    is_problem(response, 503, "longer than 0.1 s; request fewer images")
    assert "retry-after" not in response.headers


@pytest.mark.parametrize("version", ["zpoint/7", "7", " 7 ", ""])
def test_a_request_that_names_the_served_version_is_answered(version: str):
    assert make_client().post("/v1/sample", json={}, headers={"X-Zpoint-Model": version}).status_code == 200


@pytest.mark.parametrize("version", ["zpoint/6", "6", "zpoint", "other/7", "zpoint/77", "\xff"])
def test_a_request_that_names_another_version_is_a_409(version: str):
    http, headers = make_client(), {"X-Zpoint-Model": version.encode("latin-1")}
    is_problem(http.post("/v1/sample", json={}, headers=headers), 409, "the endpoint serves zpoint/7, not")
    assert http.get("/healthz", headers=headers).status_code == 200


def test_body_that_does_not_arrive_is_a_408():
    app, sent = make_client(limits=Limits(body_timeout_s=0.01)).app, []
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def receive():
        return next(messages, None) or await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", JSON.encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/decode", "headers": headers, "query_string": b""}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 408
    assert b"the body did not arrive within 0.01 s" in sent[1]["body"]


def test_readyz_decodes_a_z_point_of_the_model():
    decoded_shapes = []

    async def decode(z):
        decoded_shapes.append(z.shape)

    http = make_client(make_slot_with(decode))
    assert http.get("/healthz").json() == http.get("/readyz").json() == {"status": "ok"}
    assert decoded_shapes == [(1, Z_DIM)]


def test_sample_without_a_sampler_takes_the_models_best_one():
    http = make_client(make_slot_with(sampler="gaussian"))
    body = http.post("/v1/sample", json={"n": 3, "seed": 3}, headers={"accept": JSON}).json()
    np.testing.assert_array_equal(np.float32(body["z"]), sample("gaussian", 3, INFO.latents, 3).numpy())
    assert http.get("/v1/model").json()["sampler"] == "gaussian"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sample_decodes_the_z_points_of_the_sampler(sampler):
    response = make_client().post("/v1/sample", json={"sampler": sampler, "n": 5, "seed": 3}, headers={"accept": NPY})
    assert response.headers["x-zpoint-seed"] == "3"
    assert images_close(read_npy(response.content), decoded(sample(sampler, 5, INFO.latents, 3).numpy()))
    body = (
        make_client().post("/v1/sample", json={"sampler": sampler, "n": 5, "seed": 3}, headers={"accept": JSON}).json()
    )
    np.testing.assert_array_equal(np.float32(body["z"]), sample(sampler, 5, INFO.latents, 3).numpy())
    assert (body["seed"], len(body["images"])) == (3, 5)


def test_sample_without_a_seed_returns_a_random_one():
    http = make_client()
    zero = [http.post("/v1/sample", json={"n": 2, "seed": 0}) for _ in range(2)]
    assert zero[0].headers["x-zpoint-seed"] == "0"
    assert zero[0].content == zero[1].content
    first = http.post("/v1/sample", json={"n": 2})
    repeated = http.post("/v1/sample", json={"n": 2, "seed": int(first.headers["x-zpoint-seed"])})
    assert first.content == repeated.content
    assert first.content != http.post("/v1/sample", json={"n": 2}).content


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], "body"),
        ({"sampler": "magic"}, "unknown sampler 'magic': use one of cube"),
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
def test_invalid_sample_request_is_a_422(value, text):
    is_problem(make_client().post("/v1/sample", json=value), 422, text)


def test_model_returns_its_version_recipe_metrics_and_options():
    body = make_client().get("/v1/model").json()
    assert [body[key] for key in ("name", "version", "alias", "run_id")] == ["zpoint", "7", "champion", "run-1"]
    assert body["image"] == {"size": 16, "channels": 3}
    assert body["z_dim"] == Z_DIM
    assert body["recipe"]["model"]["z_dim"] == Z_DIM
    assert body["metrics"] == {"psnr": 20.0}
    assert body["samplers"]["cube"] == {"boundary": 1.0}
    assert (set(body["samplers"]), set(body["tasks"]), set(body["paths"])) == (
        set(SAMPLERS),
        set(TASKS),
        set(INTERPOLATIONS),
    )
    assert body["tasks"]["denoise"] == {"sigma": 0.25}
    assert body["refused"] is None


def test_model_returns_the_latent_space():
    space = make_client().get("/v1/model").json()["latents"]
    covariance = INFO.latents["covariance"].double().numpy()
    axis = np.array(space["axes"][0]["direction"])
    assert len(space["axes"]) == Z_DIM
    assert axis @ covariance @ axis == pytest.approx(np.linalg.eigvalsh(covariance)[-1], rel=1e-3)
    assert space["axes"][0]["sd"] ** 2 == pytest.approx(np.linalg.eigvalsh(covariance)[-1], rel=1e-3)
    assert space["mean"] == pytest.approx(INFO.latents["mean"].tolist(), abs=1e-5)
    assert space["sd"] == pytest.approx(np.sqrt(np.diag(covariance)), abs=1e-5)
    assert set(space["attributes"]) == {"Smiling", "dark_hair"}


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_model_returns_the_distance_of_a_mixtures_samples_from_the_origin(temperature):
    means, scales = torch.zeros(2, Z_DIM), torch.tensor([0.5, 1.0])
    means[:, 0] = torch.tensor([-4.0, 8.0])
    factors = scales[:, None, None] * torch.eye(Z_DIM)
    mixture = {"gmm_weights": torch.tensor([0.75, 0.25]), "gmm_means": means, "gmm_factors": factors}
    http = make_client(make_slot_with(latents={**INFO.latents, **mixture}))
    described = http.get("/v1/model").json()["latents"]["mixture"]
    options = {"sampler": "gmm", "n": 4000, "seed": 0, "parameters": {"temperature": temperature}}
    z = np.array(http.post("/v1/sample", json=options, headers={"accept": JSON}).json()["z"])
    expected = described["mean_square"] + temperature**2 * described["variance"]
    assert np.square(z).sum(1).mean() == pytest.approx(expected, rel=0.03)


def test_model_without_mixture_or_stored_points_lacks_gmm_and_neighbours():
    gaussian_only = {name: INFO.latents[name] for name in ("mean", "covariance")}
    http = make_client(make_slot_with(latents=gaussian_only, points=None, metrics={"psnr": float("nan")}))
    body = http.get("/v1/model").json()
    assert set(body["samplers"]) == set(SAMPLERS) - {"gmm"}
    assert body["paths"] == ["straight", "spherical"]
    assert body["latents"]["mixture"] is None
    assert body["metrics"] == {}
    is_problem(http.post("/v1/sample", json={"sampler": "gmm"}), 422, "mixture")
    is_problem(
        http.post("/v1/interpolate", json={"z": make_z(2).tolist(), "path": "neighbours"}), 422, "takes straight"
    )


def test_docs_load_swagger_ui_from_this_server_under_the_pages_policy():
    http = make_client()
    page = http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"] == http.get("/").headers["content-security-policy"]
    for inline in ("<style", "style=", "<script>", "https://"):
        assert inline not in page.text
    urls = re.findall(r'(?:src|href)="(static/[^"]+)"', page.text)
    assert {"static/swagger/swagger-ui-bundle.js", "static/swagger/swagger-ui.css"} < set(urls)
    for url in urls:
        assert http.get(f"/{url}").headers["content-security-policy"] == page.headers["content-security-policy"]
