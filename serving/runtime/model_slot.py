"""One model version, ready to answer: what is told of it, its decoder and its encoder; and the slot it stands in."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from aecore.latent.interpolation import principal_axes
from aecore.latent.samplers import LatentStats, attribute_directions
from aecore.model.autoencoder import ImageShape
from serving.http.operations import available_paths, available_samplers

AXES = 32  # principal axes that /v1/model tells


@dataclass(frozen=True)
class ModelInfo:
    """What the endpoint tells of its model, and the statistics `latents` that its samplers draw from."""

    name: str
    version: str
    alias: str
    run_id: str
    recipe: dict[str, Any]
    image: ImageShape
    z_dim: int
    metrics: dict[str, float]
    latents: LatentStats

    @property
    def label(self) -> str:
        """`name/version`, as in X-Zpoint-Model."""
        return f"{self.name}/{self.version}"

    @cached_property
    def samplers(self) -> list[str]:
        return available_samplers(self.latents)

    @cached_property
    def paths(self) -> list[str]:
        return available_paths(self.latents)

    @cached_property
    def latent_space(self) -> dict[str, Any]:
        """The latent statistics as JSON: mean and sd by component, the first principal axes, attribute directions.

        An axis is a unit vector of z_dim numbers with the sd of the training images' z-points along it; a direction
        is how z moves as its attribute grows by 1.
        """
        variances, axes = principal_axes(self.latents["covariance"])
        first = zip(variances[:AXES].sqrt(), axes[:AXES], strict=True)
        return {
            "mean": _short(self.latents["mean"]),
            "sd": _short(self.latents["covariance"].diagonal().sqrt()),
            "axes": [{"sd": _short(sd), "direction": _short(axis)} for sd, axis in first],
            "attributes": {name: _short(each) for name, each in attribute_directions(self.latents).items()},
        }


class ServedModel(Protocol):
    """A loaded model. Both methods raise `serving.runtime.batching.Overloaded` when too much waits."""

    info: ModelInfo

    async def decode(self, z: np.ndarray) -> np.ndarray:
        """Images uint8 (n, size, size, channels) of z-points float32 (n, z_dim)."""
        ...

    async def encode(self, images: np.ndarray) -> np.ndarray:
        """z-points float32 (n, z_dim), the means of the encoder, of images uint8 (n, size, size, channels)."""
        ...


@dataclass
class ModelSlot:
    """What is served. `current` is put whole when the alias moves; a request takes it once.

    `refused`: the version that the alias names and that could not be loaded, and why; None when all is well. It is
    tried again at `retry_at` (time.monotonic): what failed may have been the network.
    """

    current: ServedModel
    refused: dict[str, str] | None = None
    retry_at: float = 0.0


def _short(value: Tensor) -> Any:
    return np.round(value.double().numpy(), 6).tolist()
