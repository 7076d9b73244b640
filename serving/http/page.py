"""The web page at /, and Swagger UI at /docs: files of pages/, static/ and the package fastapi-offline.

A Content-Security-Policy lets them load nothing from elsewhere and run no inline script or style.
"""

from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # browsers revalidate each file by its ETag
}
PAGES, STATIC = Path(__file__).parent / "pages", Path(__file__).parent / "static"


class SecureStaticFiles(StaticFiles):
    """StaticFiles with SECURITY_HEADERS."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(SECURITY_HEADERS)
        return response


def add_page(app: FastAPI) -> None:
    """Add /, /docs and /static to `app`. They hold no secret and need no token."""
    pages = SecureStaticFiles(directory=PAGES)

    async def index(request: Request) -> Response:
        return await pages.get_response("index.html", request.scope)

    async def docs(request: Request) -> Response:
        return await pages.get_response("docs.html", request.scope)

    app.add_api_route("/", index, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_api_route("/docs", docs, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount("/static/swagger", SecureStaticFiles(packages=[("fastapi_offline", "static")]))
    app.mount("/static", SecureStaticFiles(directory=STATIC))
