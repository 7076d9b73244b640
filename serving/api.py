"""The endpoint as a plain FastAPI app around a decoder: testable without Ray, mounted by serving.deployment.

Errors are RFC 9457 problems (application/problem+json: status, title, detail); every answer names the model
that gave it in the header X-Zpoint-Model, as `name/version`.
"""

import asyncio
import hmac
import inspect
import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aecore.model import ImageShape
from aecore.samplers import SAMPLERS, Latents, sample
from serving.formats import JSON, MAX_POINTS, NPY, TooLarge, choose_answer, encode_images, load_json, parse_z
from serving.page import ANSWERS, DECODE_DOCS, SAMPLE_DOCS, docs_page

T = TypeVar("T")
SMALL = 1 << 16  # bytes that are parsed or encoded on the event loop; more goes to a thread


class Decoder(Protocol):
    async def decode(self, z: np.ndarray) -> np.ndarray:
        """Images uint8 (n, size, size, channels) of z-points float32 (n, z_dim)."""
        ...


@dataclass(frozen=True)
class Facts:
    """What the endpoint tells of its model, and the statistics `latents` that its samplers draw from."""

    name: str
    version: str
    alias: str
    run_id: str
    recipe: dict[str, Any]
    image: ImageShape
    z_dim: int
    metrics: dict[str, float]
    latents: Latents


@dataclass(frozen=True)
class Limits:
    """What one request may hold: z-points, bytes of body, bytes of decoded pixels."""

    points: int = MAX_POINTS
    body: int = 32 << 20
    pixels: int = 256 << 20

    def points_of(self, image: ImageShape) -> int:
        """z-points whose images stay within `pixels`, at most `points`."""
        return min(self.points, max(1, self.pixels // (image.size**2 * image.channels)))


class Sample(BaseModel):
    """The body of /v1/sample. Without a seed one is drawn; the answer names it in X-Zpoint-Seed."""

    model_config = ConfigDict(extra="forbid")

    sampler: str = Field(default="normal", description=f"one of {', '.join(SAMPLERS)}")
    n: int = Field(default=1, strict=True, ge=1)
    seed: int | None = Field(default=None, strict=True, ge=0, lt=2**63)
    parameters: dict[str, float] = Field(default={}, description="the sampler's own, see /v1/model")


def make_api(decoder: Decoder, facts: Facts, *, token: str = "", limits: Limits | None = None) -> FastAPI:
    """The app: POST /v1/decode and /v1/sample, GET /v1/model, /healthz, /docs and /openapi.json.

    With a `token` all but /healthz want `Authorization: Bearer TOKEN`. Nothing is loaded from elsewhere.
    """
    limits = limits or Limits()
    max_points = limits.points_of(facts.image)
    model = f"{facts.name}/{facts.version}"
    api = FastAPI(title="zpoint", version=facts.version, docs_url=None, redoc_url=None)
    api.add_middleware(Gate, model=model, token=token)
    api.add_exception_handler(HTTPException, _http_problem)
    api.add_exception_handler(Exception, lambda _, __: problem(500, "see the log", {"X-Zpoint-Model": model}))

    async def answer(z: np.ndarray, kind: str, headers: Mapping[str, str] | None = None) -> Response:
        images = await decoder.decode(z)
        body = await _where(images.nbytes, encode_images, images, kind, model)
        return Response(body, media_type=kind, headers=headers)

    @api.post("/v1/decode", response_class=Response, responses=ANSWERS, openapi_extra=DECODE_DOCS)
    async def decode(request: Request) -> Response:
        """Decode z-points: `{"z": [[...], ...]}` or .npy (n, z_dim) to PNG, .npy or JSON, by Accept."""
        kind = _answer_kind(request)
        content_type = _content_type(request, JSON, NPY)
        body = await _read(request, limits.body, f"{max_points} z-points")
        with _refusals():
            z = await _where(len(body), parse_z, body, content_type, facts.z_dim, max_points)
        return await answer(z, kind)

    @api.post("/v1/sample", response_class=Response, responses=ANSWERS, openapi_extra=SAMPLE_DOCS)
    async def sample_and_decode(request: Request) -> Response:
        """Draw z-points with a sampler and decode them: PNG, .npy or JSON by Accept."""
        kind = _answer_kind(request)
        _content_type(request, JSON)
        body = await _read(request, SMALL, "a sampler, n, seed and parameters")
        with _refusals():
            wanted = check_sample(load_json(body), max_points)
            seed = secrets.randbelow(1 << 32) if wanted.seed is None else wanted.seed
            z = await asyncio.to_thread(_draw, wanted, facts.latents, seed)
        return await answer(z, kind, {"X-Zpoint-Seed": str(seed)})

    @api.get("/v1/model")
    async def about() -> dict[str, Any]:
        """The served model: version, run, recipe, image, metrics, samplers with their parameters, limits."""
        told = {key: getattr(facts, key) for key in ("name", "version", "alias", "run_id", "recipe", "z_dim")}
        return told | {
            "image": asdict(facts.image),
            "metrics": facts.metrics,
            "samplers": {name: sampler_parameters(name) for name in SAMPLERS},
            "limits": {"points": max_points, "body": limits.body},
        }

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the endpoint answers; wants no token."""
        return {"status": "ok"}

    @api.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(docs_page(api.openapi(), str(request.base_url).rstrip("/"), facts.z_dim))

    return api


def sampler_parameters(name: str) -> dict[str, Any]:
    """The parameters of a sampler and their defaults."""
    given = inspect.signature(SAMPLERS[name]).parameters.values()
    return {p.name: p.default for p in given if p.default is not p.empty}


def check_sample(value: object, max_points: int) -> Sample:
    """The body of /v1/sample. Raises ValueError in one line, TooLarge for more than `max_points`."""
    try:
        wanted = Sample.model_validate(value)
    except ValidationError as error:
        parts = (f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors())
        raise ValueError("; ".join(parts)[:500]) from None
    if wanted.n > max_points:
        raise TooLarge(f"n is {wanted.n}: one request takes at most {max_points} z-points")
    if wanted.sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler '{wanted.sampler[:50]}': it takes one of {', '.join(SAMPLERS)}")
    known = sampler_parameters(wanted.sampler)
    if unknown := set(wanted.parameters) - set(known):
        raise ValueError(f"{wanted.sampler} takes {', '.join(known)}, not {', '.join(sorted(unknown))[:100]}")
    if not all(map(math.isfinite, wanted.parameters.values())):
        raise ValueError("parameters must be finite numbers")
    return wanted


def _draw(wanted: Sample, latents: Latents, seed: int) -> np.ndarray:
    z = sample(wanted.sampler, wanted.n, latents, seed, **wanted.parameters).numpy()
    if not np.isfinite(z).all():
        raise ValueError("these parameters give z-points that are not finite")
    return np.ascontiguousarray(z, np.float32)


class Gate:
    """ASGI middleware: the bearer token, and the model's name on every answer."""

    def __init__(self, app: ASGIApp, model: str, token: str):
        self._app, self._model, self._token = app, model.encode(), token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-zpoint-model", self._model)]
            await send(message)

        app = self._app
        if self._token and scope["path"] != "/healthz" and not self._knows_token(scope):
            app = problem(401, "this endpoint wants 'Authorization: Bearer TOKEN'", {"WWW-Authenticate": "Bearer"})
        await app(scope, receive, named)

    def _knows_token(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, token = given.partition(b" ")
        return hmac.compare_digest(token.strip(), self._token) and kind.lower() == b"bearer"


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An RFC 9457 problem."""
    body = {"status": status, "title": HTTPStatus(status).phrase, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


async def _http_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, error.headers)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except TooLarge as error:
        raise HTTPException(413, str(error)) from None
    except ValueError as error:
        raise HTTPException(422, str(error)) from None


async def _where(size: int, work: Callable[..., T], *args: Any) -> T:
    return work(*args) if size <= SMALL else await asyncio.to_thread(work, *args)


def _answer_kind(request: Request) -> str:
    try:
        return choose_answer(request.headers.get("accept", ""))
    except ValueError as error:
        raise HTTPException(406, str(error)) from None


def _content_type(request: Request, *known: str) -> str:
    given = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if given not in known:
        raise HTTPException(415, f"content-type is '{given[:100]}': it takes {' or '.join(known)}")
    return given


async def _read(request: Request, limit: int, takes: str) -> bytes:
    refusal = HTTPException(413, f"the body is larger than {limit} bytes: one request takes {takes}")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > limit:
        raise refusal
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise refusal
        body += chunk
    return bytes(body)
