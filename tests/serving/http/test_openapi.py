"""The app against what it says of itself: whatever is made up from its OpenAPI, it answers as described there."""

import pytest
from hypothesis import HealthCheck, given, settings

from serving.http.api import create_app
from tests.serving.app_server import make_slot

schemathesis = pytest.importorskip("schemathesis")
ROUTES = [
    *(("POST", f"/v1/{name}") for name in ("decode", "sample", "encode", "reconstruct", "interpolate")),
    *(("GET", path) for path in ("/v1/model", "/healthz", "/readyz", "/metrics")),
]

HERE = {"Host": "localhost"}


def load(**options):
    headers = {"Authorization": f"Bearer {options.get('token', '')}"} | HERE
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(make_slot(), **options), headers=headers)


def ask(operation, examples, check):
    """Send what hypothesis makes up for an operation, fitting its description and not."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE))
    def fitting(case):
        check(case)

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
    def unfitting(case):
        check(case)

    fitting()
    if operation.method != "get":
        unfitting()


@pytest.fixture(scope="module")
def described():
    return load()


def test_every_route_is_described(described):
    assert {(o.ok().method.upper(), o.ok().path) for o in described.get_all_operations()} == set(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_answer_is_as_described(described, method, path):
    # Whether bytes are a picture, or numbers are z_dim many, no schema says.
    skipped = [schemathesis.checks.positive_data_acceptance]
    ask(described[path][method], 60, lambda case: case.call_and_validate(headers=HERE, excluded_checks=skipped))


def test_a_wrong_token_gets_401_and_nothing_else():
    guarded = load(token="secret")

    def refused(case):
        answer = case.call(headers={"Authorization": "Bearer wrong"})
        assert (answer.status_code, answer.headers["content-type"]) == (401, ["application/problem+json"])
        assert b"Bearer TOKEN" in answer.content

    for method, path in ROUTES:
        ask(guarded[path][method], 5, refused)
