"""The clients of a served endpoint, waiting (`Client`) and asynchronous (`AsyncClient`); neither needs torch or ray.

with Client("http://127.0.0.1:8000") as endpoint:
    images = endpoint.decode(z)
"""

import asyncio
import itertools
import random
import time
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2
import numpy as np

from serving.client import requests
from serving.client.requests import JSON, NPY, PNG, Call, Pair, Pictures

T = TypeVar("T")
PROBLEM = "application/problem+json"
FIRST_WAIT, LONGEST_WAIT = 0.2, 5.0  # seconds between attempts; each is twice the one before
ATTEMPTS = 8  # in all, within 16 s: a replica that died is back by then
KNOCKS = 5  # where nobody listens, within 3 s
PATIENCE = 30.0  # seconds; a longer Retry-After is an answer
CONNECT_SECONDS = 5.0


class EndpointError(ValueError):
    """What the endpoint said, in one line, with its HTTP `status`; 0 where none answered."""

    def __init__(self, text: str, status: int = 0):
        super().__init__(text)
        self.status = status


class _Endpoint:
    """What both clients share: where the endpoint is, and when to ask again."""

    def __init__(self, url: str, token: str, timeout: float):
        self._url, self._timeout = url.rstrip("/"), timeout
        self._options: dict[str, Any] = {
            "base_url": self._url,
            "headers": {"Authorization": f"Bearer {token}"} if token else {},
            "timeout": httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
        }

    def _wait_after(self, trouble: httpx2.Response | Exception, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt`. Raises EndpointError when there is to be no other."""
        asked_for, again = None, False
        if isinstance(trouble, httpx2.Response):
            error = EndpointError(_detail(trouble), trouble.status_code)
            asked_for = _retry_after(trouble)
            again = _is_passing(trouble) and attempt < ATTEMPTS and (asked_for or 0) <= PATIENCE
        elif isinstance(trouble, (httpx2.ConnectError, httpx2.ConnectTimeout)):
            error = EndpointError(f"no endpoint answers at {self._url}: {trouble}; start one with: zpoint serve")
            again = attempt < KNOCKS
        elif isinstance(trouble, httpx2.TimeoutException):
            error = EndpointError(f"no answer from {self._url} within {self._timeout:g} s")
        else:
            error = EndpointError(f"the request to {self._url} failed: {str(trouble) or type(trouble).__name__}")
            # The connection broke: every request only reads, so it may be sent again.
            again = isinstance(trouble, (httpx2.NetworkError, httpx2.RemoteProtocolError)) and attempt < ATTEMPTS
        if not again:
            raise error from None
        if asked_for is not None:
            return asked_for + random.uniform(0, FIRST_WAIT)
        # Clients that were turned away together do not come back together.
        return min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)


class Client(_Endpoint):
    """Asks the endpoint at `url`, with the bearer `token` where one is set; an answer may take `timeout` seconds.

    A connection that is refused or breaks and a failure that passes (502, 503, 504) are tried again: after the
    endpoint's Retry-After, else after 0.2 s and twice as long each time, 8 times in all (5 where nobody listens).
    Every method raises EndpointError, a ValueError, with what the endpoint said, or that there is none. Threads may
    share one client.
    """

    def __init__(self, url: str, token: str = "", timeout: float = 60.0):
        super().__init__(url, token, timeout)
        try:
            self._http = httpx2.Client(**self._options)
        except httpx2.InvalidURL as error:
            raise _no_url(url, error) from None

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Images uint8 (n, size, size, channels) of z-points `z` (n, z_dim), floats."""
        return self._ask(requests.decode(z, NPY, requests.array))

    def decode_png(self, z: np.ndarray) -> bytes:
        """One PNG of the images of `z` (n, z_dim): a grid when there are several."""
        return self._ask(requests.decode(z, PNG, requests.content))

    def sample(self, sampler: str = "normal", n: int = 1, seed: int | None = None, **parameters: float) -> np.ndarray:
        """Images uint8 (n, size, size, channels) of `n` z-points of a sampler; a seed repeats them."""
        return self._ask(requests.sample(sampler, n, seed, parameters, NPY, requests.array))

    def sample_png(self, sampler: str = "normal", n: int = 1, seed: int | None = None, **parameters: float) -> bytes:
        """One PNG of what `sample` gives."""
        return self._ask(requests.sample(sampler, n, seed, parameters, PNG, requests.content))

    def sample_with_z(self, sampler: str = "normal", n: int = 1, seed: int | None = None, **parameters: float) -> Pair:
        """What `sample` gives, and its z-points float32 (n, z_dim)."""
        return self._ask(requests.sample(sampler, n, seed, parameters, JSON, requests.images_and_z))

    def encode(self, pictures: Pictures) -> np.ndarray:
        """z-points float32 (n, z_dim) of pictures: image files as bytes, or uint8 (n, H, W, 1 or 3)."""
        return self._ask(requests.encode(pictures))

    def reconstruct(
        self, pictures: Pictures, task: str = "reconstruct", seed: int | None = None, **parameters: float | str
    ) -> np.ndarray:
        """Images uint8 (n, size, size, channels) that the model makes of pictures after a task was done to them."""
        return self._ask(requests.reconstruct(pictures, task, seed, parameters, NPY, requests.array))

    def reconstruct_with_input(
        self, pictures: Pictures, task: str = "reconstruct", seed: int | None = None, **parameters: float | str
    ) -> Pair:
        """What `reconstruct` gives, and what the encoder saw, alike in shape."""
        return self._ask(requests.reconstruct(pictures, task, seed, parameters, JSON, requests.images_and_seen))

    def interpolate(self, ends: np.ndarray, steps: int = 8, path: str = "straight") -> np.ndarray:
        """Images uint8 (steps, size, size, channels) from the first to the second of two z-points `ends` (2, z_dim).

        `path`: one of `model()["paths"]`.
        """
        return self._ask(requests.interpolate(ends, steps, path))

    def model(self) -> dict[str, Any]:
        """What is served: name, version, run_id, recipe, image, z_dim, metrics, samplers, tasks, latents, limits."""
        return self._ask(requests.MODEL)

    def _ask(self, call: Call[T]) -> T:
        for attempt in itertools.count(1):
            try:
                answer = self._http.request(**call.request)
                if answer.is_success:
                    return call.read(answer)
                wait = self._wait_after(answer, attempt)
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                wait = self._wait_after(error, attempt)
            time.sleep(wait)
        raise AssertionError


class AsyncClient(_Endpoint):
    """`Client` for asyncio: the same methods, awaited (`async with AsyncClient(url) as endpoint`)."""

    def __init__(self, url: str, token: str = "", timeout: float = 60.0):
        super().__init__(url, token, timeout)
        try:
            self._http = httpx2.AsyncClient(**self._options)
        except httpx2.InvalidURL as error:
            raise _no_url(url, error) from None

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def decode(self, z: np.ndarray) -> np.ndarray:
        return await self._ask(requests.decode(z, NPY, requests.array))

    async def decode_png(self, z: np.ndarray) -> bytes:
        return await self._ask(requests.decode(z, PNG, requests.content))

    async def sample(
        self, sampler: str = "normal", n: int = 1, seed: int | None = None, **parameters: float
    ) -> np.ndarray:
        return await self._ask(requests.sample(sampler, n, seed, parameters, NPY, requests.array))

    async def sample_png(
        self, sampler: str = "normal", n: int = 1, seed: int | None = None, **parameters: float
    ) -> bytes:
        return await self._ask(requests.sample(sampler, n, seed, parameters, PNG, requests.content))

    async def sample_with_z(
        self, sampler: str = "normal", n: int = 1, seed: int | None = None, **parameters: float
    ) -> Pair:
        return await self._ask(requests.sample(sampler, n, seed, parameters, JSON, requests.images_and_z))

    async def encode(self, pictures: Pictures) -> np.ndarray:
        return await self._ask(requests.encode(pictures))

    async def reconstruct(
        self, pictures: Pictures, task: str = "reconstruct", seed: int | None = None, **parameters: float | str
    ) -> np.ndarray:
        return await self._ask(requests.reconstruct(pictures, task, seed, parameters, NPY, requests.array))

    async def reconstruct_with_input(
        self, pictures: Pictures, task: str = "reconstruct", seed: int | None = None, **parameters: float | str
    ) -> Pair:
        return await self._ask(requests.reconstruct(pictures, task, seed, parameters, JSON, requests.images_and_seen))

    async def interpolate(self, ends: np.ndarray, steps: int = 8, path: str = "straight") -> np.ndarray:
        return await self._ask(requests.interpolate(ends, steps, path))

    async def model(self) -> dict[str, Any]:
        return await self._ask(requests.MODEL)

    async def _ask(self, call: Call[T]) -> T:
        for attempt in itertools.count(1):
            try:
                answer = await self._http.request(**call.request)
                if answer.is_success:
                    return call.read(answer)
                wait = self._wait_after(answer, attempt)
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                wait = self._wait_after(error, attempt)
            await asyncio.sleep(wait)
        raise AssertionError


def _no_url(url: str, error: Exception) -> EndpointError:
    return EndpointError(f"'{url}' is no URL: {error}")


def _is_passing(answer: httpx2.Response) -> bool:
    # HAProxy says 500 in plain text where no replica is up; the endpoint's own 500 is a problem.
    own = answer.headers.get("content-type", "").startswith(PROBLEM)
    return answer.status_code in (502, 503, 504) or (answer.status_code == 500 and not own)


def _retry_after(answer: httpx2.Response) -> float | None:
    """Seconds that the endpoint asks to wait (RFC 9110, 10.2.3: a number or a date); None where it does not."""
    text = answer.headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _detail(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the endpoint answered {answer.status_code} {answer.text[:200].strip()}".strip()
