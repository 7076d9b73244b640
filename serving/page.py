"""The page at `/`: the files in static/, served as they lie there, under a Content-Security-Policy that lets them load
nothing else and run no inline script or style."""

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

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


def add_page(api: FastAPI) -> frozenset[str]:
    """Let `api` serve `/` and the files beside it; gives their paths, which hold no secret and want no token."""
    folder = files("serving") / "static"
    found = {file.name: file.read_bytes() for file in folder.iterdir() if file.name.endswith(tuple(TYPES))}
    index = found.pop("index.html")
    paths = {"/": ("index.html", index)} | {f"/static/{name}": (name, data) for name, data in found.items()}
    for path, (name, data) in paths.items():
        api.add_api_route(path, _file(name, data), methods=["GET", "HEAD"], include_in_schema=False)
    return frozenset(paths)


def _file(name: str, data: bytes) -> Callable[[Request], Awaitable[Response]]:
    etag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'
    headers = HEADERS | {"ETag": etag}
    kind = TYPES[name[name.rindex(".") :]]

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=kind, headers=headers)

    return answer
