"""The page's files over HTTP, without a browser."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.serving.app_server import make_slot, serve_app


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_app(make_slot(), token="a token") as url:
        yield url


def test_page_needs_no_token_and_forbids_inline_code(url):
    page = httpx2.get(f"{url}/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(directive.split(" ", 1) for directive in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    revalidated = httpx2.get(f"{url}/", headers={"If-None-Match": page.headers["etag"]})
    assert (revalidated.status_code, revalidated.content) == (304, b"")
    for name, media_type in {"app.js": "text/javascript", "style.css": "text/css", "icon.svg": "image/svg+xml"}.items():
        response = httpx2.get(f"{url}/static/{name}")
        assert response.headers["content-type"].startswith(media_type)
        assert response.headers["content-security-policy"] == page.headers["content-security-policy"]
    for path in ("static/", "static/index.html", "static/%2e%2e/page.py", "static//etc/passwd", "static/no.js"):
        assert httpx2.get(f"{url}/{path}").status_code == 404
    assert httpx2.get(f"{url}/v1/model").status_code == 401
    assert httpx2.get(f"{url}/", headers={"Authorization": "Bearer wrong"}).status_code == 401
