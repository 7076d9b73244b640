"""The clients of a served endpoint, blocking (`Client`) and asyncio (`AsyncClient`). They import neither torch nor ray.

with Client("http://127.0.0.1:8000") as endpoint:
    images = endpoint.decode(z)
"""

import asyncio
import base64
import io
import itertools
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Generic, TypeVar
from urllib.parse import urlencode

import httpx2
import numpy as np
from PIL import Image

from cluster.network import bypasses_proxies, describe_proxy_error, proxy_hint

PNG, NPY, JSON, PROBLEM = "image/png", "application/x-npy", "application/json", "application/problem+json"
FIRST_DELAY_S, MAX_DELAY_S = 0.2, 5.0  # before a retry; each delay is twice the one before
MAX_ATTEMPTS = 8  # within 16 s: a replica that died has been replaced by then
MAX_CONNECT_ATTEMPTS = 5  # within 3 s, if the connection is refused
MAX_RETRY_AFTER_S = 30.0  # a response with a longer Retry-After is not retried
CONNECT_TIMEOUT_S = 5.0

ImageInput = np.ndarray | Sequence[bytes]  # uint8 (n, H, W, 1 or 3), or image files
ArrayPair = tuple[np.ndarray, np.ndarray]
# What the methods return: values in Client, awaitables of them in AsyncClient.
ArrayT = TypeVar("ArrayT")
BytesT = TypeVar("BytesT")
PairT = TypeVar("PairT")
DictT = TypeVar("DictT")


class EndpointError(ValueError):
    """The endpoint's error in one line, with its HTTP `status`; 0 if there was no response."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Request:
    """An HTTP request and the function that parses its response. A request with a body is a POST."""

    path: str
    accept: str
    parse: Callable[[httpx2.Response], Any]
    content_type: str = ""
    body: bytes | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments of httpx2's `request`."""
        headers = {"Accept": self.accept} | ({"Content-Type": self.content_type} if self.content_type else {})
        return {"method": "POST" if self.body else "GET", "url": self.path, "headers": headers, "content": self.body}


class _Endpoint(Generic[ArrayT, BytesT, PairT, DictT]):
    """The methods of both clients, and when a request is retried; the subclasses send it."""

    _http_class: ClassVar[type]

    def __init__(self, url: str, token: str = "", timeout: float = 60.0):
        self._url, self._timeout = url.rstrip("/"), timeout
        try:
            self._http = self._http_class(
                base_url=self._url,
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT_S)),
                trust_env=not bypasses_proxies(self._url),  # else it reads the environment's proxies
            )
        except (ValueError, ImportError, httpx2.InvalidURL) as error:
            if proxy_error := describe_proxy_error():
                raise EndpointError(f"no proxy for {self._url}: {proxy_error}, or add the host to NO_PROXY") from None
            raise EndpointError(f"'{url}' is no URL: {error}") from None

    def decode(self, z: np.ndarray) -> ArrayT:
        """Return the images uint8 (n, size, size, channels) of z-points `z` (n, z_dim), floats."""
        return self._send(Request("/v1/decode", NPY, parse_npy, NPY, to_npy(z)))

    def decode_png(self, z: np.ndarray) -> BytesT:
        """Return one PNG of the images of `z` (n, z_dim): a grid if there are several."""
        return self._send(Request("/v1/decode", PNG, _parse_bytes, NPY, to_npy(z)))

    def sample(self, sampler: str | None = None, n: int = 1, seed: int | None = None, **parameters: float) -> ArrayT:
        """Return the images uint8 (n, size, size, channels) of `n` z-points; a seed repeats them.

        Without a `sampler` they are of the one that serves the model best.
        """
        return self._send(_sample_request(sampler, n, seed, parameters, NPY, parse_npy))

    def sample_png(
        self, sampler: str | None = None, n: int = 1, seed: int | None = None, **parameters: float
    ) -> BytesT:
        """Return the images of `sample` as one PNG."""
        return self._send(_sample_request(sampler, n, seed, parameters, PNG, _parse_bytes))

    def sample_with_z(
        self, sampler: str | None = None, n: int = 1, seed: int | None = None, **parameters: float
    ) -> PairT:
        """Return the images of `sample` and their z-points float32 (n, z_dim)."""
        return self._send(_sample_request(sampler, n, seed, parameters, JSON, _parse_images_and_z))

    def encode(self, images: ImageInput) -> ArrayT:
        """Return the z-points float32 (n, z_dim) of image files, or of images uint8 (n, H, W, 1 or 3)."""
        return self._send(_images_request("/v1/encode", images, {}, {}, NPY, parse_npy))

    def reconstruct(
        self, images: ImageInput, task: str = "reconstruct", seed: int | None = None, **parameters: float | str
    ) -> ArrayT:
        """Corrupt the images as the task does in training; return their reconstructions.

        The reconstructions are uint8 (n, size, size, channels); `parameters` are the task's.
        """
        options = _drop_none(task=task, seed=seed)
        return self._send(_images_request("/v1/reconstruct", images, options, parameters, NPY, parse_npy))

    def reconstruct_with_input(
        self, images: ImageInput, task: str = "reconstruct", seed: int | None = None, **parameters: float | str
    ) -> PairT:
        """Return the images of `reconstruct` and the encoder's input, equal in shape and dtype."""
        options = _drop_none(task=task, seed=seed)
        return self._send(
            _images_request("/v1/reconstruct", images, options, parameters, JSON, _parse_images_and_input)
        )

    def interpolate(self, ends: np.ndarray, steps: int = 8, path: str = "straight") -> ArrayT:
        """Return the images uint8 (steps, size, size, channels) from one z-point to another, `ends` (2, z_dim).

        `path`: one of `model()["paths"]`.
        """
        query = urlencode({"steps": steps, "path": path})
        return self._send(Request(f"/v1/interpolate?{query}", NPY, parse_npy, NPY, to_npy(ends)))

    def model(self) -> DictT:
        """Return the served model: name, version, run_id, recipe, image, z_dim, metrics, samplers, tasks, limits."""
        return self._send(Request("/v1/model", JSON, lambda response: response.json()))

    def _send(self, request: Request) -> Any:
        raise NotImplementedError

    def _describe(self, response: httpx2.Response) -> str:
        text = f"the endpoint{proxy_hint(self._url)} answered {response.status_code} {response.text[:200].strip()}"
        return text.strip()

    def _retry_delay_s(self, outcome: httpx2.Response | Exception, attempt: int) -> float:
        """Return the seconds to wait after the failed `attempt` (from 1). Raises EndpointError if it was the last."""
        retry_after_s = None
        if isinstance(outcome, httpx2.Response):
            error = EndpointError(_error_detail(outcome) or self._describe(outcome), outcome.status_code)
            retry_after_s = _retry_after_s(outcome)
            retry = _is_transient(outcome) and attempt < MAX_ATTEMPTS and (retry_after_s or 0) <= MAX_RETRY_AFTER_S
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
            raise error from None
        if retry_after_s is not None:
            return retry_after_s + random.uniform(0, FIRST_DELAY_S)
        # Jitter: clients that were refused together do not come back together.
        return min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)


class Client(_Endpoint[np.ndarray, bytes, ArrayPair, dict[str, Any]]):
    """A client of the endpoint at `url`, with the bearer `token` if it needs one. Threads may share it.

    A refused or broken connection and a transient failure (502, 503, 504) are retried: after the endpoint's
    Retry-After, else after 0.2 s and twice as long each time, at most 8 attempts (5 if the connection is refused). A
    response may take `timeout` seconds. Every method raises EndpointError, a ValueError, with the endpoint's message.
    """

    _http_class = httpx2.Client

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _send(self, request: Request) -> Any:
        for attempt in itertools.count(1):
            try:
                outcome = self._http.request(**request.arguments)
                if outcome.is_success:
                    return request.parse(outcome)
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                outcome = error
            time.sleep(self._retry_delay_s(outcome, attempt))


class AsyncClient(
    _Endpoint[Awaitable[np.ndarray], Awaitable[bytes], Awaitable[ArrayPair], Awaitable[dict[str, Any]]]
):  # fmt: skip
    """`Client` for asyncio: the same methods, awaited (`async with AsyncClient(url) as endpoint`)."""

    _http_class = httpx2.AsyncClient

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _send(self, request: Request) -> Any:
        for attempt in itertools.count(1):
            try:
                outcome = await self._http.request(**request.arguments)
                if outcome.is_success:
                    return request.parse(outcome)
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                outcome = error
            await asyncio.sleep(self._retry_delay_s(outcome, attempt))


def to_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def parse_npy(response: httpx2.Response) -> np.ndarray:
    return np.load(io.BytesIO(response.content), allow_pickle=False)


def _parse_bytes(response: httpx2.Response) -> bytes:
    return response.content


def _parse_images_and_z(response: httpx2.Response) -> ArrayPair:
    body = response.json()
    return _read_images(body["images"]), np.array(body["z"], np.float32)


def _parse_images_and_input(response: httpx2.Response) -> ArrayPair:
    body = response.json()
    return _read_images(body["images"]), _read_images(body["seen"])


def _read_images(files: list[str]) -> np.ndarray:
    """Return images uint8 (n, size, size, channels) from base64 PNGs."""
    images = np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))) for file in files])
    return images if images.ndim == 4 else images[..., None]  # a gray PNG has no axis of channels


def _sample_request(
    sampler: str | None, n: int, seed: int | None, parameters: Mapping[str, float], accept: str,
    parse: Callable[[httpx2.Response], Any],
) -> Request:  # fmt: skip
    body = _drop_none(sampler=sampler, n=n, seed=seed, parameters=dict(parameters))
    return Request("/v1/sample", accept, parse, JSON, json.dumps(body).encode())


def _images_request(
    path: str, images: ImageInput, options: Mapping[str, Any], parameters: Mapping[str, float | str], accept: str,
    parse: Callable[[httpx2.Response], Any],
) -> Request:  # fmt: skip
    if isinstance(images, np.ndarray):
        query = urlencode({**options, **parameters})
        return Request(f"{path}?{query}" if query else path, accept, parse, NPY, to_npy(images))
    body: dict[str, Any] = {"images": [base64.b64encode(file).decode() for file in images], **options}
    body |= {"parameters": dict(parameters)} if parameters else {}
    return Request(path, accept, parse, JSON, json.dumps(body).encode())


def _drop_none(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _is_transient(response: httpx2.Response) -> bool:
    # HAProxy answers 500 in plain text if no replica is up; the endpoint's own 500 is an RFC 9457 problem.
    is_problem = response.headers.get("content-type", "").startswith(PROBLEM)
    return response.status_code in (502, 503, 504) or (response.status_code == 500 and not is_problem)


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
