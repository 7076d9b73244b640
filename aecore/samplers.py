"""Ways to choose z-points. Add one by writing a function and naming it in SAMPLERS.

A sampler is called `f(n, z_dim, latents, generator, **parameters)` and gives float32 `(n, z_dim)`; `latents` are the
statistics that `fit_latents` found on the training images' z-points.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Latents = dict[str, Tensor]


def fit_latents(z: Tensor) -> Latents:
    """Mean `(z_dim,)` and covariance `(z_dim, z_dim)` of z-points `(n, z_dim)`, float32.

    The covariance is shrunk towards its diagonal by z_dim / (n + z_dim), so that it stays positive definite when
    there are fewer images than components (the form of Ledoit and Wolf 2004 with a fixed weight).
    """
    z = z.double()
    mean, z_dim = z.mean(0), z.shape[1]
    centred = z - mean
    covariance = centred.T @ centred / max(1, len(z) - 1)
    weight = z_dim / (len(z) + z_dim)
    covariance = (1 - weight) * covariance + weight * torch.diag(covariance.diagonal())
    return {"mean": mean.float(), "covariance": covariance.float()}


def cube(n: int, z_dim: int, latents: Latents, generator: torch.Generator, boundary: float = 1.0) -> Tensor:
    """Uniform in the cube |x_i| < boundary."""
    return (torch.rand(n, z_dim, generator=generator) * 2 - 1) * boundary


def normal(n: int, z_dim: int, latents: Latents, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """N(0, temperature squared), the prior of a VAE."""
    return torch.randn(n, z_dim, generator=generator) * temperature


def sphere(n: int, z_dim: int, latents: Latents, generator: torch.Generator, radius: float | None = None) -> Tensor:
    """Uniform on the sphere of `radius`, by default sqrt(z_dim), where N(0, 1) has its mass."""
    z = torch.randn(n, z_dim, generator=generator)
    return z / z.norm(dim=1, keepdim=True) * (z_dim**0.5 if radius is None else radius)


def diagonal(n: int, z_dim: int, latents: Latents, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Gaussian with the z-points' mean and per-component sd."""
    z = torch.randn(n, z_dim, generator=generator)
    return latents["mean"] + temperature * z * latents["covariance"].diagonal().sqrt()


def gaussian(n: int, z_dim: int, latents: Latents, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Gaussian with the z-points' mean and full covariance."""
    # The tiny ridge covers components that never vary.
    covariance = latents["covariance"].double()
    ridge = 1e-6 * covariance.diagonal().mean() * torch.eye(z_dim, dtype=torch.float64)
    factor = torch.linalg.cholesky(covariance + ridge).float()
    return latents["mean"] + temperature * torch.randn(n, z_dim, generator=generator) @ factor.T


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "cube": cube, "normal": normal, "sphere": sphere, "diagonal": diagonal, "gaussian": gaussian,
}  # fmt: skip


def sample(name: str, n: int, latents: Latents, seed: int, **parameters: float) -> Tensor:
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
