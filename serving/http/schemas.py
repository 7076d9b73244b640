"""What a request may ask for beside its z-points or pictures, checked: one section for each route.

A JSON body names options beside `z` or `images`; with another body they are the URL's query, where what is no
option of the route is a parameter of its sampler or task: `?task=denoise&sigma=0.4&seed=1`.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aecore.config import TASKS, Section
from aecore.latent.interpolation import PATHS
from aecore.latent.samplers import SAMPLERS, LatentStats, sample
from aecore.model.autoencoder import to_float, to_uint8
from aecore.model.corruptions import BatchNoise, corrupt

SEED = "repeats what is drawn; without one X-Zpoint-Seed tells it"


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Decode(Options):
    """None: z-points are all there is."""


class Sample(Options):
    sampler: str = Field(default="normal", description=f"one of {', '.join(SAMPLERS)}")
    n: int = Field(default=1, strict=True, ge=1, description="how many z-points")
    seed: int | None = Field(default=None, strict=True, ge=0, lt=2**63, description=SEED)
    parameters: dict[str, float] = Field(default={}, description="the sampler's own, see /v1/model")


class Encode(Options):
    """None: pictures are all there is."""


class Reconstruct(Options):
    task: str = Field(default="reconstruct", description=f"one of {', '.join(TASKS)}")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description=SEED)
    parameters: dict[str, float | str] = Field(default={}, description="the task's own, see /v1/model")


class Interpolate(Options):
    steps: int = Field(default=8, ge=2, description="how many z-points, both ends included")
    path: str = Field(default="straight", description=f"one of {', '.join(PATHS)}, see /v1/model")


T = TypeVar("T", bound=Options)


def check(kind: type[T], values: object) -> T:
    """`values` as the options `kind`. Raises ValueError that names every wrong key in one line."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(_one_line(error)) from None


def from_query(kind: type[T], query: dict[str, str]) -> T:
    """The options of a URL's query; keys that are no option go to `parameters`, where the route has them."""
    known = {key: value for key, value in query.items() if key in kind.model_fields}
    others = {key: value for key, value in query.items() if key not in known}
    takes_more = "parameters" in kind.model_fields and "parameters" not in known
    return check(kind, known | ({"parameters": others} if takes_more else others))


def sampler_parameters(name: str) -> dict[str, Any]:
    """The parameters of a sampler and their defaults."""
    given = inspect.signature(SAMPLERS[name]).parameters.values()
    return {p.name: p.default for p in given if p.default is not p.empty}


def task_parameters(name: str) -> dict[str, Any]:
    """The parameters of a task and their defaults."""
    return {key: field.default for key, field in TASKS[name].model_fields.items() if key != "kind"}


def draw(wanted: Sample, latents: LatentStats, seed: int) -> np.ndarray:
    """The z-points float32 (n, z_dim) that `wanted` names. Raises ValueError for what the sampler does not take."""
    if wanted.sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler '{wanted.sampler[:50]}': it takes one of {', '.join(SAMPLERS)}")
    known = sampler_parameters(wanted.sampler)
    if unknown := set(wanted.parameters) - set(known):
        takes = ", ".join(known) or "no parameters"
        raise ValueError(f"{wanted.sampler} takes {takes}, not {', '.join(sorted(unknown))[:100]}")
    if not all(map(math.isfinite, wanted.parameters.values())):
        raise ValueError("parameters must be finite numbers")
    z = sample(wanted.sampler, wanted.n, latents, seed, **wanted.parameters).numpy()
    if not np.isfinite(z).all():
        raise ValueError("these parameters give z-points that are not finite")
    return np.ascontiguousarray(z, np.float32)


def check_task(wanted: Reconstruct) -> Section:
    """The task that `wanted` names, as a recipe's section. Raises ValueError in one line."""
    if wanted.task not in TASKS:
        raise ValueError(f"unknown task '{wanted.task[:50]}': it takes one of {', '.join(TASKS)}")
    try:
        return TASKS[wanted.task].model_validate({**wanted.parameters, "kind": wanted.task})
    except ValidationError as error:
        raise ValueError(f"task {wanted.task}: {_one_line(error)}") from None


def do_task(task: Section, images: np.ndarray, seed: int) -> np.ndarray:
    """What the encoder sees when a task is done to uint8 images (n, size, size, channels); uint8 as well.

    Raises ValueError for a task that these images do not suit.
    """
    clean = to_float(torch.from_numpy(images))
    draws = BatchNoise(torch.Generator().manual_seed(seed), torch.arange(len(images)), len(images))
    return to_uint8(corrupt(task, clean, draws)).numpy()  # pyright: ignore[reportArgumentType]


def interpolate(ends: np.ndarray, wanted: Interpolate, latents: LatentStats) -> np.ndarray:
    """The z-points float32 (steps, z_dim) from ends[0] to ends[1]. Raises ValueError for a path that is not there."""
    if wanted.path not in (known := available_paths(latents)):
        raise ValueError(f"unknown path '{wanted.path[:50]}': this model takes {', '.join(known)}")
    first, last = torch.from_numpy(ends)
    z = PATHS[wanted.path](first, last, wanted.steps, _points(latents)).numpy()
    if not np.isfinite(z).all():
        raise ValueError("these ends are too far apart: the way between them is not finite")
    return np.ascontiguousarray(z, np.float32)


def available_samplers(latents: LatentStats) -> list[str]:
    """The samplers that find what they need in `latents`."""
    return [name for name in SAMPLERS if _works(lambda name=name: sample(name, 1, latents, 0))]


def available_paths(latents: LatentStats) -> list[str]:
    """The paths that find what they need in `latents`."""
    # Without stored z-points of real images there is only their mean, which is no way to go.
    return [name for name in PATHS if "points" in latents or name != "neighbours"]


def _points(latents: LatentStats) -> torch.Tensor:
    return latents.get("points", latents["mean"][None])


def _works(call: Callable[[], Any]) -> bool:
    try:
        call()
    except ValueError:
        return False
    return True


def _one_line(error: ValidationError) -> str:
    parts = (f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors())
    return "; ".join(parts)[:500]
