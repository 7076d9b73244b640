"""Apply a request's options: sample, corrupt and interpolate. All of it runs on the CPU, outside the model."""

import base64
import inspect
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch

from aecore.config import TASKS, Section
from aecore.data.image_input import to_pillow
from aecore.latent.interpolation import interpolate
from aecore.latent.points import StoredPoints, split_name
from aecore.latent.samplers import SAMPLERS, LatentStats, sample
from aecore.model.autoencoder import to_float, to_uint8
from aecore.model.corruptions import BatchNoise, corrupt
from serving.http.encoding import encode_png
from serving.http.schemas import (
    InterpolateOptions,
    Neighbour,
    NeighboursOptions,
    PointsAtRequest,
    PointsResponse,
    ReconstructOptions,
    SampleRequest,
    SpriteGrid,
    StoredImage,
    validate,
)

T = TypeVar("T")
CORRUPTION_BLOCK = 64  # images that are corrupted at once


def sampler_parameters(name: str) -> dict[str, Any]:
    """Return the parameters of a sampler and their defaults."""
    parameters = inspect.signature(SAMPLERS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def task_parameters(name: str) -> dict[str, Any]:
    """Return the parameters of a task and their defaults."""
    return {key: field.default for key, field in TASKS[name].model_fields.items() if key != "kind"}


def sample_z(request: SampleRequest, default: str, latents: LatentStats, seed: int) -> np.ndarray:
    """Return `request.n` z-points of its sampler, else of sampler `default`, float32 (n, z_dim).

    Raises ValueError for an unknown sampler, for parameters that it lacks, and for z-points that are not finite.
    """
    name = default if request.sampler is None else request.sampler
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler '{name[:50]}': use one of {', '.join(SAMPLERS)}")
    _check_names(name, sampler_parameters(name), request.parameters)
    parameters = _drop_none(request.parameters)
    if not all(map(math.isfinite, parameters.values())):
        raise ValueError("parameters must be finite numbers")
    z = sample(name, request.n, latents, seed, **parameters).numpy()
    if not np.isfinite(z).all():
        raise ValueError("these parameters yield z-points that are not finite: use smaller ones")
    return np.ascontiguousarray(z, np.float32)


def resolve_task(options: ReconstructOptions) -> Section:
    """Return the task and its parameters as the section of a recipe. Raises ValueError if one is invalid."""
    if options.task not in TASKS:
        raise ValueError(f"unknown task '{options.task[:50]}': use one of {', '.join(TASKS)}")
    _check_names(options.task, task_parameters(options.task), options.parameters)
    try:
        return validate(TASKS[options.task], {**_drop_none(options.parameters), "kind": options.task})
    except ValueError as error:
        raise ValueError(f"task {options.task}: {error}") from None


def _check_names(owner: str, allowed: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Raise ValueError if a sampler or task, `owner`, lacks one of the `parameters`."""
    if unknown := parameters.keys() - allowed.keys():
        names = ", ".join(sorted(unknown))[:100]
        raise ValueError(f"{owner} takes {', '.join(allowed) or 'no parameters'}, not {names}")


def _drop_none(parameters: Mapping[str, T | None]) -> dict[str, T]:
    """Return the parameters without those that are None, as the default of the sphere's radius is in /v1/model."""
    return {name: value for name, value in parameters.items() if value is not None}


def corrupt_images(task: Section, images: np.ndarray, seed: int) -> np.ndarray:
    """Corrupt images uint8 (n, size, size, channels) as `task` does in training; return uint8 alike.

    Raises ValueError if the task does not suit the images, such as recolor and gray ones.
    """
    generator, corrupted = torch.Generator().manual_seed(seed), np.empty_like(images)
    # In blocks: noise and masks of all images of a request would take up to 27 times the images' memory.
    for start in range(0, len(images), CORRUPTION_BLOCK):
        block = images[start : start + CORRUPTION_BLOCK]
        noise = BatchNoise(generator, torch.arange(len(block)), len(block))
        clean = to_float(torch.from_numpy(block))
        corrupted[start : start + len(block)] = to_uint8(corrupt(task, clean, noise))  # pyright: ignore[reportArgumentType]
    return corrupted


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """Return an image uint8 (H, W, 1 or 3) with at most `max_side` pixels a side, its proportions kept."""
    pillow = to_pillow(image)
    pillow.thumbnail((max_side, max_side))
    return np.asarray(pillow).reshape(pillow.height, pillow.width, image.shape[2])


def interpolate_z(
    ends: np.ndarray, options: InterpolateOptions, latents: LatentStats, stored: StoredPoints | None
) -> np.ndarray:
    """Return z-points from ends[0] to ends[1], float32 (steps, z_dim).

    Raises ValueError if the model lacks the path, or if the z-points are not finite.
    """
    start, end = torch.from_numpy(ends)
    z = interpolate(start, end, options.steps, options.path, latents, stored).numpy()
    if not np.isfinite(z).all():
        raise ValueError("these ends are too far apart: the z-points between them are not finite")
    return np.ascontiguousarray(z, np.float32)


def find_neighbours(z: np.ndarray, options: NeighboursOptions, points: StoredPoints) -> list[list[Neighbour]]:
    """Return the nearest stored points of each of the z-points (n, z_dim), nearest first, with their thumbnails."""
    distances, rows = points.nearest(torch.from_numpy(z), options.k)
    return [
        [
            Neighbour(
                **_stored_image(points, row, distance).model_dump(),
                thumbnail=base64.b64encode(encode_png(points.thumbnail(row))).decode(),
            )
            for distance, row in zip(*nearest, strict=True)
        ]
        for nearest in zip(distances.tolist(), rows.tolist(), strict=True)
    ]


def find_on_map(options: PointsAtRequest, points: StoredPoints) -> tuple[np.ndarray, list[StoredImage]]:
    """Return the z-point (1, z_dim) of a position on the map, and the stored points nearest to it there."""
    xy = torch.tensor([[options.x, options.y]])
    distances, rows = points.nearest_on_map(xy, options.k)
    nearest = [_stored_image(points, row, d) for d, row in zip(distances[0].tolist(), rows[0].tolist(), strict=True)]
    return points.z_at(xy, options.k).numpy(), nearest


def _stored_image(points: StoredPoints, row: int, distance: float) -> StoredImage:
    attributes = {name: _finite(float(values[row])) for name, values in points.attributes.items()}
    return StoredImage(index=row, distance=distance, split=split_name(points.split, row), attributes=attributes)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN, which a dataset's missing values are


def describe_points(points: StoredPoints, attribute: str | None, label: str) -> PointsResponse:
    """Return the map of the stored points, with the values of `attribute` if one is named. Raises ValueError."""
    if attribute is not None and attribute not in points.attributes:
        names = ", ".join(points.attributes) or "none"
        raise ValueError(f"unknown attribute '{attribute[:50]}': this model's points have {names[:300]}")
    return PointsResponse(
        model=label,
        map=points.method,
        points=np.round(points.xy.double().numpy(), 5).tolist(),
        splits=[split_name(points.split, row) for row in range(len(points))],
        attributes=list(points.attributes),
        values=None if attribute is None else list(map(_finite, points.attributes[attribute].tolist())),
        sprites=SpriteGrid(columns=points.columns, rows=-(-len(points) // points.columns), size=points.size),
    )
