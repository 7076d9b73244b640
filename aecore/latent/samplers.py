"""Ways to choose z-points. Add one by writing a function and naming it in SAMPLERS.

A sampler is called `f(n, z_dim, latents, generator, **parameters)` and gives float32 `(n, z_dim)`; `latents` are the
statistics that `fit_latent_stats` found on the training images' z-points.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from aecore.latent.density import fit_gaussian, fit_mixture
from aecore.latent.interpolation import attribute_direction

LatentStats = dict[str, Tensor]


N_COMPONENTS = 10  # of the mixture
DIRECTION = "direction."  # before the names of attributes


def fit_latent_stats(
    z: Tensor, attributes: Mapping[str, Tensor] | None = None, *, n_components: int = N_COMPONENTS
) -> LatentStats:
    """What the samplers need to know of z-points `(n, z_dim)`, float32; it is stored with the model.

    `mean` (z_dim,), `covariance` (z_dim, z_dim); with `n_components` the mixture's `gmm_weights` (k,), `gmm_means`
    (k, z_dim) and `gmm_factors` (k, z_dim, z_dim); for each of `attributes` (name to values (n,)) its
    `direction.NAME` (z_dim,), see `attribute_direction`. The covariances are shrunk: see `aecore.latent.density`.
    """
    z = z.double()
    mean, covariance = fit_gaussian(z)
    latents = {"mean": mean, "covariance": covariance}
    if n_components:
        mixture = fit_mixture(z, mean, covariance, n_components)
        latents |= dict(zip(("gmm_weights", "gmm_means", "gmm_factors"), mixture, strict=True))
    for name, values in (attributes or {}).items():
        latents[DIRECTION + name] = attribute_direction(z, values)
    return {name: tensor.float() for name, tensor in latents.items()}


def attribute_directions(latents: LatentStats) -> dict[str, Tensor]:
    """The directions (z_dim,) in `latents` by attribute, but for attributes that did not vary: theirs are zero."""
    named = {name.removeprefix(DIRECTION): value for name, value in latents.items() if name.startswith(DIRECTION)}
    return {name: direction for name, direction in named.items() if direction.any()}


def cube(n: int, z_dim: int, latents: LatentStats, generator: torch.Generator, boundary: float = 1.0) -> Tensor:
    """Uniform in the cube |x_i| < boundary."""
    return (torch.rand(n, z_dim, generator=generator) * 2 - 1) * boundary


def normal(n: int, z_dim: int, latents: LatentStats, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """N(0, temperature squared), the prior of a VAE."""
    return torch.randn(n, z_dim, generator=generator) * temperature


def sphere(n: int, z_dim: int, latents: LatentStats, generator: torch.Generator, radius: float | None = None) -> Tensor:
    """Uniform on the sphere of `radius`, by default sqrt(z_dim), where N(0, 1) has its mass."""
    z = torch.randn(n, z_dim, generator=generator)
    return z / z.norm(dim=1, keepdim=True) * (z_dim**0.5 if radius is None else radius)


def diagonal(n: int, z_dim: int, latents: LatentStats, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Gaussian with the z-points' mean and per-component sd."""
    z = torch.randn(n, z_dim, generator=generator)
    return latents["mean"] + temperature * z * latents["covariance"].diagonal().sqrt()


def gaussian(n: int, z_dim: int, latents: LatentStats, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Gaussian with the z-points' mean and full covariance."""
    covariance = latents["covariance"].double()
    sd = covariance.diagonal().sqrt().clamp_min(1e-20)
    # The ridge covers what storing it in float32 cut off, and components that never vary.
    correlation = covariance / torch.outer(sd, sd) + 1e-4 * torch.eye(z_dim, dtype=torch.float64)
    factor = (sd[:, None] * torch.linalg.cholesky(correlation)).float()
    return latents["mean"] + temperature * torch.randn(n, z_dim, generator=generator) @ factor.T


def gmm(n: int, z_dim: int, latents: LatentStats, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Mixture of Gaussians with full covariances; `temperature` scales the distance to the components' means."""
    if "gmm_weights" not in latents:
        raise ValueError("this model was stored without a mixture: sampler gmm needs one trained anew")
    chosen = torch.multinomial(latents["gmm_weights"], n, replacement=True, generator=generator)
    noise = temperature * torch.randn(n, z_dim, generator=generator)
    z = latents["gmm_means"][chosen]
    for component in chosen.unique().tolist():
        mine = chosen == component
        z[mine] += noise[mine] @ latents["gmm_factors"][component].T
    return z


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "cube": cube, "normal": normal, "sphere": sphere, "diagonal": diagonal, "gaussian": gaussian, "gmm": gmm,
}  # fmt: skip


def sample(name: str, n: int, latents: LatentStats, seed: int, **parameters: float) -> Tensor:
    """`n` z-points `(n, z_dim)` float32 on the CPU; the same seed gives the same points.

    Raises ValueError for an unknown sampler or a parameter that it does not take.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler '{name}': it takes one of {', '.join(SAMPLERS)}")
    generator = torch.Generator().manual_seed(seed)
    try:
        return SAMPLERS[name](n, len(latents["mean"]), latents, generator, **parameters)
    except TypeError as error:
        raise ValueError(f"sampler {name} does not take {', '.join(parameters)}") from error
