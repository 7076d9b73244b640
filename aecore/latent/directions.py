"""Directions along which images change: principal axes of z-points, and the change of z with an attribute."""

from collections.abc import Mapping

import torch
from torch import Tensor

from aecore.latent.samplers import LatentStats

DIRECTION_PREFIX = "direction."  # before an attribute's name


def principal_axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variances `(z_dim,)`, descending, and the unit axes `(z_dim, z_dim)`, one a row, both float32."""
    variances, axes = torch.linalg.eigh(covariance.double())
    return variances.flip(0).clamp_min(0).float(), axes.T.flip(0).float()


def attribute_direction(z: Tensor, values: Tensor) -> Tensor:
    """Return the change of z per unit of an attribute, `(z_dim,)`: the regression slope of each dimension.

    `z` (n, z_dim), `values` (n,). For an attribute of 0 and 1 it is the difference of the two groups' means (Larsen
    2016). Zeros if all values are equal. Rows without a finite value do not count.
    """
    has_value = values.isfinite()
    z, values = z[has_value], values[has_value].to(z.dtype)
    values = values - values.mean()
    return values @ (z - z.mean(0)) / values.square().sum().clamp_min(1e-12)


def fit_directions(z: Tensor, attributes: Mapping[str, Tensor]) -> LatentStats:
    """Return a `direction.NAME` (z_dim,) of z-points `(n, z_dim)` for each attribute (name to values (n,)), float32."""
    z = z.double()
    return {DIRECTION_PREFIX + name: attribute_direction(z, values).float() for name, values in attributes.items()}


def attribute_directions(latents: LatentStats) -> dict[str, Tensor]:
    """Return the directions (z_dim,) by attribute, in the order of their names: a file's tensors have none.

    Without those that are zero, since the attribute never varied, and those of earlier versions that are not finite.
    """
    return {
        name.removeprefix(DIRECTION_PREFIX): tensor
        for name, tensor in sorted(latents.items())
        if name.startswith(DIRECTION_PREFIX) and tensor.any() and tensor.isfinite().all()
    }
