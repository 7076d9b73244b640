"""CORS: web pages of a list of origins may use the API, by default none."""

from typing import Any

import pytest

from tests.serving.app_client import make_client

ORIGIN = "https://example.org"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-zpoint-model",
}  # fmt: skip


@pytest.fixture
def http() -> Any:
    return make_client(token="secret", cors_origins=[ORIGIN])


def test_a_page_of_a_listed_origin_may_send_requests_and_read_answers(http):
    preflight = http.options("/v1/sample", headers={"Origin": ORIGIN, **PREFLIGHT})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    response = http.post("/v1/sample", json={}, headers={"Origin": ORIGIN, "Authorization": "Bearer secret"})
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "X-Zpoint-Seed" in response.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in response.headers


def test_a_page_of_a_listed_origin_reads_refusals(http):
    response = http.post("/v1/sample", json={}, headers={"Origin": ORIGIN})
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (401, ORIGIN)


@pytest.mark.parametrize("origins", [[], [ORIGIN]])
def test_other_origins_get_no_access(origins):
    http = make_client(cors_origins=origins)
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}):
        assert "access-control-allow-origin" not in http.options("/v1/sample", headers=headers | PREFLIGHT).headers
        assert "access-control-allow-origin" not in http.post("/v1/sample", json={}, headers=headers).headers


def test_by_default_no_origin_gets_access():
    headers = {"Origin": ORIGIN}
    assert "access-control-allow-origin" not in make_client().post("/v1/sample", json={}, headers=headers).headers
