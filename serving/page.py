"""How the endpoint describes itself: bodies for its OpenAPI, and /docs as one page that loads nothing."""

from html import escape
from typing import Any

from serving.formats import JSON, NPY, PNG

_PROBLEM = {
    "type": "object",
    "properties": {
        "status": {"type": "integer"}, "title": {"type": "string"}, "detail": {"type": "string"},
    },
}  # fmt: skip
_ERRORS = {
    401: "the token is missing or wrong",
    406: "Accept names none of the answers",
    413: "the body or the number of z-points is too large",
    415: "the body is of another content type",
    422: "what is asked for is not valid; detail says what it takes",
    503: "too many requests wait; try again",
}
_JSON_ANSWER = {
    "type": "object",
    "properties": {
        "model": {"type": "string", "description": "name/version"},
        "images": {"type": "array", "items": {"type": "string", "description": "a PNG in base64"}},
    },
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the images: a PNG (a grid for many), a uint8 .npy (n, size, size, channels) or JSON",
        "content": {PNG: {}, NPY: {}, JSON: {"schema": _JSON_ANSWER}},
    },
    **{
        status: {"description": meaning, "content": {"application/problem+json": {"schema": _PROBLEM}}}
        for status, meaning in _ERRORS.items()
    },
}

_JSON_HEADER = "-H 'content-type: application/json'"
_Z = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
_BINARY = {"type": "string", "format": "binary"}
DECODE_DOCS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": {"type": "object", "required": ["z"], "properties": {"z": _Z}}},
            NPY: {"schema": _BINARY},
        },
    },
    "x-curl": _JSON_HEADER + """ -d '{"z": [[Z]]}' -o face.png""",
}
SAMPLE_DOCS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "sampler": {"type": "string", "default": "normal"},
                        "n": {"type": "integer", "minimum": 1, "default": 1},
                        "seed": {"type": "integer", "minimum": 0},
                        "parameters": {"type": "object", "additionalProperties": {"type": "number"}},
                    },
                }
            }
        },
    },
    "x-curl": _JSON_HEADER + """ -d '{"sampler": "gaussian", "n": 16, "seed": 1}' -o faces.png""",
}

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>zpoint</title>
<meta name="viewport" content="width=device-width"><style>
body {{ font: 16px/1.5 sans-serif; max-width: 50em; margin: auto; padding: 1em; color-scheme: light dark }}
pre {{ overflow-x: auto; padding: .7em; border: 1px solid gray; border-radius: 4px; }}
</style><h1>zpoint {version}</h1><p>Decodes z-points of {z_dim} components. Machine-readable:
<a href="openapi.json">openapi.json</a>. With a token, add <code>-H 'Authorization: Bearer TOKEN'</code>.</p>
{routes}</html>"""


def docs_page(openapi: dict[str, Any], url: str, z_dim: int) -> str:
    """HTML that lists the routes of `openapi` with a curl line each, for an endpoint at `url`."""
    routes = [
        _route(method.upper(), path, about, url, z_dim)
        for path, methods in openapi["paths"].items()
        for method, about in methods.items()
    ]
    return _PAGE.format(version=escape(openapi["info"]["version"]), z_dim=z_dim, routes="\n".join(routes))


def _route(method: str, path: str, about: dict[str, Any], url: str, z_dim: int) -> str:
    z = ", ".join(["0"] * z_dim) if z_dim <= 16 else f"... {z_dim} numbers ..."
    curl = f"curl {url}{path} {about.get('x-curl', '')}".strip().replace("[[Z]]", f"[[{z}]]")
    answers = "".join(
        f"<li>{status}: {escape(answer['description'])}</li>" for status, answer in about["responses"].items()
    )
    return (
        f"<h2>{method} {escape(path)}</h2><p>{escape(about.get('description', ''))}</p>"
        f"<pre>{escape(curl)}</pre><ul>{answers}</ul>"
    )
