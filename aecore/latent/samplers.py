"""Samplers of z-points. To add one, write a function and list it in SAMPLERS.

A sampler is a function `f(n, z_dim, latents, generator, **parameters)` that returns float32 `(n, z_dim)`; `latents` are
the statistics of the training images' z-points, from `fit_latent_stats`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from aecore.errors import one_line
from aecore.latent.density import fit_gaussian, fit_mixture

LatentStats = dict[str, Tensor]
NUM_COMPONENTS = 10  # of the mixture


def fit_latent_stats(z: Tensor, *, n_components: int = NUM_COMPONENTS) -> LatentStats:
    """Return the statistics of z-points `(n, z_dim)` that the samplers take, float32; they are stored with the model.

    `mean` (z_dim,) and `covariance` (z_dim, z_dim); unless `n_components` is 0 a mixture's `gmm_weights` (k,),
    `gmm_means` (k, z_dim) and `gmm_factors` (k, z_dim, z_dim). Covariances are shrunk: see `aecore.latent.density`.
    """
    z = z.double()
    mean, covariance = fit_gaussian(z)
    latents = {"mean": mean, "covariance": covariance}
    if n_components:
        mixture = fit_mixture(z, mean, covariance, n_components)
        latents |= dict(zip(("gmm_weights", "gmm_means", "gmm_factors"), mixture, strict=True))
    return {name: tensor.float() for name, tensor in latents.items()}


def cube(n: int, z_dim: int, latents: LatentStats, generator: torch.Generator, boundary: float = 1.0) -> Tensor:
    """Sample uniformly from the cube |z_i| < boundary."""
    return (torch.rand(n, z_dim, generator=generator) * 2 - 1) * boundary


def normal(n: int, z_dim: int, latents: LatentStats, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Sample N(0, temperature ** 2); at 1 it is the prior of a VAE."""
    return torch.randn(n, z_dim, generator=generator) * temperature


def sphere(n: int, z_dim: int, latents: LatentStats, generator: torch.Generator, radius: float | None = None) -> Tensor:
    """Sample uniformly from the sphere of `radius`, by default sqrt(z_dim), near which N(0, 1) has its mass."""
    z = torch.randn(n, z_dim, generator=generator)
    return z / z.norm(dim=1, keepdim=True) * (z_dim**0.5 if radius is None else radius)


def diagonal(n: int, z_dim: int, latents: LatentStats, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Sample a Gaussian with the mean and the sd per dimension of the training images' z-points."""
    z = torch.randn(n, z_dim, generator=generator)
    return latents["mean"] + temperature * z * latents["covariance"].diagonal().sqrt()


def gaussian(n: int, z_dim: int, latents: LatentStats, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Sample a Gaussian with the mean and the full covariance of the training images' z-points."""
    covariance = latents["covariance"].double()
    sd = covariance.diagonal().sqrt().clamp_min(1e-20)
    # The ridge keeps it positive definite after storage in float32 and if a dimension never varies.
    correlation = covariance / torch.outer(sd, sd) + 1e-4 * torch.eye(z_dim, dtype=torch.float64)
    factor = (sd[:, None] * torch.linalg.cholesky(correlation)).float()
    return latents["mean"] + temperature * torch.randn(n, z_dim, generator=generator) @ factor.T


def gmm(n: int, z_dim: int, latents: LatentStats, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Sample a mixture of Gaussians with full covariances; `temperature` scales the distance to a component's mean.

    Raises ValueError if the model was stored without a mixture.
    """
    if "gmm_weights" not in latents:
        raise ValueError("this model was stored without a mixture, which sampler gmm needs: train the model again")
    components = torch.multinomial(latents["gmm_weights"], n, replacement=True, generator=generator)  # (n,)
    noise = temperature * torch.randn(n, z_dim, generator=generator)
    z = latents["gmm_means"][components]
    for component in components.unique().tolist():
        rows = components == component
        z[rows] += noise[rows] @ latents["gmm_factors"][component].T
    return z


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "cube": cube, "normal": normal, "sphere": sphere, "diagonal": diagonal, "gaussian": gaussian, "gmm": gmm,
}  # fmt: skip


def available_samplers(latents: LatentStats) -> list[str]:
    """Return the samplers whose statistics are in `latents`: a model that was stored without a mixture lacks gmm."""
    return [name for name in SAMPLERS if name != "gmm" or "gmm_weights" in latents]


def sample(name: str, n: int, latents: LatentStats, seed: int, **parameters: float) -> Tensor:
    """Return `n` z-points of sampler `name`, float32 `(n, z_dim)` on the CPU; a function of its arguments.

    Raises ValueError if the sampler is unknown, does not take an argument or needs statistics that `latents` lack.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler '{name}': it takes one of {', '.join(SAMPLERS)}")
    generator = torch.Generator().manual_seed(seed)
    try:
        return SAMPLERS[name](n, len(latents["mean"]), latents, generator, **parameters)
    except TypeError as error:
        raise ValueError(f"sampler {name} does not take these arguments: {one_line(error, 120)}") from error
