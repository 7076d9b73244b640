"""The page's files as HTTP gives them; the page in a browser is test_page.py."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.serving.app_server import make_slot, serve_app


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_app(make_slot(), "a token") as url:
        yield url


def test_the_page_wants_no_token_and_loads_nothing_else(url):
    """Its files are public, all else is not; the browser may run no inline script or style."""
    page = httpx2.get(f"{url}/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    again = httpx2.get(f"{url}/", headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for name, kind in {"app.js": "text/javascript", "style.css": "text/css", "icon.svg": "image/svg+xml"}.items():
        answer = httpx2.get(f"{url}/static/{name}")
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["content-security-policy"] == page.headers["content-security-policy"]
    for path in ("static/", "static/index.html", "static/%2e%2e/page.py", "static//etc/passwd", "static/no.js"):
        assert httpx2.get(f"{url}/{path}").status_code == 404
    assert httpx2.get(f"{url}/v1/model").status_code == 401
    assert httpx2.get(f"{url}/", headers={"Authorization": "Bearer wrong"}).status_code == 401
