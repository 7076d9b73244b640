"""Pydantic models of requests and responses, from which FastAPI makes /openapi.json.

FastAPI parses no request with them. It would read a POST body whole, whatever its size, and parse it on the event loop:
serving.http.api reads bodies itself, bounded, and `merge_options` joins their options with the URL's query. So both
enter the OpenAPI through `request_inputs`, which FastAPI documents as `openapi_extra`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from aecore.config import TASKS
from aecore.latent.interpolation import INTERPOLATIONS
from aecore.latent.samplers import SAMPLERS
from aecore.model.autoencoder import ImageShape
from serving.http.decoding import JSON
from serving.http.encoding import IMAGE_RESPONSES
from serving.runtime.face_finder import MAX_IMAGES

MAX_NEIGHBOURS = 100  # of one z-point
Z = list[list[float]]
ZPoints = Annotated[Z, Field(min_length=1, description="z-points of z_dim numbers each")]
Base64 = Annotated[str, Field(json_schema_extra={"format": "byte"})]
ImageFiles = Annotated[list[Base64], Field(min_length=1, description="PNG, JPEG, WebP or HEIC files in base64")]
Seed = Annotated[
    int | None,
    Field(
        ge=0, lt=2**63, description="makes the response repeatable; default: random, see X-Zpoint-Seed", examples=[0]
    ),
]


class Options(BaseModel):
    """Options of a request; this class itself has none."""

    model_config = ConfigDict(extra="forbid")


class DecodeRequest(Options):
    z: ZPoints


class SampleRequest(Options):
    sampler: str | None = Field(
        default=None,
        examples=["normal"],
        description=f"one of {', '.join(SAMPLERS)}; by default the best one of the model, see /v1/model",
    )
    n: int = Field(default=1, strict=True, ge=1, description="number of z-points")
    seed: Annotated[Seed, Field(strict=True)] = None
    parameters: dict[str, float | None] = Field(
        default={}, description="parameters of the sampler, see /v1/model; null: its default"
    )
    count_faces: bool = Field(default=False, description=f"count the images with a face, of at most {MAX_IMAGES}")


class EncodeRequest(Options):
    images: ImageFiles


class ConvertRequest(Options):
    images: Annotated[ImageFiles, Field(max_length=1)]


class ReconstructOptions(Options):
    task: str = Field(default="reconstruct", description=f"one of {', '.join(TASKS)}")
    seed: Seed = None
    parameters: dict[str, float | str | None] = Field(
        default={}, description="parameters of the task, see /v1/model; null: its default"
    )


class ReconstructRequest(ReconstructOptions):
    images: ImageFiles


class InterpolateOptions(Options):
    steps: int = Field(default=8, ge=2, description="number of z-points, both ends included")
    path: str = Field(default="straight", description=f"one of {', '.join(INTERPOLATIONS)}, see /v1/model")


class InterpolateZRequest(InterpolateOptions):
    z: Annotated[ZPoints, Field(min_length=2, max_length=2)]


class InterpolateImagesRequest(InterpolateOptions):
    images: Annotated[ImageFiles, Field(min_length=2, max_length=2)]


class NeighboursOptions(Options):
    k: int = Field(default=8, ge=1, le=MAX_NEIGHBOURS, description="number of stored points for each z-point")


class NeighboursRequest(NeighboursOptions):
    z: ZPoints


class PointsOptions(Options):
    attribute: str | None = Field(default=None, description="attribute whose values to return, one of `attributes`")


class PointsAtRequest(NeighboursOptions):
    x: float = Field(default=0.0, ge=-10, le=10, description="position on the map of /v1/points, which fills [-1, 1]")
    y: float = Field(default=0.0, ge=-10, le=10)


class ImagesResponse(BaseModel):
    model: str = Field(description="name/version")
    images: list[Base64] = Field(description="PNG files in base64")


class SampleResponse(ImagesResponse):
    z: Z
    seed: int
    faces: int | None = Field(
        default=None,
        description="images with a face, if count_faces; left out if under half of the stored images show one",
    )


class ReconstructResponse(ImagesResponse):
    corrupted: list[Base64] = Field(description="the corrupted images that the encoder gets: PNG files in base64")
    z: Z
    seed: int


class InterpolateResponse(ImagesResponse):
    z: Z


class EncodeResponse(BaseModel):
    model: str = Field(description="name/version")
    z: Z = Field(description="the means of q(z|x)")


class StoredImage(BaseModel):
    index: int = Field(description="row of /v1/points, and cell of the thumbnail sheet")
    distance: float
    split: str = Field(description="train or test")
    attributes: dict[str, float | None]


class Neighbour(StoredImage):
    thumbnail: Base64 = Field(description="PNG file in base64")


class NeighboursResponse(BaseModel):
    model: str = Field(description="name/version")
    neighbours: list[list[Neighbour]] = Field(description="of each z-point, nearest first")


class PointsAtResponse(ImagesResponse):
    z: Z = Field(description="the mean of the k nearest points on the map, by inverse squared distance")
    nearest: list[StoredImage] = Field(description="nearest on the map first")


class Square(BaseModel):
    left: float
    top: float
    size: float


class FramesResponse(BaseModel):
    model: str = Field(description="name/version")
    frames: list[Square | None] | None = Field(
        description="in pixels of the upright image, perhaps beyond it; null for one without a face, null alone if "
        "under half of the stored images show one"
    )


class SpriteGrid(BaseModel):
    columns: int
    rows: int
    size: int = Field(description="pixels a side of a cell; row by row in the order of the points")


class PointsResponse(BaseModel):
    model: str = Field(description="name/version")
    map: str = Field(description="tsne or pca")
    points: list[tuple[float, float]] = Field(description="x, y in [-1, 1]")
    splits: list[str]
    attributes: list[str]
    values: list[float | None] | None = Field(description="of the attribute that the request names")
    sprites: SpriteGrid = Field(description="of the thumbnail sheet at /v1/points/thumbnails")


class PrincipalAxis(BaseModel):
    sd: float = Field(description="standard deviation of the training images' z-points along the axis")
    direction: list[float] = Field(description="unit vector of z_dim numbers")


class Mixture(BaseModel):
    mean_square: float = Field(description="squared distance of a component's mean from the origin, weighted mean")
    variance: float = Field(description="of a component, summed over the dimensions, weighted mean")


class LatentSpace(BaseModel):
    mean: list[float] = Field(description="of the training images' z-points, per dimension")
    sd: list[float] = Field(description="standard deviation, per dimension")
    axes: list[PrincipalAxis] = Field(description="principal axes, the largest sd first")
    attributes: dict[str, list[float]] = Field(description="the change of z as an attribute grows by 1")
    mixture: Mixture | None = Field(description="of the sampler gmm; null for a model that was stored without one")


class RequestLimits(BaseModel):
    points: int = Field(description="z-points or images of one request")
    body: int = Field(description="bytes of a request's body")
    pixels: int = Field(description="pixels of a request's images in total")


class RefusedVersion(BaseModel):
    version: str
    reason: str


class ServedVersion(BaseModel):
    name: str
    version: str
    alias: str
    run_id: str
    z_dim: int
    image: ImageShape
    metrics: dict[str, float]
    sampler: str = Field(description="the one that serves the model best, of requests that name none")
    refused: RefusedVersion | None = Field(description="the version that the alias names, if it did not load")


class ModelResponse(ServedVersion):
    recipe: dict[str, Any]
    samplers: dict[str, dict[str, float | None]] = Field(description="parameters and their defaults")
    tasks: dict[str, dict[str, Any]] = Field(description="parameters and their defaults")
    paths: list[str]
    latents: LatentSpace
    limits: RequestLimits


class ModelSummary(ServedVersion):
    kl_factor: float = Field(description="the weight of the KL divergence: 0 is an autoencoder, 1 the ELBO")


class ModelsResponse(BaseModel):
    models: list[ModelSummary] = Field(description="one for each alias; routes without an alias take the first")


class StatusResponse(BaseModel):
    status: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    status: int
    title: str
    detail: str


T = TypeVar("T", bound=BaseModel)


def validate(model: type[T], values: object, *, strings: bool = False) -> T:
    """Return `values`, or their `strings`, as a `model`. Raises ValueError, one line with every invalid key."""
    try:
        return model.model_validate_strings(values) if strings else model.model_validate(values)
    except ValidationError as error:
        raise ValueError(summarize(error.errors())) from None


def merge_options(model: type[T], query: Sequence[tuple[str, str]], body: Any) -> T:
    """Return the options of a request: keys of the URL's query, and of the JSON body.

    If the model has `parameters`, they are keys of their own in the query: `?task=denoise&sigma=0.4`. Raises ValueError
    that names an option which is unknown, invalid, or given twice.
    """
    options = validate(model, body)
    if not query:
        return options
    repeated = [f"'{name}' is given {n} times" for name, n in Counter(name for name, _ in query).items() if n > 1]
    if repeated:
        raise ValueError(f"{'; '.join(repeated)[:400]}: give it once")
    names = model.model_fields.keys() - {"parameters"}
    values: dict[str, Any] = {name: value for name, value in query if name in names}
    rest = {name: value for name, value in query if name not in names}
    has_parameters, parameters = "parameters" in model.model_fields, getattr(options, "parameters", {})
    values |= {"parameters": rest} if has_parameters else rest  # which are unknown then
    in_both = (values.keys() & body.keys() - {"parameters"}) | (rest.keys() & parameters.keys())
    if in_both:
        raise ValueError(f"{', '.join(sorted(in_both))[:400]}: in the query and in the JSON body; give it in one")
    merged = validate(model, values, strings=True).model_dump(include=set(values))
    if has_parameters:
        merged["parameters"] = parameters | merged["parameters"]
    return options.model_copy(update=merged)


def summarize(errors: Sequence[Any]) -> str:
    """Return pydantic's errors as one line: `n: Input should be a valid integer; seed: ...`."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in errors)[:500]


ERRORS = {
    304: "the content is the one that If-None-Match names",
    401: "the token is missing or wrong",
    403: "a web page of another site uses an endpoint without a token",
    404: "the endpoint does not serve this alias, or the model was stored without points",
    406: "Accept allows none of the media types of the response",
    409: "the endpoint serves another version than X-Zpoint-Model of the request names",
    408: "the body took too long to arrive",
    413: "the body, or the response to it, exceeds a limit",
    415: "the route does not take this content type or encoding",
    421: "an endpoint without a token responds only at localhost",
    422: "the request is invalid; detail names the cause",
    503: "overloaded: retry after Retry-After seconds; without that header the request timed out: ask for less",
}
JSON_POST_ERRORS = (408, 409, 413, 415, 422, 503)  # of routes that answer with JSON whatever Accept names
POST_ERRORS = (*JSON_POST_ERRORS, 406)
HEADERS = {
    "Accept-Encoding": "identity, if the content encoding is unsupported",
    "ETag": "of the content",
    "Retry-After": "seconds",
    "WWW-Authenticate": "Bearer",
    "X-Zpoint-Faces": "images with a face, if count_faces; left out if under half of the stored images show one",
    "X-Zpoint-Model": "name/version",
    "X-Zpoint-Seed": "of the random numbers",
}
ERROR_HEADERS = {304: ("ETag",), 401: ("WWW-Authenticate",), 415: ("Accept-Encoding",), 503: ("Retry-After",)}


def responses(
    description: str, *errors: int, model: type[BaseModel] | None = None, media_types: Sequence[str] = (),
    headers: Sequence[str] = (),
) -> dict[int | str, dict[str, Any]]:  # fmt: skip
    """Return FastAPI's `responses` of a route: 200 as JSON `model` or as binary `media_types`, and `errors`.

    `headers` are those of 200 beside X-Zpoint-Model.
    """
    success = {"description": description, "headers": _describe_headers(headers), "content": _binary(media_types)}
    return {200: success | ({"model": model} if model else {}), **error_responses(*errors)}


def error_responses(*errors: int) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's `responses` of the status codes `errors`, each a problem; 304 has no content."""
    problem = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    return {
        status: {"description": ERRORS[status], "headers": _describe_headers(ERROR_HEADERS.get(status, ()))}
        | ({"content": problem} if status >= 400 else {})
        for status in errors
    }


def gateway_responses(has_token: bool) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's `responses` of the refusals that serving.http.middleware sends for any route."""
    return error_responses(*((401,) if has_token else (403, 421)))


def image_responses(
    json_model: type[BaseModel], *errors: int, headers: Sequence[str] = ()
) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's `responses` of a POST route that returns images."""
    description = "images: one file (a grid of several), a zip of PNGs, uint8 .npy (n, size, size, channels) or JSON"
    media_types = [media_type for media_type in IMAGE_RESPONSES if media_type != JSON]
    return responses(description, *POST_ERRORS, *errors, model=json_model, media_types=media_types, headers=headers)


def request_inputs(
    json_model: Any, *media_types: str, options: type[Options] = Options, required: bool = True
) -> dict[str, Any]:
    """Return FastAPI's `openapi_extra` of a route that takes a JSON `json_model` or one of binary `media_types`.

    The keys of `options` may stand in the URL's query instead. Only empty defaults are named there: Swagger UI sends
    the others, and the endpoint refuses an option that is in the query and in the body.
    """
    schema = TypeAdapter(json_model).json_schema()
    content = {JSON: {"schema": _inline(schema)}, **_binary(media_types)}
    keys = options.model_json_schema().get("properties", {})
    query = [{"name": name, "in": "query", "required": False, "schema": key} for name, key in keys.items()]
    for parameter in query:
        if parameter["schema"].get("default") not in (None, {}):
            del parameter["schema"]["default"]
    return {"requestBody": {"required": required, "content": content}} | ({"parameters": query} if query else {})


def _inline(schema: dict[str, Any]) -> dict[str, Any]:
    # FastAPI adds no `openapi_extra` model to the OpenAPI's components, so that a $ref would lead nowhere.
    definitions = schema.pop("$defs", {})
    return {"anyOf": list(definitions.values())} if definitions else schema


def _binary(media_types: Sequence[str]) -> dict[str, Any]:
    return {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in media_types}


def _describe_headers(names: Sequence[str]) -> dict[str, Any]:
    return {name: {"description": HEADERS[name], "schema": {"type": "string"}} for name in ("X-Zpoint-Model", *names)}
