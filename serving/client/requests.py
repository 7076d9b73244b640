"""The endpoint's routes as requests, and how their answers are read; what serving.client sends. No network here."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

import httpx2
import numpy as np
from PIL import Image

T = TypeVar("T")
Read = Callable[[httpx2.Response], T]
Pictures = np.ndarray | Sequence[bytes]  # uint8 (n, H, W, 1 or 3), or image files
Pair = tuple[np.ndarray, np.ndarray]
PNG, NPY, JSON = "image/png", "application/x-npy", "application/json"


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and what makes its answer a value."""

    path: str
    accept: str
    read: Read[T]
    content_type: str = ""
    body: bytes | None = None

    @property
    def request(self) -> dict[str, Any]:
        """Arguments for httpx2's `request`."""
        headers = {"Accept": self.accept} | ({"Content-Type": self.content_type} if self.content_type else {})
        return {"method": "POST" if self.body else "GET", "url": self.path, "headers": headers, "content": self.body}


def content(answer: httpx2.Response) -> bytes:
    return answer.content


def array(answer: httpx2.Response) -> np.ndarray:
    return np.load(io.BytesIO(answer.content), allow_pickle=False)


def images_and_z(answer: httpx2.Response) -> Pair:
    told = answer.json()
    return _images(told["images"]), np.array(told["z"], np.float32)


def images_and_seen(answer: httpx2.Response) -> Pair:
    told = answer.json()
    return _images(told["images"]), _images(told["seen"])


MODEL = Call[dict[str, Any]]("/v1/model", JSON, lambda answer: answer.json())


def decode(z: np.ndarray, accept: str, read: Read[T]) -> Call[T]:
    return Call("/v1/decode", accept, read, NPY, _npy(z))


def sample(
    sampler: str, n: int, seed: int | None, parameters: Mapping[str, float], accept: str, read: Read[T]
) -> Call[T]:
    wanted = _options(sampler=sampler, n=n, seed=seed, parameters=dict(parameters))
    return Call("/v1/sample", accept, read, JSON, json.dumps(wanted).encode())


def encode(pictures: Pictures) -> Call[np.ndarray]:
    return _with_pictures("/v1/encode", pictures, {}, {}, NPY, array)


def reconstruct(
    pictures: Pictures, task: str, seed: int | None, parameters: Mapping[str, float | str], accept: str, read: Read[T]
) -> Call[T]:
    return _with_pictures("/v1/reconstruct", pictures, _options(task=task, seed=seed), parameters, accept, read)


def interpolate(ends: np.ndarray, steps: int, path: str) -> Call[np.ndarray]:
    query = urlencode({"steps": steps, "path": path})
    return Call(f"/v1/interpolate?{query}", NPY, array, NPY, _npy(ends))


def _with_pictures(
    path: str, pictures: Pictures, options: Mapping[str, Any], parameters: Mapping[str, float | str], accept: str,
    read: Read[T],
) -> Call[T]:  # fmt: skip
    if isinstance(pictures, np.ndarray):
        query = urlencode({**options, **parameters})
        return Call(f"{path}?{query}" if query else path, accept, read, NPY, _npy(pictures))
    body: dict[str, Any] = {"images": [base64.b64encode(picture).decode() for picture in pictures], **options}
    body |= {"parameters": dict(parameters)} if parameters else {}
    return Call(path, accept, read, JSON, json.dumps(body).encode())


def _options(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values), allow_pickle=False)
    return buffer.getvalue()


def _images(pictures: list[str]) -> np.ndarray:
    images = np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))) for picture in pictures])
    return images if images.ndim == 4 else images[..., None]  # a gray PNG has no axis of channels
