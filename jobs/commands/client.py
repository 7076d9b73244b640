"""The commands that query a served endpoint and write what it answers: a PNG to look at, or a .npy to compute with."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from aecore.data.io import write_atomic
from aecore.image_grid import grid, to_png
from cluster.settings import settings
from serving.client import Client

OPTIONS = ("n", "sampler", "seed", "task")


def decode(url: str, out: str, z: str) -> dict[str, Any]:
    """Decode the z-points in the .npy file `z`; the PNG is a grid of them."""
    _check_out(out)
    points = _read_npy(z, "z-points")
    if points.ndim != 2:
        raise ValueError(f"{z} has the shape {points.shape}: it takes z-points, (n, z_dim)")
    with _client(url) as client:
        return _write(out, client.decode_png(points) if _is_png(out) else client.decode(points), len(points))


def sample(url: str, out: str, sampler: str, n: int, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Have `n` z-points chosen and decoded; `overrides` are the sampler's parameters, as in ["boundary=3"]."""
    _check_out(out)
    given = {name: _number(name, value) for name, value in _pairs(overrides)}
    with _client(url) as client:
        ask = client.sample_png if _is_png(out) else client.sample
        return _write(out, ask(sampler, n, seed, **given), n)


def reconstruct(url: str, out: str, picture: str, task: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Do a task to a picture and have it rebuilt; the PNG shows what the encoder saw above what came back.

    `picture`: an image file, or a .npy of several, uint8 (n, height, width, 1 or 3). `overrides`: the task's own.
    """
    _check_out(out)
    pictures = _read_pictures(picture)
    with _client(url) as client:
        images, seen = client.reconstruct_with_input(pictures, task, seed, **dict(_pairs(overrides)))
    return _write(out, to_png(grid([seen, images])) if _is_png(out) else images, len(images))


def interpolate(url: str, out: str, start: str, end: str, steps: int, path: str) -> dict[str, Any]:
    """Go from one end to the other and decode each step; an end is an image file or a .npy of one z-point."""
    _check_out(out)
    with _client(url) as client:
        images = client.interpolate(np.stack([_end(client, start), _end(client, end)]), steps, path)
    return _write(out, to_png(grid([images])) if _is_png(out) else images, len(images))


def _client(url: str) -> Client:
    return Client(url, settings().token)


def _end(client: Client, path: str) -> np.ndarray:
    z = _read_npy(path, "a z-point") if path.endswith(".npy") else client.encode(_read_pictures(path))
    if z.ndim not in (1, 2) or z.size != z.shape[-1]:
        raise ValueError(f"{path} has the shape {z.shape}: an end takes one z-point, (z_dim,) or (1, z_dim)")
    return z.reshape(-1).astype(np.float32)


def _read_pictures(path: str) -> np.ndarray | list[bytes]:
    return _read_npy(path, "pictures") if path.endswith(".npy") else [Path(path).read_bytes()]


def _read_npy(path: str, of: str) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no .npy file of {of}: {error}") from error


def _pairs(overrides: list[str]) -> list[tuple[str, str]]:
    pairs = [(name, value) for name, _, value in (override.partition("=") for override in overrides)]
    for name, value in pairs:
        if not name or not value:
            raise ValueError(f"'{name}{value}' is no parameter: it takes name=value")
        if name in OPTIONS:
            raise ValueError(f"{name} is an option: give --{name} {value}")
    return pairs


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} takes a number, not '{value}'") from None


def _check_out(out: str) -> None:
    if Path(out).suffix not in (".png", ".npy"):
        raise ValueError(f"--out takes a .png or .npy file, not '{out}'")


def _is_png(out: str) -> bool:
    return out.endswith(".png")


def _write(out: str, answer: bytes | np.ndarray, n: int) -> dict[str, Any]:
    if isinstance(answer, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, answer)
        answer = buffer.getvalue()
    write_atomic(pafs.LocalFileSystem(), str(Path(out).absolute()), answer)
    return {"out": out, "images": n}
