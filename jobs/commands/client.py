"""The commands that query an endpoint and write the images to a PNG or a .npy file, on a disk or on S3."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from aecore.data.io import write_atomic
from aecore.image_grid import grid, to_png
from cluster.settings import settings
from cluster.storage import check_uri, open_uri
from serving.client import Client
from serving.client.client import to_npy

MIN_COLUMNS = 16  # of a PNG; fewer images are one row
OPTIONS = ("n", "sampler", "seed", "task")


def decode(url: str, out: str, z_path: str) -> dict[str, Any]:
    """Decode the z-points in the .npy file `z_path`, float (n, z_dim), and write their images to `out`."""
    _check_out(out)
    z = _read_npy(z_path, "z-points")
    if z.ndim != 2:
        raise ValueError(f"{z_path} has the shape {z.shape}, but decode takes z-points, (n, z_dim)")
    with _client(url) as client:
        return _write(out, client.decode_png(z) if _is_png(out) else to_npy(client.decode(z)), len(z))


def sample(url: str, out: str, sampler: str | None, n: int, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Sample `n` z-points, decode them, and write their images to `out`.

    `overrides` are parameters of the sampler, as in ["boundary=3"].
    """
    _check_out(out)
    parameters: dict[str, Any] = {name: _parse_float(name, value) for name, value in _parse_parameters(overrides)}
    with _client(url) as client:
        if _is_png(out):
            return _write(out, client.sample_png(sampler, n, seed, **parameters), n)
        return _write(out, to_npy(client.sample(sampler, n, seed, **parameters)), n)


def reconstruct(url: str, out: str, image_path: str, task: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Corrupt images by a task, reconstruct them, and write to `out`; a PNG has the corrupted images above.

    `image_path` is an image file, or a .npy of several images, uint8 (n, height, width, 1 or 3). `overrides` are
    parameters of the task, as in ["sigma=0.4"].
    """
    _check_out(out)
    images = _read_images(image_path)
    with _client(url) as client:
        parameters = dict(_parse_parameters(overrides))
        reconstructed = client.reconstruct(images, task, seed, **parameters)
    assert reconstructed.corrupted is not None
    data = to_png(grid(_wrap([reconstructed.corrupted, reconstructed]))) if _is_png(out) else to_npy(reconstructed)
    return _write(out, data, len(reconstructed))


def interpolate(url: str, out: str, start: str, end: str, steps: int, path: str) -> dict[str, Any]:
    """Decode `steps` z-points from `start` to `end` along `path`, and write their images to `out`.

    `start` and `end` are image files or .npy files of one z-point.
    """
    _check_out(out)
    with _client(url) as client:
        images = client.interpolate([_read_end(start), _read_end(end)], steps, path)
    return _write(out, to_png(grid(_wrap([images]))) if _is_png(out) else to_npy(images), len(images))


def _wrap(rows: list[np.ndarray]) -> list[np.ndarray]:
    """Return rows of n images each as shorter ones for a grid that is about square, if n is above MIN_COLUMNS.

    The rows of the first images come first, in their order, then those of the next images.
    """
    n = len(rows[0])
    columns = max(MIN_COLUMNS, math.ceil(math.sqrt(len(rows) * n)))
    return [row[start : start + columns] for start in range(0, n, columns) for row in rows]


def _client(url: str) -> Client:
    return Client(url, settings().token)


def _read_end(path: str) -> np.ndarray | str:
    if not path.endswith(".npy"):
        return path
    z = _read_npy(path, "a z-point")
    if z.ndim not in (1, 2) or z.size != z.shape[-1]:
        raise ValueError(f"{path} has the shape {z.shape}, but an end takes one z-point, (z_dim,) or (1, z_dim)")
    return z.reshape(-1)


def _read_images(path: str) -> np.ndarray | str:
    return _read_npy(path, "images") if path.endswith(".npy") else path


def _read_npy(path: str, content: str) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a .npy file of {content}: {error}") from error


def _parse_parameters(overrides: list[str]) -> list[tuple[str, str]]:
    parameters = []
    for override in overrides:
        name, _, value = override.partition("=")
        if not name or not value:
            raise ValueError(f"'{override}' is not a parameter: write it as name=value")
        if name in OPTIONS:
            raise ValueError(f"{name} is an option: write it as --{name} {value}")
        parameters.append((name, value))
    return parameters


def _parse_float(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} takes a number, not '{value}'") from None


def _check_out(out: str) -> None:
    if Path(out).suffix not in (".png", ".npy"):
        raise ValueError(f"--out takes a .png or .npy file, not '{out}'")
    check_uri(out)


def _is_png(out: str) -> bool:
    return out.endswith(".png")


def _write(out: str, data: bytes, num_images: int) -> dict[str, Any]:
    write_atomic(*open_uri(out), data)
    return {"out": out, "images": num_images}
