"""The clients of a served endpoint, blocking (`Client`) and asyncio (`AsyncClient`). They import neither torch nor ray.

with Client("http://127.0.0.1:8000") as endpoint:
    images = endpoint.decode(z)
"""

import asyncio
import base64
import io
import itertools
import json
import math
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar
from urllib.parse import urlencode

import httpx2
import numpy as np
from PIL import Image

from aecore.data.image_input import ImageInputs, is_z_point, read_end, read_images, split_ends, to_pillow
from aecore.latent.arrays import Images, ZPoints
from cluster.network import bypasses_proxies, describe_proxy_error, proxy_hint

PNG, WEBP, NPY, JSON, PROBLEM = (
    "image/png", "image/webp", "application/x-npy", "application/json", "application/problem+json",
)  # fmt: skip
PNG_SIGNATURE = b"\x89PNG"
MODEL_HEADER = "X-Zpoint-Model"
FIRST_DELAY_S, MAX_DELAY_S = 0.2, 5.0  # before a retry; each delay is twice the one before
MAX_ATTEMPTS = 8  # within 16 s: a replica that died has been replaced by then, and all have swapped the model
MAX_CONNECT_ATTEMPTS = 5  # within 3 s, if the connection is refused
MAX_RETRY_AFTER_S = 30.0  # a response with a longer Retry-After is not retried
CONNECT_TIMEOUT_S = 5.0

Version: TypeAlias = str | int
# What the methods return: values in Client, awaitables of them in AsyncClient.
ImagesT = TypeVar("ImagesT")
ArrayT = TypeVar("ArrayT")
ZT = TypeVar("ZT")
BytesT = TypeVar("BytesT")
DictT = TypeVar("DictT")
ListT = TypeVar("ListT")
T = TypeVar("T")


class EndpointError(ValueError):
    """The endpoint's error in one line, with its HTTP `status`; 0 if there was no response."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Request:
    """An HTTP request. One with a body is a POST; `model` is the version that has to answer it, "" for any."""

    path: str
    accept: str
    content_type: str = ""
    body: bytes | None = None
    model: str = ""

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments of httpx2's `request`."""
        headers = {"Accept": self.accept, "Content-Type": self.content_type, MODEL_HEADER: self.model}
        return {
            "method": "POST" if self.body else "GET", "url": self.path, "content": self.body,
            "headers": {name: value for name, value in headers.items() if value},
        }  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """The limits of one request: z-points or images, bytes of its body, pixels of its images."""

    points: int
    body: int
    pixels: int


NPY_HEADER_BYTES = 1000  # at most
SMALL = Limits(points=64, body=4 << 20, pixels=8_000_000)  # what every endpoint takes: its limits are not asked for
# A call of a client: it yields requests, or seconds to wait, gets the responses (or EndpointError raised), and returns
# the result.
Operation: TypeAlias = Generator[Request | float, httpx2.Response, T]


class _Endpoint(Generic[ImagesT, ZT, ArrayT, BytesT, DictT, ListT]):
    """The methods of both clients, and when a request is retried; the subclasses send it."""

    _http_class: ClassVar[type]

    def __init__(self, url: str, token: str = "", timeout: float = 60.0, *, alias: str = ""):
        if "://" not in url:
            raise EndpointError(f"'{url}' is no URL: write http://{url}")
        if not (token.isascii() and token.isprintable()):
            raise EndpointError("a token takes printable ASCII characters, as an HTTP header does")
        self._url, self._timeout = url.rstrip("/"), timeout
        self._limits: tuple[str, Limits] | None = None  # with the model that has them
        try:
            self._http = self._http_class(
                base_url=f"{self._url}/v1" + (f"/models/{alias}" if alias else ""),
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT_S)),
                # with the CAs of SSL_CERT_FILE and SSL_CERT_DIR, which plain HTTP does not read
                verify=httpx2.create_ssl_context() if self._url.lower().startswith("https:") else True,
                trust_env=not bypasses_proxies(self._url),  # else it reads the environment's proxies
            )
        except OSError as error:
            raise EndpointError(f"cannot read the certificates of SSL_CERT_FILE or SSL_CERT_DIR: {error}") from None
        except (ValueError, ImportError, httpx2.InvalidURL) as error:
            if proxy_error := describe_proxy_error():
                raise EndpointError(f"no proxy for {self._url}: {proxy_error}, or add the host to NO_PROXY") from None
            raise EndpointError(f"'{url}' is no URL: {error}") from None

    def decode(self, z: np.ndarray, *, version: Version = "") -> ImagesT:
        """Return the images uint8 (n, size, size, channels) of z-points (n, z_dim), or of one, (z_dim,), as `Images`.

        z-points that a client returned are decoded by the version that they are of. Otherwise `version` names it
        (`7` or `zpoint/7`), and without one any answers. EndpointError 409: the endpoint serves another one.
        """
        return self._run(self._decode(to_z(z), _pin(version, z)))

    def decode_png(self, z: np.ndarray, *, version: Version = "") -> BytesT:
        """Return one PNG of the images of `z`, as in `decode`: a grid if there are several."""
        return self._run(_png(Request("/decode", PNG, NPY, to_npy(to_z(z)), _pin(version, z))))

    def sample(
        self, sampler: str | None = None, n: int = 1, seed: int | None = None, *, version: Version = "",
        **parameters: float,
    ) -> ImagesT:  # fmt: skip
        """Return the images uint8 (n, size, size, channels) of `n` z-points, with `z` and `seed`; a seed repeats them.

        Without a `sampler` they are of the one that serves the model best. `parameters` are the sampler's.
        """
        return self._run(self._sample(sampler, n, seed, parameters, str(version)))

    def sample_png(
        self, sampler: str | None = None, n: int = 1, seed: int | None = None, *, version: Version = "",
        **parameters: float,
    ) -> BytesT:  # fmt: skip
        """Return the images of `sample` as one PNG."""
        return self._run(_png(_sample_request(sampler, n, seed, parameters, PNG, str(version))))

    def encode(self, images: ImageInputs, *, version: Version = "") -> ZT:
        """Return the z-points float32 (n, z_dim) of images as `ZPoints`, which carry the version as `model`.

        Images are paths, bytes of image files, PIL images, and arrays uint8 or float in [0, 1], one or several, (H, W),
        (n, H, W) or (..., 1 to 4).
        """
        return self._run(self._encode(read_images(images), str(version)))

    def reconstruct(
        self, images: ImageInputs, task: str = "reconstruct", seed: int | None = None, *, version: Version = "",
        **parameters: float | str,
    ) -> ImagesT:  # fmt: skip
        """Corrupt images, as `encode` takes them, as the task does in training; return their reconstructions.

        The reconstructions are uint8 (n, size, size, channels), with `corrupted`, `z` and `seed`; `parameters` are the
        task's.
        """
        return self._run(self._reconstruct(read_images(images), task, seed, parameters, str(version)))

    def interpolate(
        self, ends: ImageInputs, steps: int = 8, path: str = "straight", *, version: Version = ""
    ) -> ImagesT:
        """Return the images uint8 (steps, size, size, channels) from one end to the other, with their `z`.

        `ends`: z-points as (2, z_dim), or a pair of z-points, (z_dim,) or of `encode`, and images, as `encode` takes
        them. One version encodes and decodes all of them. `path`: one of `model()["paths"]`.
        """
        return self._run(self._interpolate(split_ends(ends), steps, path, str(version)))

    def neighbours(self, z: np.ndarray, k: int = 8, *, version: Version = "") -> ListT:
        """Return for each of the z-points, as `decode` takes them, a list of the k nearest stored ones, nearest first.

        Each is a dict: index (its row in `points`), distance, split, attributes and thumbnail, uint8 (size, size, 3).
        EndpointError 404, here and in the three methods below: the model was stored without points.
        """
        return self._run(self._neighbours(to_z(z), k, _pin(version, z)))

    def points(self, attribute: str | None = None, *, version: Version = "") -> DictT:
        """Return the map of the stored points: `points` float32 (n, 2) in [-1, 1], `splits`, `attributes`, `sprites`.

        `values` float32 (n,) are those of `attribute`, NaN if unknown; None without one.
        """
        return self._run(self._points(attribute, str(version)))

    def thumbnails(self, *, version: Version = "") -> ArrayT:
        """Return the thumbnails of the stored points, uint8 (n, size, size, 3), in the order of `points`."""
        return self._run(self._thumbnails(str(version)))

    def decode_at(self, x: float, y: float, k: int = 8, *, version: Version = "") -> ImagesT:
        """Return the image uint8 (1, size, size, channels) at a position on the map of `points`, with its `z`.

        `z` is the mean of the k stored z-points nearest on the map, weighted by the inverse squared distance.
        """
        return self._run(_images(Request("/points/at", JSON, JSON, _to_json({"x": x, "y": y, "k": k}), str(version))))

    def model(self) -> DictT:
        """Return the served model: name, version, run_id, recipe, image, z_dim, metrics, samplers, tasks, limits."""
        return self._run(_json(Request("/model", JSON)))

    def models(self) -> ListT:
        """Return of each served alias a dict: alias, name, version, run_id, kl_factor, z_dim, image, metrics."""
        return self._run(_json(Request(f"{self._url}/v1/models", JSON), "models"))

    def _decode(self, z: np.ndarray, pin: str) -> Operation[Images]:
        limits = yield from self._limits_for(SMALL.points < len(z))
        requests = [Request("/decode", NPY, NPY, to_npy(block)) for block in _split_rows(z, limits.points)]
        responses = yield from _collect(requests, pin)
        return Images(np.concatenate([_parse_npy(r) for r in responses]), z, _model(responses))

    def _sample(
        self, sampler: str | None, n: int, seed: int | None, parameters: Mapping[str, float], pin: str
    ) -> Operation[Images]:
        _to_json({"seed": seed, **parameters})  # raises here for what is no number, not as for a wrong response
        limits = yield from self._limits_for(SMALL.points < n)
        counts = [min(limits.points, n - start) for start in range(0, n, limits.points)] or [n]
        if len(counts) > 1 and seed is None:
            seed = secrets.randbelow(1 << 32)
        requests = [
            _sample_request(sampler, count, seed if seed is None else seed + index, parameters, JSON)
            for index, count in enumerate(counts)
        ]
        return _parse_images((yield from _collect(requests, pin)))

    def _encode(self, images: list[bytes | np.ndarray], pin: str) -> Operation[ZPoints]:
        batches = yield from self._split(images)
        requests = [_images_request("/encode", batch, {}, {}, NPY) for batch in batches]
        responses = yield from _collect(requests, pin)
        return ZPoints(np.concatenate([_parse_npy(r) for r in responses]), _model(responses))

    def _reconstruct(
        self, images: list[bytes | np.ndarray], task: str, seed: int | None, parameters: Mapping[str, float | str],
        pin: str,
    ) -> Operation[Images]:  # fmt: skip
        _to_json({"seed": seed, **parameters})  # raises here for what is no number, not as for a wrong response
        batches = yield from self._split(images)
        if len(batches) > 1 and seed is None:
            seed = secrets.randbelow(1 << 32)
        requests = []
        for index, batch in enumerate(batches):
            options = _drop_none(task=task, seed=seed if seed is None else seed + index)
            requests.append(_images_request("/reconstruct", batch, options, parameters, JSON))
        return _parse_images((yield from _collect(requests, pin)))

    def _interpolate(self, ends: Sequence[Any], steps: int, path: str, pin: str) -> Operation[Images]:
        query = f"/interpolate?{urlencode({'steps': steps, 'path': path})}"
        models = sorted({model for end in ends if (model := getattr(end, "model", ""))})
        if not pin and len(models) > 1:
            raise ValueError(f"the ends are z-points of {' and '.join(models)}: encode both by one version")
        pin = pin or "".join(models)
        points = [to_z(end) if is_z_point(end) else [read_end(end)] for end in ends]
        images = [end[0] for end in points if isinstance(end, list)]
        if len(images) == len(ends):
            batches = yield from self._split(images)
            if len(batches) == 1:
                request = _images_request("/interpolate", batches[0], {"steps": steps, "path": path}, {}, JSON)
                return _parse_images((yield from _collect([request], pin)))
        return _parse_images((yield from _by_one_version(lambda: self._interpolate_z(points, query, pin), pin)))

    def _interpolate_z(
        self, ends: Sequence[np.ndarray | list[bytes | np.ndarray]], query: str, pin: str
    ) -> Operation[list[httpx2.Response]]:
        """Interpolate between z-points (1, z_dim) and lists of images, which the same version encodes."""
        z = []
        for end in ends:
            if isinstance(end, list):
                end = yield from self._encode(end, pin)
                pin = end.model
            z.append(end[0])
        if len(z[0]) != len(z[1]):
            raise EndpointError(f"the ends have {len(z[0])} and {len(z[1])} dimensions: they must be of one model")
        return (yield from _collect([Request(query, JSON, NPY, to_npy(np.stack(z)))], pin))

    def _neighbours(self, z: np.ndarray, k: int, pin: str) -> Operation[list[list[dict[str, Any]]]]:
        limits = yield from self._limits_for(SMALL.points < k * len(z))
        query, rows = f"/neighbours?{urlencode({'k': k})}", max(1, limits.points // max(1, k))
        requests = [Request(query, JSON, NPY, to_npy(block)) for block in _split_rows(z, rows)]
        responses = yield from _collect(requests, pin)
        neighbours = [nearest for response in responses for nearest in response.json()["neighbours"]]
        return [[{**one, "thumbnail": _read_image(one["thumbnail"])} for one in nearest] for nearest in neighbours]

    def _points(self, attribute: str | None, pin: str) -> Operation[dict[str, Any]]:
        query = f"?{urlencode({'attribute': attribute})}" if attribute is not None else ""
        body = (yield Request(f"/points{query}", JSON, model=pin)).json()
        values = body["values"] if body["values"] is None else np.array(body["values"], np.float32)
        return {**body, "points": np.array(body["points"], np.float32), "values": values}

    def _thumbnails(self, pin: str) -> Operation[np.ndarray]:
        requests = [Request("/points", JSON), Request("/points/thumbnails", WEBP)]
        points, sheet = yield from _collect(requests, pin)
        body = points.json()
        with Image.open(io.BytesIO(sheet.content)) as image:
            pixels = np.asarray(image.convert("RGB"))
        columns, rows, size = (body["sprites"][name] for name in ("columns", "rows", "size"))
        cells = pixels.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
        return cells[: len(body["points"])]

    def _split(self, images: list[bytes | np.ndarray]) -> Operation[list[list[bytes | np.ndarray]]]:
        """Return `images` in batches that the endpoint takes in one request."""
        if not images:
            raise ValueError("there are no images to send")
        above_small = any(isinstance(i, np.ndarray) and i.nbytes > SMALL.body - NPY_HEADER_BYTES for i in images)
        limits = yield from self._limits_for(above_small or len(_split_images(images, SMALL)) > 1)
        return _split_images([_shrink(image, limits.body) for image in images], limits)

    def _limits_for(self, large: bool) -> Operation[Limits]:
        """Return the endpoint's limits; it is asked for them if the input is `large`, once for each model."""
        if not large:
            return SMALL
        limits = self._limits  # another thread may forget them meanwhile
        if limits is None:
            response = yield Request("/model", JSON)
            limits = self._limits = (_model([response]), Limits(**response.json()["limits"]))
        return limits[1]

    def _run(self, operation: Operation[Any]) -> Any:
        raise NotImplementedError

    def _advance(
        self, operation: Operation[Any], outcome: httpx2.Response | EndpointError | None
    ) -> tuple[Request | float | None, Any]:
        """Pass `outcome` to `operation`; return its next request or wait in seconds, or None and its result."""
        limits = self._limits
        if isinstance(outcome, httpx2.Response) and limits and limits[0] != _model([outcome]):
            self._limits = None  # of a model with other images
        try:
            if isinstance(outcome, EndpointError):
                return operation.throw(outcome), None
            return operation.send(outcome), None  # pyright: ignore[reportArgumentType]: None after a wait
        except StopIteration as end:
            return None, end.value
        except (ValueError, TypeError, LookupError, EOFError, OSError) as error:
            if isinstance(error, EndpointError) or not isinstance(outcome, httpx2.Response):
                raise
            # The operation could not read the response: a login page, for example.
            text = f"the response of {self._url}{proxy_hint(self._url)} is not that of a zpoint endpoint"
            content_type = outcome.headers.get("content-type", "no content type")
            raise EndpointError(f"{text} ({content_type}): check the URL", outcome.status_code) from error

    def _describe(self, response: httpx2.Response) -> str:
        location = response.headers.get("location", "")
        text = f", a redirect to {location}" if location else f" {response.text[:200].strip()}"
        return f"the endpoint{proxy_hint(self._url)} answered {response.status_code}{text}".strip()

    def _retry_delay_s(self, outcome: httpx2.Response | Exception, attempt: int) -> float | EndpointError:
        """Return the seconds to wait after the failed `attempt` (from 1), or the error if it was the last."""
        retry_after_s = None
        if isinstance(outcome, httpx2.Response):
            error = EndpointError(_error_detail(outcome) or self._describe(outcome), outcome.status_code)
            retry_after_s = _retry_after_s(outcome)
            retry = _is_transient(outcome) and attempt < MAX_ATTEMPTS and (retry_after_s or 0) <= MAX_RETRY_AFTER_S
        elif "CERTIFICATE_VERIFY_FAILED" in str(outcome):
            text = f"the certificate of {self._url} is not trusted: {outcome}"
            error, retry = EndpointError(f"{text}; name the file of its CA in SSL_CERT_FILE"), False
        elif isinstance(outcome, (httpx2.ConnectError, httpx2.ConnectTimeout)):
            error = EndpointError(f"no endpoint answers at {self._url}: {outcome}; start one with: zpoint serve")
            retry = attempt < MAX_CONNECT_ATTEMPTS
        elif isinstance(outcome, httpx2.TimeoutException):
            error = EndpointError(f"no answer from {self._url} within {self._timeout:g} s")
            retry = False
        else:
            error = EndpointError(f"the request to {self._url} failed: {str(outcome) or type(outcome).__name__}")
            # The connection broke. No request changes anything at the endpoint, so it is safe to repeat.
            retry = isinstance(outcome, (httpx2.NetworkError, httpx2.RemoteProtocolError)) and attempt < MAX_ATTEMPTS
        if not retry:
            return error
        if retry_after_s is not None:
            return retry_after_s + random.uniform(0, FIRST_DELAY_S)
        return _backoff_s(attempt)


class Client(_Endpoint[Images, ZPoints, np.ndarray, bytes, dict[str, Any], list[Any]]):
    """A client of the endpoint at `url`, with the bearer `token` if it needs one. Threads may share it.

    If the endpoint serves several aliases, `alias` names the model to ask; by default it is the first.

    A refused or broken connection and a transient failure (502, 503, 504) are retried: after the endpoint's
    Retry-After, else after 0.2 s and twice as long each time, at most 8 attempts (5 if the connection is refused). A
    response may take `timeout` seconds. Input beyond the endpoint's limits is sent in several requests, which one
    version answers: if another replaces it, all are sent again after the same delays. Every method raises
    EndpointError, a ValueError, with the endpoint's message, and ValueError for input that is none.
    """

    _http_class = httpx2.Client

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _run(self, operation: Operation[Any]) -> Any:
        step, result = self._advance(operation, None)
        while step is not None:
            outcome = self._send(step) if isinstance(step, Request) else time.sleep(step)
            step, result = self._advance(operation, outcome)
        return result

    def _send(self, request: Request) -> httpx2.Response | EndpointError:
        for attempt in itertools.count(1):
            try:
                outcome = self._http.request(**request.arguments)
                if outcome.is_success:
                    return outcome
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                outcome = error
            delay_s = self._retry_delay_s(outcome, attempt)
            if isinstance(delay_s, EndpointError):
                return delay_s
            time.sleep(delay_s)
        raise AssertionError


class AsyncClient(
    _Endpoint[
        Awaitable[Images], Awaitable[ZPoints], Awaitable[np.ndarray], Awaitable[bytes], Awaitable[dict[str, Any]],
        Awaitable[list[Any]],
    ]
):  # fmt: skip
    """`Client` for asyncio: the same methods, awaited (`async with AsyncClient(url) as endpoint`)."""

    _http_class = httpx2.AsyncClient

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _run(self, operation: Operation[Any]) -> Any:
        step, result = self._advance(operation, None)
        while step is not None:
            outcome = await (self._send(step) if isinstance(step, Request) else asyncio.sleep(step))
            step, result = self._advance(operation, outcome)
        return result

    async def _send(self, request: Request) -> httpx2.Response | EndpointError:
        for attempt in itertools.count(1):
            try:
                outcome = await self._http.request(**request.arguments)
                if outcome.is_success:
                    return outcome
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                outcome = error
            delay_s = self._retry_delay_s(outcome, attempt)
            if isinstance(delay_s, EndpointError):
                return delay_s
            await asyncio.sleep(delay_s)
        raise AssertionError


def to_z(z: np.ndarray) -> np.ndarray:
    """Return z-points, or one, as floats (n, z_dim); integers become float32. Raises ValueError for other arrays."""
    points = np.atleast_2d(np.asarray(z))
    if points.dtype.kind not in "fiu" or points.ndim != 2:
        raise ValueError(f"z takes numbers, (n, z_dim) or (z_dim,), not {points.dtype} of shape {np.shape(z)}")
    return points if points.dtype.kind == "f" else points.astype(np.float32)


def to_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def _parse_npy(response: httpx2.Response) -> np.ndarray:
    return np.load(io.BytesIO(response.content), allow_pickle=False)


def _png(request: Request) -> Operation[bytes]:
    content = (yield request).content
    if not content.startswith(PNG_SIGNATURE):
        raise ValueError("the response is no PNG")
    return content


def _images(request: Request) -> Operation[Images]:
    return _parse_images([(yield request)])


def _json(request: Request, key: str = "") -> Operation[Any]:
    body = (yield request).json()
    return body[key] if key else body


def _backoff_s(attempt: int) -> float:
    """Return the seconds to wait after the failed `attempt` (from 1)."""
    # Jitter: clients that were refused together do not come back together.
    return min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)


def _by_one_version(operation: Callable[[], Operation[T]], pin: str) -> Operation[T]:
    """Run an operation of one version, `pin` or that of its first response; start over if another replaces that.

    While replicas swap the model one after the other, both versions answer in turn.
    """
    for attempt in itertools.count(1):
        try:
            return (yield from operation())
        except EndpointError as error:
            if error.status != 409 or pin or attempt == MAX_ATTEMPTS:
                raise
        yield _backoff_s(attempt)
    raise AssertionError


def _collect(requests: Sequence[Request], pin: str) -> Operation[list[httpx2.Response]]:
    """Send `requests` to one version, as in `_by_one_version`."""

    def send() -> Operation[list[httpx2.Response]]:
        responses: list[httpx2.Response] = []
        for request in requests:
            responses.append((yield replace(request, model=pin or _model(responses))))
        return responses

    return _by_one_version(send, pin)


def _model(responses: Sequence[httpx2.Response]) -> str:
    """Return the `name/version` that answered, "" if none is named."""
    return responses[0].headers.get(MODEL_HEADER, "") if responses else ""


def _pin(version: Version, z: np.ndarray) -> str:
    """Return the version that has to decode `z`: the given one, else the one that it is of, else ""."""
    return str(version) or getattr(z, "model", "")


def _parse_images(responses: Sequence[httpx2.Response]) -> Images:
    bodies = [response.json() for response in responses]
    corrupted = [_read_images(body["corrupted"]) for body in bodies if "corrupted" in body]
    return Images(
        np.concatenate([_read_images(body["images"]) for body in bodies]),
        np.concatenate([np.array(body["z"], np.float32) for body in bodies]),
        _model(responses),
        bodies[0].get("seed"),
        np.concatenate(corrupted) if corrupted else None,
    )


def _read_images(files: list[str]) -> np.ndarray:
    """Return images uint8 (n, size, size, channels) from base64 PNGs."""
    images = np.stack([_read_image(file) for file in files])
    return images if images.ndim == 4 else images[..., None]  # a gray PNG has no axis of channels


def _read_image(file: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(file))))


def _split_rows(array: np.ndarray, rows: int) -> list[np.ndarray]:
    return np.split(array, range(rows, len(array), rows))


def _split_images(images: list[bytes | np.ndarray], limits: Limits) -> list[list[bytes | np.ndarray]]:
    """Return the images in batches within `limits`; one that exceeds them alone is a batch, which is refused."""
    batches: list[list[bytes | np.ndarray]] = []
    num_bytes = num_pixels = 0
    for image in images:
        image_bytes, pixels = _image_cost(image, limits)
        num_bytes, num_pixels = num_bytes + image_bytes, num_pixels + pixels
        if not batches or len(batches[-1]) == limits.points or num_bytes > limits.body or num_pixels > limits.pixels:
            batches.append([])
            num_bytes, num_pixels = image_bytes, pixels
        batches[-1].append(image)
    return batches


def _shrink(image: bytes | np.ndarray, max_bytes: int) -> bytes | np.ndarray:
    """Return an array that exceeds `max_bytes` as its centre square, all that the endpoint uses, reduced until it fits.

    Others, and files, are returned as they are.
    """
    max_bytes -= NPY_HEADER_BYTES
    if isinstance(image, bytes) or image.nbytes <= max_bytes:
        return image
    height, width, channels = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    factor = math.ceil(math.sqrt(square.nbytes / max_bytes))
    reduced = np.asarray(to_pillow(square).reduce(factor))
    return reduced.reshape(*reduced.shape[:2], channels)


def _image_cost(image: bytes | np.ndarray, limits: Limits) -> tuple[int, int]:
    """Return the bytes that an image takes in a body, with some to spare, and its pixels.

    A file that Pillow does not read here, such as HEIC, is sent alone, since its pixels are unknown.
    """
    if isinstance(image, np.ndarray):
        return image.nbytes * 3 // 2 + 1000, image.shape[0] * image.shape[1]  # as .npy, or a PNG of noise in base64
    try:
        with Image.open(io.BytesIO(image)) as opened:  # reads the header only
            pixels = opened.width * opened.height
    except Exception:  # the endpoint reads it, or says what it is not
        pixels = limits.pixels
    return len(image) * 4 // 3 + 1000, pixels


def _sample_request(
    sampler: str | None, n: int, seed: int | None, parameters: Mapping[str, float], accept: str, pin: str = ""
) -> Request:
    body = _drop_none(sampler=sampler, n=n, seed=seed, parameters=dict(parameters))
    return Request("/sample", accept, JSON, _to_json(body), pin)


def _images_request(
    path: str, images: list[bytes | np.ndarray], options: Mapping[str, Any], parameters: Mapping[str, float | str],
    accept: str,
) -> Request:  # fmt: skip
    """Return the request of images: .npy if all are arrays of one shape, else JSON of image files."""
    arrays = [image for image in images if isinstance(image, np.ndarray)]
    if len(arrays) == len(images) and len({array.shape for array in arrays}) == 1:
        query = urlencode({**options, **parameters})
        return Request(f"{path}?{query}" if query else path, accept, NPY, to_npy(np.stack(arrays)))
    files = [_to_png(image) if isinstance(image, np.ndarray) else image for image in images]
    body: dict[str, Any] = {"images": [base64.b64encode(file).decode() for file in files], **options}
    body |= {"parameters": dict(parameters)} if parameters else {}
    return Request(path, accept, JSON, _to_json(body))


def _to_json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, default=lambda value: np.asarray(value).item()).encode()  # scalars of numpy


def _to_png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    to_pillow(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _drop_none(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _is_transient(response: httpx2.Response) -> bool:
    # HAProxy answers in plain text if no replica is up. The endpoint's own problem is final if it is an internal error,
    # or a 503 without Retry-After: the same request would take as long again.
    if response.headers.get("content-type", "").startswith(PROBLEM):
        return response.status_code in (502, 504) or (response.status_code == 503 and "retry-after" in response.headers)
    return response.status_code in (500, 502, 503, 504)


def _retry_after_s(response: httpx2.Response) -> float | None:
    """Return the seconds of the header Retry-After (RFC 9110, 10.2.3: a number or a date); None without one."""
    value = response.headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _error_detail(response: httpx2.Response) -> str:
    """Return the detail of the endpoint's problem; "" if it is another server's response."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return ""
