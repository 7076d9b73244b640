"""The client of a served endpoint; needs neither torch nor ray.

with Client("http://127.0.0.1:8000") as endpoint:
    images = endpoint.decode(z)
"""

import io
import json
import time
from typing import Any

import httpx2
import numpy as np

PNG, NPY, JSON = "image/png", "application/x-npy", "application/json"
ATTEMPTS, FIRST_WAIT = 5, 0.2
PROBLEM = "application/problem+json"


class Client:
    """Asks the endpoint at `url`, with the bearer `token` where one is set.

    A refused connection and 503 are tried again, 5 times within 3 seconds. Every method raises ValueError
    with what the endpoint said, or that there is none.
    """

    def __init__(self, url: str, token: str = "", timeout: float = 60.0):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._url = url.rstrip("/")
        try:
            self._http = httpx2.Client(base_url=self._url, headers=headers, timeout=timeout)
        except httpx2.InvalidURL as error:
            raise ValueError(f"'{url}' is no URL: {error}") from None

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Images uint8 (n, size, size, channels) of z-points `z` (n, z_dim), floats."""
        return _read_npy(self._ask("POST", "/v1/decode", NPY, NPY, _write_npy(z)))

    def decode_png(self, z: np.ndarray) -> bytes:
        """One PNG of the images of `z` (n, z_dim): a grid when there are several."""
        return self._ask("POST", "/v1/decode", PNG, NPY, _write_npy(z))

    def sample(self, sampler: str = "normal", n: int = 1, seed: int | None = None, **parameters: float) -> np.ndarray:
        """Images uint8 (n, size, size, channels) of `n` z-points of a sampler; a seed repeats them."""
        return _read_npy(self._ask("POST", "/v1/sample", NPY, JSON, _sample(sampler, n, seed, parameters)))

    def sample_png(self, sampler: str = "normal", n: int = 1, seed: int | None = None, **parameters: float) -> bytes:
        """One PNG of what `sample` gives."""
        return self._ask("POST", "/v1/sample", PNG, JSON, _sample(sampler, n, seed, parameters))

    def model(self) -> dict[str, Any]:
        """What is served: name, version, run_id, recipe, image, z_dim, metrics, samplers, limits."""
        return json.loads(self._ask("GET", "/v1/model", JSON))

    def _ask(self, method: str, path: str, accept: str, content_type: str = "", body: bytes = b"") -> bytes:
        headers = {"Accept": accept} | ({"Content-Type": content_type} if content_type else {})
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
            try:
                answer = self._http.request(method, path, headers=headers, content=body or None)
            except (httpx2.ConnectError, httpx2.RemoteProtocolError, httpx2.ReadError) as error:
                trouble = f"no endpoint answers at {self._url}: {error}; start one with: zpoint serve"
                continue
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise ValueError(f"the request to {self._url} failed: {error or type(error).__name__}") from None
            if answer.is_success:
                return answer.content
            trouble = _detail(answer)
            if not _is_passing(answer):
                break
        raise ValueError(trouble)


def _is_passing(answer: httpx2.Response) -> bool:
    # HAProxy says 500 in plain text where no replica is up; the endpoint's own 500 is a problem.
    own = answer.headers.get("content-type", "").startswith(PROBLEM)
    return answer.status_code in (502, 503, 504) or (answer.status_code == 500 and not own)


def _detail(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the endpoint answered {answer.status_code} {answer.text[:200].strip()}".strip()


def _sample(sampler: str, n: int, seed: int | None, parameters: dict[str, float]) -> bytes:
    wanted: dict[str, Any] = {"sampler": sampler, "n": n, "parameters": parameters}
    return json.dumps(wanted if seed is None else wanted | {"seed": seed}).encode()


def _write_npy(z: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(z), allow_pickle=False)
    return buffer.getvalue()


def _read_npy(body: bytes) -> np.ndarray:
    return np.load(io.BytesIO(body), allow_pickle=False)
