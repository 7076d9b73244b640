"""The page at `/`: the files in static/, served as they lie there, under a Content-Security-Policy that lets them load
nothing else and run no inline script or style."""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for again each time, and then found unchanged by its ETag
}
FOLDER = Path(__file__).parent / "static"


def add_page(api: FastAPI) -> None:
    """Let `api` serve `/` and `/static/NAME`. They hold no secret, so they want no token."""
    for file in FOLDER.iterdir():
        path = "/" if file.name == "index.html" else f"/static/{file.name}"
        api.add_api_route(path, _answer(file), methods=["GET", "HEAD"], include_in_schema=False)


def _answer(file: Path) -> Callable[[Request], Awaitable[Response]]:
    data, kind = file.read_bytes(), TYPES[file.suffix]
    etag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'
    headers = HEADERS | {"ETag": etag}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=kind, headers=headers)

    return answer
