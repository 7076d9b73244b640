"""The endpoint as a plain FastAPI app around a model: testable without Ray, mounted by serving.runtime.deployment.

| route | takes | gives |
|---|---|---|
| POST /v1/decode | z | images |
| POST /v1/sample | {"sampler": "normal", "n": 1, "seed": null, "parameters": {}} | images; JSON also z, seed |
| POST /v1/encode | pictures | z |
| POST /v1/reconstruct | pictures; task, seed, parameters | images; JSON also seen, z, seed |
| POST /v1/interpolate | two z or two pictures; steps, path | images; JSON also z |
| GET /v1/model | | JSON: facts, samplers, tasks, the latent space, limits |
| GET /metrics | | Prometheus |
| GET /healthz, /readyz | | {"status": "ok"}; readyz decodes a z-point first. These and all below want no token |
| GET /docs, /openapi.json | | these routes with a line of curl each, as HTML; JSON |
| GET /, /static/NAME | | the page for people |

z: JSON {"z": [[...], ...]} or .npy float (n, z_dim). Pictures: an image file (PNG, JPEG, WebP), .npy uint8
(n, H, W, 1 or 3) or JSON {"images": ["base64 of an image file", ...]}; they are cut square and scaled. Options stand
in the JSON beside z or images; with another body in the URL's query, where what is no option is a parameter:
`?task=denoise&sigma=0.4&seed=1`. Images, by Accept: image/png (default), image/jpeg, image/webp (a grid for many),
application/zip (a PNG each), application/x-npy (uint8 (n, size, size, channels)) or application/json
{"model": "name/version", "images": ["base64 PNG", ...], ...}. z, by Accept: application/json {"model", "z"} or .npy.

Errors are RFC 9457 problems (application/problem+json: status, title, detail); every answer names the model
that gave it in the header X-Zpoint-Model, as `name/version`, and what was drawn with in X-Zpoint-Seed.
"""

import asyncio
import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from aecore.config import TASKS
from serving.http import docs, page, schemas
from serving.http.decoding import JSON, NPY, PICTURES, Limits, TooLarge, load_json, parse_body
from serving.http.encoding import ARRAY_KINDS, IMAGE_KINDS, encode_images, encode_json, encode_npy, negotiate_media_type
from serving.http.middleware import GatewayMiddleware, problem
from serving.runtime.batching import Overloaded
from serving.runtime.metrics import EndpointMetrics
from serving.runtime.model_slot import ModelSlot, ServedModel

T = TypeVar("T")
O = TypeVar("O", bound=schemas.Options)  # noqa: E741
SMALL = 1 << 16  # bytes that are parsed or encoded on the event loop; more goes to a thread


def create_app(
    slot: ModelSlot, *, token: str = "", limits: Limits | None = None, metrics: EndpointMetrics | None = None
) -> FastAPI:
    """The app around what stands in `slot`. With a `token` all but /healthz, /readyz, the page and the docs want
    `Authorization: Bearer TOKEN`; without one it answers at a loopback address alone."""
    limits, metrics = limits or Limits(), metrics or EndpointMetrics()
    api = FastAPI(title="zpoint", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
    api.add_middleware(GatewayMiddleware, slot=slot, token=token, limits=limits, metrics=metrics)
    api.add_exception_handler(HTTPException, _http_problem)
    api.add_exception_handler(Overloaded, _overloaded)
    _add_points(api, limits)  # first: a request is compared with one route after the other
    _add_pictures(api, limits)
    _add_facts(api, slot, limits, metrics)
    page.add_page(api)
    return api


def _add_points(api: FastAPI, limits: Limits) -> None:
    """The routes that z-points alone suffice for."""

    @api.post("/v1/decode", response_class=Response, **docs.DECODE)
    async def decode(request: Request) -> Response:
        """Decode z-points to images."""
        model: ServedModel = request.state.model
        kind = _answer_kind(request, IMAGE_KINDS)
        z, _ = await _take(request, limits, ("z",), schemas.Decode)
        return await _images(await model.decode(z), kind, model)

    @api.post("/v1/sample", response_class=Response, **docs.SAMPLE)
    async def sample(request: Request) -> Response:
        """Draw z-points with a sampler and decode them."""
        model: ServedModel = request.state.model
        kind = _answer_kind(request, IMAGE_KINDS)
        _content_type(request, JSON)
        body = await _read(request, limits, SMALL, "a sampler, n, seed and parameters")
        with _refusals():
            wanted = schemas.check(schemas.Sample, load_json(body))
            limits.check_points("n", wanted.n, model.info.image)
            seed = _seed(wanted.seed)
            z = await asyncio.to_thread(schemas.draw, wanted, model.info.latents, seed)
        return await _images(await model.decode(z), kind, model, {"z": z, "seed": seed})


def _add_pictures(api: FastAPI, limits: Limits) -> None:
    """The routes that take pictures."""

    @api.post("/v1/encode", response_class=Response, **docs.ENCODE)
    async def encode(request: Request) -> Response:
        """Encode pictures to z-points: the means of the encoder."""
        model: ServedModel = request.state.model
        kind = _answer_kind(request, ARRAY_KINDS)
        pictures, _ = await _take(request, limits, ("images",), schemas.Encode)
        z = await model.encode(pictures)
        body = encode_npy(z) if kind == NPY else encode_json({"model": model.info.label, "z": z})
        return Response(body, media_type=kind)

    @api.post("/v1/reconstruct", response_class=Response, **docs.RECONSTRUCT)
    async def reconstruct(request: Request) -> Response:
        """Do a task to pictures, as in training, and give what the model makes of them."""
        model: ServedModel = request.state.model
        kind = _answer_kind(request, IMAGE_KINDS)
        pictures, wanted = await _take(request, limits, ("images",), schemas.Reconstruct)
        seed = _seed(wanted.seed)
        with _refusals():
            task = schemas.check_task(wanted)
            seen = await asyncio.to_thread(schemas.do_task, task, pictures, seed)
        z = await model.encode(seen)
        return await _images(await model.decode(z), kind, model, {"seen": seen, "z": z, "seed": seed})

    @api.post("/v1/interpolate", response_class=Response, **docs.INTERPOLATE)
    async def interpolate(request: Request) -> Response:
        """Go from one z-point, or picture, to another in equal steps, and decode each."""
        model: ServedModel = request.state.model
        kind = _answer_kind(request, IMAGE_KINDS)
        ends, wanted = await _take(request, limits, ("z", "images"), schemas.Interpolate)
        with _refusals():
            if len(ends) != 2:
                raise ValueError(f"{len(ends)} ends: interpolation goes between two")
            limits.check_points("steps", wanted.steps, model.info.image)
        if ends.dtype == np.uint8:
            ends = await model.encode(ends)
        with _refusals():
            z = await asyncio.to_thread(schemas.interpolate, ends, wanted, model.info.latents)
        return await _images(await model.decode(z), kind, model, {"z": z})


def _add_facts(api: FastAPI, slot: ModelSlot, limits: Limits, metrics: EndpointMetrics) -> None:
    @api.get("/v1/model", **docs.MODEL)
    async def about(request: Request) -> Response:
        """The served model: version, run, recipe, image, metrics, samplers, tasks, paths, latents, limits."""
        body = await asyncio.to_thread(lambda: encode_json(describe(request.state.model, slot, limits)))
        return Response(body, media_type=JSON)

    @api.get("/healthz", **docs.HEALTH)
    async def healthz() -> dict[str, str]:
        """Whether the endpoint answers; wants no token."""
        return {"status": "ok"}

    @api.get("/readyz", **docs.READY)
    async def readyz(request: Request) -> dict[str, str]:
        """Whether the model decodes a z-point now; wants no token."""
        model: ServedModel = request.state.model
        await model.decode(np.zeros((1, model.info.z_dim), np.float32))
        return {"status": "ok"}

    @api.get("/metrics", response_class=Response, **docs.METRICS)
    async def get_metrics() -> Response:
        """Counters of the replica that answers, for Prometheus."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    @api.get("/docs", include_in_schema=False)
    async def routes(request: Request) -> HTMLResponse:
        model: ServedModel = request.state.model
        text = docs.docs_page(api.openapi(), str(request.base_url).rstrip("/"), model.info.z_dim)
        return HTMLResponse(text, headers=page.HEADERS)


def describe(model: ServedModel, slot: ModelSlot, limits: Limits) -> dict[str, Any]:
    """What /v1/model tells, ready for JSON.

    `samplers` and `tasks`: name to parameters with their defaults. `paths`: names. `latents`: mean and sd by component,
    `axes` (sd and unit direction of each, largest first) and `attributes` (name to how z moves as the attribute grows
    by 1). `refused`: null, or the version that the alias names, which did not load, and the reason.
    """
    facts = model.info
    told = {key: getattr(facts, key) for key in ("name", "version", "alias", "run_id", "recipe", "z_dim")}
    return told | {
        "image": asdict(facts.image),
        "metrics": {name: value for name, value in facts.metrics.items() if math.isfinite(value)},
        "samplers": {name: schemas.sampler_parameters(name) for name in facts.samplers},
        "tasks": {name: schemas.task_parameters(name) for name in TASKS},
        "paths": facts.paths,
        "latents": facts.latent_space,
        "limits": {"points": limits.points_of(facts.image), "body": limits.body, "pixels": limits.upload_pixels},
        "refused": slot.refused,
    }


async def _take(request: Request, limits: Limits, wants: tuple[str, ...], kind: type[O]) -> tuple[np.ndarray, O]:
    """What the request brings of `wants` ("z", "images"), and its options."""
    facts = request.state.model.info
    content_type = _content_type(request, *(PICTURES if "images" in wants else ()), JSON, NPY)
    takes = f"{limits.points_of(facts.image)} {'z-points' if 'z' in wants else 'pictures'}"
    body = await _read(request, limits, limits.body, takes)

    def parse() -> tuple[np.ndarray, O]:
        found, beside = parse_body(body, content_type, wants, facts.image, facts.z_dim, limits)
        if content_type != JSON:
            return found, schemas.from_query(kind, dict(request.query_params))
        return found, schemas.check(kind, beside)

    with _refusals():
        # Even a short file may hold many pixels.
        return await (_where(len(body), parse) if wants == ("z",) else asyncio.to_thread(parse))


async def _images(images: np.ndarray, kind: str, model: ServedModel, told: Mapping[str, Any] | None = None) -> Response:
    told = {"model": model.info.label, **(told or {})}
    with _refusals():
        body = await _where(images.nbytes, encode_images, images, kind, told)
    headers = {"X-Zpoint-Seed": str(told["seed"])} if "seed" in told else None
    return Response(body, media_type=kind, headers=headers)


def _seed(wanted: int | None) -> int:
    return secrets.randbelow(1 << 32) if wanted is None else wanted


async def _where(size: int, work: Callable[..., T], *args: Any) -> T:
    return work(*args) if size <= SMALL else await asyncio.to_thread(work, *args)


def _answer_kind(request: Request, kinds: tuple[str, ...]) -> str:
    try:
        return negotiate_media_type(request.headers.get("accept", ""), kinds)
    except ValueError as error:
        raise HTTPException(406, str(error)) from None


def _content_type(request: Request, *known: str) -> str:
    given = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if given not in known:
        raise HTTPException(415, f"content-type is '{given[:100]}': it takes {', '.join(known[:-1])} or {known[-1]}")
    return given


async def _read(request: Request, limits: Limits, most: int, takes: str) -> bytes:
    refusal = HTTPException(413, f"the body is larger than {most} bytes: one request takes {takes}")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > most:
        raise refusal
    body = bytearray()
    try:
        async with asyncio.timeout(limits.read_seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > most:
                    raise refusal
                body += chunk
    except TimeoutError:
        raise HTTPException(408, f"the body took longer than {limits.read_seconds:g} s to arrive") from None
    return bytes(body)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except TooLarge as error:
        raise HTTPException(413, str(error)) from None
    except ValueError as error:
        raise HTTPException(422, str(error)) from None


async def _http_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, error.headers)


async def _overloaded(_: Request, error: Exception) -> Response:
    assert isinstance(error, Overloaded)
    return problem(503, str(error), {"Retry-After": str(math.ceil(error.retry_after_s))})
