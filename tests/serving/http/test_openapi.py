"""The app against its own OpenAPI: schemathesis generates requests and validates the responses."""

import pytest
from hypothesis import HealthCheck, given, settings

from serving.http.api import create_app
from tests.serving.app_server import make_slot

schemathesis = pytest.importorskip("schemathesis")
POST_ROUTES = ("decode", "sample", "encode", "reconstruct", "interpolate", "neighbours", "points/at", "frames")
MODEL_ROUTES = [
    *(("POST", f"/{name}") for name in POST_ROUTES),
    *(("GET", f"/{name}") for name in ("model", "points", "points/thumbnails")),
]
ROUTES = [
    *((method, f"/v1{path}") for method, path in MODEL_ROUTES),
    ("POST", "/v1/convert"),
    *(("GET", path) for path in ("/v1/models", "/healthz", "/readyz", "/metrics")),
]
ALIAS_ROUTES = [(method, f"/v1/models/{{alias}}{path}") for method, path in MODEL_ROUTES]
HOST = {"Host": "localhost"}


def load_schema(token=""):
    headers = {"Authorization": f"Bearer {token}"} | HOST
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(make_slot(), token=token), headers=headers)


def check_generated_requests(operation, max_examples, check):
    """Call `check` with requests that conform to an operation's schema and, for POST, with others that do not."""
    modes = [schemathesis.GenerationMode.POSITIVE]
    if operation.method != "get":
        modes.append(schemathesis.GenerationMode.NEGATIVE)
    for mode in modes:

        @settings(max_examples=max_examples, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def run(case):
            check(case)

        run()


@pytest.fixture(scope="module")
def schema():
    return load_schema()


def test_openapi_lists_every_route(schema):
    assert {(o.ok().method.upper(), o.ok().path) for o in schema.get_all_operations()} == {*ROUTES, *ALIAS_ROUTES}


@pytest.mark.parametrize(("method", "path"), [*ROUTES, *ALIAS_ROUTES])
def test_responses_conform_to_the_openapi(schema, method, path):
    # No schema expresses that bytes are a valid image or that a list has z_dim numbers.
    excluded = [schemathesis.checks.positive_data_acceptance]
    check_generated_requests(
        schema[path][method],
        60 if (method, path) in ROUTES else 8,
        lambda case: case.call_and_validate(headers=HOST, excluded_checks=excluded),
    )


def test_wrong_token_is_always_a_401():
    schema_with_token = load_schema("secret")

    def is_unauthorized(case):
        response = case.call(headers={"Authorization": "Bearer wrong"})
        assert (response.status_code, response.headers["content-type"]) == (401, ["application/problem+json"])
        assert b"Bearer TOKEN" in response.content

    for method, path in ROUTES:
        check_generated_requests(schema_with_token[path][method], 5, is_unauthorized)
