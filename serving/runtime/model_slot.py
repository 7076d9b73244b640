"""A model version ready to serve (`ServedModel`), its description (`ModelInfo`), and the slot that holds it."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from aecore.latent.directions import attribute_directions, principal_axes
from aecore.latent.interpolation import available_paths
from aecore.latent.points import StoredPoints
from aecore.latent.samplers import LatentStats, available_samplers
from aecore.model.autoencoder import ImageShape

MAX_AXES = 32  # principal axes in /v1/model


@dataclass(frozen=True)
class ModelInfo:
    """The description of a served model that /v1/model returns, and the statistics that its samplers draw from.

    `sampler` is the one of requests that name none; `points` are z-points of real images, None if none were stored.
    """

    name: str
    version: str
    alias: str
    run_id: str
    recipe: dict[str, Any]
    image: ImageShape
    z_dim: int
    metrics: dict[str, float]
    latents: LatentStats
    sampler: str = "normal"
    points: StoredPoints | None = None

    @property
    def label(self) -> str:
        """`name/version`, as in X-Zpoint-Model."""
        return f"{self.name}/{self.version}"

    @cached_property
    def finite_metrics(self) -> dict[str, float]:
        """The metrics that JSON can hold."""
        return {name: value for name, value in self.metrics.items() if math.isfinite(value)}

    @cached_property
    def samplers(self) -> list[str]:
        return available_samplers(self.latents)

    @cached_property
    def paths(self) -> list[str]:
        return available_paths(self.points)

    @cached_property
    def latent_space(self) -> dict[str, Any]:
        """The latent statistics as JSON: mean and sd per dimension, principal axes, attribute directions, mixture.

        An axis is a unit vector of z_dim numbers with the sd of the training images' z-points along it; a direction
        is the change of z as its attribute grows by 1. z-points of the sampler gmm have a mean squared distance of
        mean_square + temperature ** 2 * variance from the origin.
        """
        variances, axes = principal_axes(self.latents["covariance"])
        first_axes = zip(variances[:MAX_AXES].sqrt(), axes[:MAX_AXES], strict=True)
        return {
            "mean": _rounded(self.latents["mean"]),
            "sd": _rounded(self.latents["covariance"].diagonal().sqrt()),
            "axes": [{"sd": _rounded(sd), "direction": _rounded(axis)} for sd, axis in first_axes],
            "attributes": {name: _rounded(vector) for name, vector in attribute_directions(self.latents).items()},
            "mixture": self._mixture() if "gmm_weights" in self.latents else None,
        }

    def _mixture(self) -> dict[str, float]:
        weights = self.latents["gmm_weights"] / self.latents["gmm_weights"].sum()
        return {
            "mean_square": _rounded(weights @ self.latents["gmm_means"].square().sum(1)),
            "variance": _rounded(weights @ self.latents["gmm_factors"].square().sum((1, 2))),
        }


class ServedModel(Protocol):
    """A loaded model. Both methods raise `serving.runtime.admission.Overloaded` if the queue is too long."""

    info: ModelInfo

    async def decode(self, z: np.ndarray, /) -> np.ndarray:
        """Return the images uint8 (n, size, size, channels) of z-points float32 (n, z_dim)."""
        ...

    async def encode(self, images: np.ndarray, /) -> np.ndarray:
        """Return the z-points float32 (n, z_dim), the encoder's means, of images uint8 (n, size, size, channels)."""
        ...


@dataclass
class ModelSlot:
    """The model that is served for one alias.

    When the alias moves, `current` is replaced in one assignment; a request reads it once.

    `refused`: the version that the alias names if it could not be loaded, and the reason; else None. Loading it is
    tried again at `retry_at` (time.monotonic), since the cause may have been the network.
    """

    current: ServedModel
    refused: dict[str, str] | None = None
    retry_at: float = 0.0


def _rounded(values: Tensor) -> Any:
    return np.round(values.double().numpy(), 6).tolist()
