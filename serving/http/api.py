"""The endpoint as a plain FastAPI app around its models: testable without Ray, served by serving.runtime.replica.

| route | request | response |
|---|---|---|
| POST /v1/decode | z | images |
| POST /v1/sample | {"sampler": null, "n": 1, "seed": null, "parameters": {}} | images; JSON also z, seed, faces |
| POST /v1/encode | images | z |
| POST /v1/reconstruct | images; task, seed, parameters | images; JSON also corrupted, z, seed |
| POST /v1/interpolate | two z or two images; steps, path | images; JSON also z |
| POST /v1/neighbours | z; k | JSON: the nearest stored points, thumbnails |
| GET /v1/points | attribute | JSON: the 2-D map of the stored points |
| GET /v1/points/thumbnails | | WebP: their thumbnail sheet |
| POST /v1/points/at | {"x": 0, "y": 0, "k": 8} | image; JSON also z, the nearest stored points |
| POST /v1/frames | images | JSON: the square around each one's face, framed as in the stored points |
| POST /v1/convert | one image | the image upright, at most 1,024 pixels a side |
| GET /v1/model | | JSON: version, recipe, metrics, samplers, tasks, paths, latent space, limits |
| GET /v1/models | | JSON: of each alias the version, run, kl_factor, z_dim, image and metrics |
| GET /metrics | | Prometheus |
| GET /healthz, /readyz | | {"status": "ok"}; readyz decodes a z-point first. No token needed, from here on |
| GET /docs, /openapi.json | | Swagger UI; OpenAPI |
| GET /, /static/NAME | | the web page |

The routes from decode to model answer by the first alias; /v1/models/ALIAS/decode and so on by each of the aliases.
convert computes nothing with a model; it too refuses a request that names another version in X-Zpoint-Model.

z: JSON {"z": [[...], ...]} or .npy float (n, z_dim). Images in requests: an image file (PNG, JPEG, WebP; HEIC with the
extra `heic`), .npy uint8 (n, H, W, 1 or 3) or JSON {"images": ["base64 of an image file", ...]}; they are cropped to
squares and resized, except for frames and convert. A body
without a content type is recognised by its content. Options stand in the JSON beside z or images, or in the URL's
query, whose other keys are parameters of the task or sampler: `?task=denoise&sigma=0.4&seed=1`. An option that is
unknown or stands in both is refused. Images in responses, by Accept: image/png (default), image/jpeg, image/webp (a
grid of several), application/zip (PNGs), application/x-npy (uint8 (n, size, size, channels)) or application/json
{"model": "name/version", "images": ["base64 PNG", ...], ...}. z, by Accept: application/json {"model", "z"} or .npy.
JSON is compressed if Accept-Encoding has gzip.

Errors are RFC 9457 problems (application/problem+json: status, title, detail). Every response has the header
X-Zpoint-Model, `name/version`; if random numbers were used also X-Zpoint-Seed, if faces were counted X-Zpoint-Faces.
"""

import asyncio
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Path, Request, Security
from fastapi.responses import PlainTextResponse, Response
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES
from starlette.staticfiles import NotModifiedResponse, StaticFiles

from aecore.config import TASKS
from aecore.latent.points import StoredPoints
from serving.http import operations, schemas
from serving.http.access_log import AccessLog
from serving.http.decoding import (
    ANY_IMAGE,
    IMAGE_FILES,
    JSON,
    NPY,
    PNG,
    WEBP,
    Limits,
    ReduceFn,
    TooLarge,
    canonical_media_type,
    detect_media_type,
    load_json,
    parse_body,
)
from serving.http.encoding import (
    ARRAY_RESPONSES,
    IMAGE_RESPONSES,
    encode_images,
    encode_json,
    encode_npy,
    negotiate_media_type,
)
from serving.http.middleware import CompressionMiddleware, GatewayMiddleware, problem_response
from serving.http.page import add_page
from serving.http.schemas import MAX_NEIGHBOURS
from serving.runtime.admission import AdmissionControl, Overloaded
from serving.runtime.face_finder import MAX_IMAGES, FaceFinder
from serving.runtime.metrics import EndpointMetrics
from serving.runtime.model_slot import ModelInfo, ModelSlot, ServedModel

T = TypeVar("T")
O = TypeVar("O", bound=schemas.Options)  # noqa: E741
MAX_CONVERTED_SIDE = 1024  # pixels; the page's cropper keeps no more
GZIP_LEVEL, GZIP_MIN_BYTES = 1, 1024  # of JSON and text; images are compressed already
EXPOSED_HEADERS = ["Retry-After", "X-Zpoint-Faces", "X-Zpoint-Model", "X-Zpoint-Seed"]  # to pages of other origins
MAX_CONCURRENT_DECODES = 2  # bodies whose images are decoded at once: up to 200 MB of pixels each
MAX_INLINE_BYTES = 1 << 16  # bodies up to this size are parsed and encoded on the event loop, larger ones in a thread

model_routes, endpoint_routes, health_routes = APIRouter(), APIRouter(tags=["HTTP API"]), APIRouter(tags=["Health"])


def create_app(
    *slots: ModelSlot, token: str = "", limits: Limits | None = None, metrics: EndpointMetrics | None = None,
    cors_origins: Sequence[str] = (), access_log: AccessLog | None = None,
) -> FastAPI:  # fmt: skip
    """Return the app that serves the models in `slots`, one for each alias; routes without an alias take the first.

    With a `token` every path except /healthz, /readyz, the page and the docs needs `Authorization: Bearer TOKEN`;
    without one the app responds only to requests for a loopback host, and to none of web pages of other sites, except
    `cors_origins`, which may use the API.
    """
    app = FastAPI(title="zpoint", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
    slot_by_alias = {slot.current.info.alias: slot for slot in slots}
    app.state.slots, app.state.limits, app.state.metrics = slots, limits or Limits(), metrics or EndpointMetrics()
    app.add_middleware(
        CompressionMiddleware,
        minimum_size=GZIP_MIN_BYTES,
        compresslevel=GZIP_LEVEL,
        exclude_content_types=(*DEFAULT_EXCLUDED_CONTENT_TYPES, NPY),
    )
    app.add_middleware(
        GatewayMiddleware, slots=slot_by_alias, token=token, limits=app.state.limits, metrics=app.state.metrics,
        access_log=access_log, cors_origins=cors_origins,
    )  # fmt: skip
    if cors_origins:  # outside of the gateway, so that a page can read its refusals
        app.add_middleware(
            CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Zpoint-Model"], expose_headers=EXPOSED_HEADERS,
        )  # fmt: skip
    app.state.faces = FaceFinder(app.state.metrics)
    app.state.neighbours = AdmissionControl(
        "neighbours", executor=ThreadPoolExecutor(1, "find-neighbours"), batch_size=MAX_NEIGHBOURS,
        metrics=app.state.metrics,
    )  # fmt: skip
    app.state.image_decoders = ThreadPoolExecutor(MAX_CONCURRENT_DECODES, "decode-images")
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(Overloaded, _overloaded_problem)

    # The middleware resolves the alias and checks token and host; these tell the OpenAPI of them.
    async def alias_parameter(alias: Annotated[str, Path(json_schema_extra={"enum": [*slot_by_alias]})]) -> None:
        pass

    security = [Security(HTTPBearer(auto_error=False))] if token else []
    refusals = schemas.gateway_responses(bool(token))
    app.include_router(model_routes, prefix="/v1", tags=["HTTP API"], dependencies=security, responses=refusals)
    app.include_router(endpoint_routes, dependencies=security, responses=refusals)
    app.include_router(
        model_routes, prefix="/v1/models/{alias}", tags=["HTTP API by alias"],
        dependencies=[*security, Depends(alias_parameter)], responses=refusals | schemas.error_responses(404),
    )  # fmt: skip
    app.include_router(health_routes, responses=refusals)
    add_page(app)
    return app


@model_routes.post(
    "/decode",
    response_class=Response,
    responses=schemas.image_responses(schemas.ImagesResponse),
    openapi_extra=schemas.request_inputs(schemas.DecodeRequest, NPY),
)
async def decode(request: Request) -> Response:
    """Decode z-points to images."""
    model: ServedModel = request.state.model
    media_type = _accepted_media_type(request, IMAGE_RESPONSES)
    z, _ = await _read_input(request, ("z",), schemas.Options)
    return await _images_response(model, await model.decode(z), media_type)


@model_routes.post(
    "/sample",
    response_class=Response,
    responses=schemas.image_responses(schemas.SampleResponse, headers=("X-Zpoint-Seed", "X-Zpoint-Faces")),
    openapi_extra=schemas.request_inputs(schemas.SampleRequest, options=schemas.SampleRequest, required=False),
)
async def sample(request: Request) -> Response:
    """Draw z-points with a sampler and decode them."""
    model: ServedModel = request.state.model
    media_type = _accepted_media_type(request, IMAGE_RESPONSES)
    _check_content_type(request, JSON)
    body = await _read_body(request, MAX_INLINE_BYTES, "a sampler, n, seed and parameters")
    with _client_errors():
        options = _merge_options(request, schemas.SampleRequest, load_json(body or b"{}"))
        request.app.state.limits.check_option("n", options.n, model.info.image)
        seed = _choose_seed(options.seed)
        if options.count_faces and options.n > MAX_IMAGES:
            raise TooLarge(f"n is {options.n}: faces are counted in at most {MAX_IMAGES} images")
        z = await asyncio.to_thread(operations.sample_z, options, model.info.sampler, model.info.latents, seed)
    images, fields = await model.decode(z), {"z": z, "seed": seed}
    if options.count_faces:
        sampler = options.sampler or model.info.sampler
        # By the run too: its number names another version if the registered model was deleted.
        version = (model.info.run_id, model.info.label)
        key = (*version, sampler, *sorted(options.parameters.items()), seed, options.n)
        faces = await request.app.state.faces.count(key, images, model.info.points)
        if faces is not None:
            fields["faces"] = faces
    return await _images_response(model, images, media_type, fields)


@model_routes.post(
    "/encode",
    response_class=Response,
    responses=schemas.responses(
        "z-points: JSON or float32 .npy (n, z_dim)",
        *schemas.POST_ERRORS,
        model=schemas.EncodeResponse,
        media_types=(NPY,),
    ),
    openapi_extra=schemas.request_inputs(schemas.EncodeRequest, NPY, *IMAGE_FILES),
)
async def encode(request: Request) -> Response:
    """Encode images to z-points: the means of q(z|x)."""
    model: ServedModel = request.state.model
    media_type = _accepted_media_type(request, ARRAY_RESPONSES)
    images, _ = await _read_input(request, ("images",), schemas.Options)
    z = await model.encode(images)
    body = encode_npy(z) if media_type == NPY else encode_json({"model": model.info.label, "z": z})
    return Response(body, media_type=media_type)


@model_routes.post(
    "/reconstruct",
    response_class=Response,
    responses=schemas.image_responses(schemas.ReconstructResponse, headers=("X-Zpoint-Seed",)),
    openapi_extra=schemas.request_inputs(
        schemas.ReconstructRequest, NPY, *IMAGE_FILES, options=schemas.ReconstructOptions
    ),
)
async def reconstruct(request: Request) -> Response:
    """Corrupt images as a task does in training, encode and decode them."""
    model: ServedModel = request.state.model
    media_type = _accepted_media_type(request, IMAGE_RESPONSES)
    images, options = await _read_input(request, ("images",), schemas.ReconstructOptions)
    seed = _choose_seed(options.seed)
    with _client_errors():
        task = operations.resolve_task(options)
        corrupted = await asyncio.to_thread(operations.corrupt_images, task, images, seed)
    z = await model.encode(corrupted)
    fields = {"corrupted": corrupted, "z": z, "seed": seed}
    return await _images_response(model, await model.decode(z), media_type, fields)


@model_routes.post(
    "/interpolate",
    response_class=Response,
    responses=schemas.image_responses(schemas.InterpolateResponse),
    openapi_extra=schemas.request_inputs(
        schemas.InterpolateZRequest | schemas.InterpolateImagesRequest, NPY, options=schemas.InterpolateOptions
    ),
)
async def interpolate(request: Request) -> Response:
    """Decode evenly spaced z-points from one z-point or image to another."""
    model: ServedModel = request.state.model
    media_type = _accepted_media_type(request, IMAGE_RESPONSES)
    ends, options = await _read_input(request, ("z", "images"), schemas.InterpolateOptions)
    with _client_errors():
        if len(ends) != 2:
            raise ValueError(f"{len(ends)} z-points or images: interpolation needs two")
        request.app.state.limits.check_option("steps", options.steps, model.info.image)
    if ends.dtype == np.uint8:
        ends = await model.encode(ends)
    with _client_errors():
        z = await asyncio.to_thread(operations.interpolate_z, ends, options, model.info.latents, model.info.points)
    return await _images_response(model, await model.decode(z), media_type, {"z": z})


@model_routes.post(
    "/neighbours",
    responses=schemas.responses("the nearest stored points", 404, *schemas.JSON_POST_ERRORS),
    openapi_extra=schemas.request_inputs(schemas.NeighboursRequest, NPY, options=schemas.NeighboursOptions),
)
async def neighbours(request: Request) -> schemas.NeighboursResponse:
    """Find the real images whose z-points are nearest."""
    points = _stored_points(request)
    z, options = await _read_input(request, ("z",), schemas.NeighboursOptions)
    info = request.state.model.info
    with _client_errors():
        request.app.state.limits.check_option("k times the number of z-points", options.k * len(z), info.image)
    admission: AdmissionControl = request.app.state.neighbours
    nearest, num_rows = [], MAX_NEIGHBOURS // options.k
    with admission.admit(options.k * len(z)):
        # One block after the other, so that other requests get their turn between those of a large one.
        for block in np.split(z, range(num_rows, len(z), num_rows)):
            nearest += await admission.run(options.k * len(block), operations.find_neighbours, block, options, points)
    return schemas.NeighboursResponse(model=info.label, neighbours=nearest)


@model_routes.get("/points", responses=schemas.responses("the map of the stored points", 404, 409, 422))
def get_points(request: Request) -> schemas.PointsResponse:  # not async: FastAPI runs it in a thread
    """Return the 2-D map of real images: positions in [-1, 1], splits, attributes, the grid of the thumbnail sheet."""
    points = _stored_points(request)
    with _client_errors():
        options = _merge_options(request, schemas.PointsOptions, {})
        return operations.describe_points(points, options.attribute, request.state.model.info.label)


@model_routes.get(
    "/points/thumbnails",
    response_class=Response,
    responses=schemas.responses("the thumbnail sheet", 304, 404, 409, 422, media_types=(WEBP,), headers=("ETag",)),
)
async def get_thumbnails(request: Request) -> Response:
    """Return the thumbnail sheet of the stored points, in the order of /v1/points; unchanged by ETag: 304."""
    points = _stored_points(request)
    with _client_errors():
        _merge_options(request, schemas.Options, {})
    # Of the content: another registry may have the same version.
    headers = {"ETag": f'"{points.sprites_sha256}"', "Cache-Control": "no-cache"}
    response = Response(points.sprites, media_type=WEBP, headers=headers)
    is_unchanged = StaticFiles().is_not_modified(response.headers, request.headers)
    return NotModifiedResponse(response.headers) if is_unchanged else response


@model_routes.post(
    "/points/at",
    response_class=Response,
    responses=schemas.image_responses(schemas.PointsAtResponse, 404),
    openapi_extra=schemas.request_inputs(schemas.PointsAtRequest, options=schemas.PointsAtRequest, required=False),
)
async def points_at(request: Request) -> Response:
    """Decode the z-point of a position on the map; JSON has the stored points nearest to it there, too."""
    points, model = _stored_points(request), request.state.model
    media_type = _accepted_media_type(request, IMAGE_RESPONSES)
    _check_content_type(request, JSON)
    body = await _read_body(request, MAX_INLINE_BYTES, "x, y and k")
    with _client_errors():
        options = _merge_options(request, schemas.PointsAtRequest, load_json(body or b"{}"))
    z, nearest = await asyncio.to_thread(operations.find_on_map, options, points)
    fields = {"z": z, "nearest": [image.model_dump() for image in nearest]}
    return await _images_response(model, await model.decode(z), media_type, fields)


@model_routes.post(
    "/frames",
    responses=schemas.responses("the squares around the faces", 404, *schemas.JSON_POST_ERRORS),
    openapi_extra=schemas.request_inputs(schemas.EncodeRequest, NPY, *IMAGE_FILES),
)
async def find_frames(request: Request) -> schemas.FramesResponse:
    """Find the square of each image that frames its largest face as those of the stored real images are framed."""
    points, label = _stored_points(request), request.state.model.info.label
    faces: FaceFinder = request.app.state.faces
    photos, _ = await _read_input(request, ("images",), schemas.Options, reduce=faces.shrink_photo)
    with _client_errors():
        if len(photos) > MAX_IMAGES:
            raise TooLarge(f"{len(photos)} images: faces are found in at most {MAX_IMAGES}")
    frames = await faces.frame(points, photos)
    if frames is None:
        return schemas.FramesResponse(model=label, frames=None)
    squares = [frame and schemas.Square(left=frame[0], top=frame[1], size=frame[2]) for frame in frames]
    return schemas.FramesResponse(model=label, frames=squares)


@model_routes.get("/model", responses=schemas.responses("the served model", 409, 422))
def get_model(request: Request) -> schemas.ModelResponse:  # not async: FastAPI runs it in a thread
    """Return the served model: version, run, recipe, image, metrics, samplers, tasks, paths, latents, limits."""
    with _client_errors():
        _merge_options(request, schemas.Options, {})
    info, limits = request.state.model.info, request.app.state.limits
    return schemas.ModelResponse(
        **_version_fields(info, request.state.slot.refused),
        recipe=info.recipe,
        samplers={name: operations.sampler_parameters(name) for name in info.samplers},
        tasks={name: operations.task_parameters(name) for name in TASKS},
        paths=info.paths,
        latents=info.latent_space,
        limits=schemas.RequestLimits(
            points=limits.max_points_of(info.image), body=limits.max_body_bytes, pixels=limits.max_upload_pixels
        ),
    )


@endpoint_routes.get("/v1/models", responses=schemas.responses("the served models", 409, 422))
def get_models(request: Request) -> schemas.ModelsResponse:
    """Return the model of each alias: version, run, kl_factor, z_dim, image, metrics."""
    with _client_errors():
        _merge_options(request, schemas.Options, {})
    slots: tuple[ModelSlot, ...] = request.app.state.slots
    summaries = [
        schemas.ModelSummary(**_version_fields(info, slot.refused), kl_factor=info.recipe["loss"]["kl_factor"])
        for slot in slots
        for info in [slot.current.info]
    ]
    return schemas.ModelsResponse(models=summaries)


def _version_fields(info: ModelInfo, refused: dict[str, str] | None) -> dict[str, Any]:
    """Return the fields of `schemas.ServedVersion`."""
    fields = {key: getattr(info, key) for key in ("name", "version", "alias", "run_id", "z_dim", "image", "sampler")}
    return fields | {"metrics": info.finite_metrics, "refused": refused}


@endpoint_routes.post(
    "/v1/convert",
    response_class=Response,
    responses=schemas.image_responses(schemas.ImagesResponse),
    openapi_extra=schemas.request_inputs(schemas.ConvertRequest, NPY, *IMAGE_FILES),
)
async def convert(request: Request) -> Response:
    """Return an image, such as HEIC that browsers do not read, upright and at most 1,024 pixels a side."""
    media_type = _accepted_media_type(request, IMAGE_RESPONSES)
    shrink = partial(operations.shrink, max_side=MAX_CONVERTED_SIDE)
    images, _ = await _read_input(request, ("images",), schemas.Options, reduce=shrink)
    with _client_errors():
        if len(images) != 1:
            raise ValueError(f"{len(images)} images: one is converted at a time")
    return await _images_response(request.state.model, images[0][None], media_type)


@health_routes.get("/healthz", responses=schemas.responses("the endpoint responds"))
async def healthz() -> schemas.StatusResponse:
    """Return ok if the endpoint responds. Needs no token."""
    return schemas.StatusResponse(status="ok")


@health_routes.get("/readyz", responses=schemas.responses("the models decode", 503))
async def readyz(request: Request) -> schemas.StatusResponse:
    """Return ok if the model of each alias decodes a z-point. Needs no token."""
    slots: tuple[ModelSlot, ...] = request.app.state.slots
    for model in (slot.current for slot in slots):
        await model.decode(np.zeros((1, model.info.z_dim), np.float32))
    return schemas.StatusResponse(status="ok")


@endpoint_routes.get("/metrics", response_class=PlainTextResponse, responses=schemas.responses("metrics"))
async def get_metrics(request: Request) -> Response:
    """Return the metrics of the replica that responds, for Prometheus."""
    return Response(request.app.state.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


async def _read_input(
    request: Request, keys: tuple[str, ...], options_model: type[O], *, reduce: ReduceFn | None = None
) -> tuple[Any, O]:
    """Return the body's z-points or images (`keys`), and the options of the URL's query and a JSON body.

    Images are of the model's shape; with `reduce` they are a list of its results, as in `parse_body`.
    """
    limits: Limits = request.app.state.limits
    info = request.state.model.info
    content_type = _check_content_type(request, *(IMAGE_FILES if "images" in keys else ()), JSON, NPY)
    allowed = f"{limits.max_points_of(info.image)} {'z-points' if 'z' in keys else 'images'}"
    body = await _read_body(request, limits.max_body_bytes, allowed)

    def parse() -> tuple[Any, O]:
        media_type = content_type or detect_media_type(body)
        array, options = parse_body(body, media_type, keys, info.image, info.z_dim, limits, reduce=reduce)
        return array, _merge_options(request, options_model, options)

    with _client_errors():
        if keys == ("z",):
            return await _run(len(body), parse)
        # Whatever the size of the body: a few bytes may decode to many pixels.
        return await asyncio.get_running_loop().run_in_executor(request.app.state.image_decoders, parse)


def _stored_points(request: Request) -> StoredPoints:
    info = request.state.model.info
    if info.points is None:
        raise HTTPException(
            404, f"{info.label} was stored without points: train with points.images above 0, and promote the run"
        )
    return info.points


def _merge_options(request: Request, model: type[O], body_options: Any) -> O:
    # Starlette takes 10 us to parse an empty query.
    query = request.query_params.multi_items() if request.scope["query_string"] else []
    return schemas.merge_options(model, query, body_options)


def _check_content_type(request: Request, *allowed: str) -> str:
    """Return the media type of the body, an empty string if the content must tell. Raises HTTPException 415."""
    content_type = canonical_media_type(request.headers.get("content-type", ""))
    if content_type in ("", "application/octet-stream"):
        return ""
    if content_type not in allowed and not (content_type == ANY_IMAGE and PNG in allowed):
        raise HTTPException(415, f"unsupported content type '{content_type[:100]}': send {' or '.join(allowed)}")
    return content_type


async def _read_body(request: Request, max_bytes: int, allowed: str) -> bytes:
    content_encoding = ", ".join(request.headers.getlist("content-encoding")).lower()
    if content_encoding not in ("", "identity"):
        detail = f"unsupported content encoding '{content_encoding[:100]}': send the body without one"
        raise HTTPException(415, detail, {"Accept-Encoding": "identity"})
    too_large = HTTPException(413, f"the body is larger than {max_bytes} bytes: one request takes {allowed}")
    content_length = request.headers.get("content-length", "")
    if content_length.isascii() and content_length.isdigit() and int(content_length) > max_bytes:
        raise too_large
    timeout_s = request.app.state.limits.body_timeout_s
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                if len(body) + len(chunk) > max_bytes:
                    raise too_large
                body += chunk
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {timeout_s:g} s: send it again") from None
    return bytes(body)


def _accepted_media_type(request: Request, media_types: tuple[str, ...]) -> str:
    try:
        return negotiate_media_type(",".join(request.headers.getlist("accept")), media_types)
    except ValueError as error:
        raise HTTPException(406, str(error)) from None


async def _images_response(
    model: ServedModel, images: np.ndarray, media_type: str, fields: Mapping[str, Any] | None = None
) -> Response:
    fields = {"model": model.info.label, **(fields or {})}
    with _client_errors():
        body = await _run(images.nbytes, encode_images, images, media_type, fields)
    headers = {f"X-Zpoint-{name.title()}": str(fields[name]) for name in ("seed", "faces") if name in fields}
    return Response(body, media_type=media_type, headers=headers)


def _choose_seed(seed: int | None) -> int:
    return secrets.randbelow(1 << 32) if seed is None else seed


async def _run(num_bytes: int, function: Callable[..., T], *args: Any) -> T:
    """Call `function` here if it processes few bytes, else in a thread."""
    return function(*args) if num_bytes <= MAX_INLINE_BYTES else await asyncio.to_thread(function, *args)


@contextmanager
def _client_errors() -> Iterator[None]:
    """Turn TooLarge into status 413 and ValueError into 422."""
    try:
        yield
    except TooLarge as error:
        raise HTTPException(413, str(error)) from None
    except ValueError as error:
        raise HTTPException(422, str(error)) from None


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = set((error.headers or {"Allow": "GET"})["Allow"].split(", "))
        headers = {"Allow": ", ".join(sorted(allowed | {"OPTIONS"} | ({"HEAD"} if "GET" in allowed else set())))}
        if request.method == "OPTIONS":  # no header grants other origins access, so a browser refuses them
            return Response(status_code=204, headers=headers)
        return problem_response(405, f"{request.method} is not allowed here: use {headers['Allow']}", headers)
    return problem_response(error.status_code, error.detail, error.headers)


async def _overloaded_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Overloaded)
    return problem_response(503, str(error), {"Retry-After": str(math.ceil(error.retry_after_s))})
