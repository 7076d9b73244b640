"""How the endpoint describes itself: bodies for its OpenAPI, and /docs as one page."""

from html import escape
from typing import Any

from serving.http.decoding import JPEG, JSON, NPY, PNG, WEBP, ZIP
from serving.http.schemas import Decode, Encode, Interpolate, Options, Reconstruct, Sample

_PROBLEM = {
    "type": "object",
    "required": ["status", "title", "detail"],
    "properties": {"status": {"type": "integer"}, "title": {"type": "string"}, "detail": {"type": "string"}},
}
_MEANINGS = {
    401: "the token is missing or wrong",
    405: "the route takes another method",
    406: "Accept names none of the answers",
    408: "the body took too long to arrive",
    413: "the body, or what it asks for, is too large",
    415: "the body is of another content type",
    422: "what is asked for is not valid; detail says what it takes",
    503: "too much waits or it took too long; try again after Retry-After seconds",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_STRINGS = {"type": "array", "items": {"type": "string"}}
_Z = {"type": "array", "minItems": 1, "items": {"type": "array", "items": {"type": "number"}}}
_FILES = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "byte"}}
_JSON_HEADER = "-H 'content-type: application/json'"


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/problem+json": {"schema": _PROBLEM}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}


def _answer(description: str, content: dict[str, Any], errors: tuple[int, ...]) -> dict[int | str, dict[str, Any]]:
    headers = {"X-Zpoint-Model": {"description": "name/version", "schema": {"type": "string"}}}
    return {200: {"description": description, "content": content, "headers": headers}, **_errors(*errors)}


def _object(**properties: Any) -> dict[str, Any]:
    return {JSON: {"schema": {"type": "object", "required": list(properties), "properties": properties}}}


def _images(**beside: Any) -> dict[int | str, dict[str, Any]]:
    told = _object(model={"type": "string"}, images=_STRINGS, **beside)
    kinds = {PNG: _BINARY, JPEG: _BINARY, WEBP: _BINARY, ZIP: _BINARY, NPY: _BINARY, **told}
    what = "the images: one picture (a grid for many), a zip of PNGs, a uint8 .npy (n, size, size, channels) or JSON"
    return _answer(what, kinds, WORK_ERRORS)


def _body(options: type[Options], *payloads: dict[str, Any], files: bool = False, npy: bool = True) -> dict[str, Any]:
    schema = options.model_json_schema()
    parts = [schema | {"required": list(part), "properties": part | schema.get("properties", {})} for part in payloads]
    content: dict[str, Any] = {JSON: {"schema": parts[0] if len(parts) == 1 else {"oneOf": parts}}}
    if npy:
        content[NPY] = _BINARY
    if files:
        content |= {PNG: _BINARY, JPEG: _BINARY, WEBP: _BINARY}
    return {"requestBody": {"required": True, "content": content}}


def _query(options: type[Options]) -> dict[str, Any]:
    """The options as query parameters, for bodies other than JSON."""
    found = options.model_json_schema().get("properties", {})
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in found.items()
            if name != "parameters"
        ]
    }


def _route(responses: dict[int | str, dict[str, Any]], curl: str = "", **extra: Any) -> dict[str, Any]:
    return {"responses": responses, "openapi_extra": {"x-curl": curl, **extra}}


WORK_ERRORS = (401, 406, 408, 413, 415, 422, 503)
_FILE_CURL = "-H 'content-type: image/jpeg' --data-binary @face.jpg"
_SEED = {"type": "integer"}
DECODE = _route(_images(), f"""{_JSON_HEADER} -d '{{"z": [[Z]]}}' -o face.png""", **_body(Decode, {"z": _Z}))
SAMPLE = _route(
    _images(z=_Z, seed=_SEED),
    f"""{_JSON_HEADER} -d '{{"sampler": "gaussian", "n": 16, "seed": 1}}' -o faces.png""",
    **_body(Sample, {}, npy=False),
)
_Z_ANSWER = _object(model={"type": "string"}, z=_Z) | {NPY: _BINARY}
ENCODE = _route(
    _answer("the z-points: JSON or a float32 .npy (n, z_dim)", _Z_ANSWER, WORK_ERRORS),
    f"{_FILE_CURL} -o z.json",
    **_body(Encode, {"images": _FILES}, files=True),
)
RECONSTRUCT = _route(
    _images(seen=_STRINGS, z=_Z, seed=_SEED),
    f"{_FILE_CURL} -o again.png",
    **_body(Reconstruct, {"images": _FILES}, files=True),
    **_query(Reconstruct),
)
INTERPOLATE = _route(
    _images(z=_Z),
    f"""{_JSON_HEADER} -d '{{"z": [[Z], [Z]], "steps": 8}}' -o between.png""",
    **_body(Interpolate, {"z": _Z}, {"images": _FILES}),
    **_query(Interpolate),
)
_STATUS = _object(status={"type": "string"})
MODEL = _route(_answer("the facts", {JSON: {"schema": {"type": "object"}}}, (401,)))
HEALTH = _route(_answer("it answers", _STATUS, (401,)))
READY = _route(_answer("it decodes", _STATUS, (401, 503)))
METRICS = _route(_answer("the counters", {"text/plain": {"schema": {"type": "string"}}}, (401,)))

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>zpoint: routes</title>
<link rel="icon" href="static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="static/style.css">
</head>
<body>
<header><a class="mark" href="./"><span aria-hidden="true"></span>zpoint</a></header>
<main class="routes">
<h1>The routes</h1>
<p>This endpoint decodes z-points of {z_dim} components. For programs: <a href="openapi.json">openapi.json</a>.
Where a token is set, the routes below /v1 and /metrics want <code>-H 'Authorization: Bearer TOKEN'</code>.</p>
{routes}
</main>
</body>
</html>
"""


def docs_page(openapi: dict[str, Any], url: str, z_dim: int) -> str:
    """HTML that lists the routes of `openapi` with a curl line each, for an endpoint at `url`.

    It looks like the page, whose style it shares, and has no style or script of its own.
    """
    routes = [
        _show(method.upper(), path, about, url, z_dim)
        for path, methods in openapi["paths"].items()
        for method, about in methods.items()
    ]
    return _PAGE.format(z_dim=z_dim, routes="\n".join(routes))


def _show(method: str, path: str, about: dict[str, Any], url: str, z_dim: int) -> str:
    z = ", ".join(["0"] * z_dim) if z_dim <= 16 else f"... {z_dim} numbers ..."
    curl = f"curl {url}{path} {about.get('x-curl', '')}".strip().replace("[Z]", f"[{z}]")
    answers = "".join(
        f"<li>{status}: {escape(answer['description'])}</li>" for status, answer in about["responses"].items()
    )
    return (
        f"<h2>{method} {escape(path)}</h2><p>{escape(about.get('description', ''))}</p>"
        f"<pre>{escape(curl)}</pre><ul>{answers}</ul>"
    )
