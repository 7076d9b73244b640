"""Gaussians and mixtures of them, fitted to z-points; sound with fewer images than components."""

import torch
from torch import Tensor

AXES, PER_COMPONENT = 32, 50  # what a mixture's clusters are sought in; the fewest z-points that make one


def shrunk_covariance(centred: Tensor, weights: Tensor | None = None) -> Tensor:
    """The covariance `(z_dim, z_dim)` of centred points `(n, z_dim)`, shrunk towards m I (Ledoit and Wolf 2004).

    m is the mean variance; how far it shrinks follows from the spread of the points' own outer products, so it is
    little with many points, and positive definite with few. `weights` (n,) >= 0 count each point so many times.
    """
    share = torch.full_like(centred[:, 0], 1 / len(centred)) if weights is None else weights / weights.sum()
    covariance = (centred * share[:, None]).T @ centred
    target = covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)
    distance = (covariance - target).square().sum()
    spread = share.square().sum() * (share @ centred.square().sum(1).square() - covariance.square().sum())
    weight = (spread / distance.clamp_min(1e-300)).clamp(0, 1)
    return (1 - weight) * covariance + weight * target


def fit_gaussian(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(z_dim,)` and covariance `(z_dim, z_dim)` of z-points float64 `(n, z_dim)`.

    Shrunk in units of each component's sd, so towards uncorrelated components that keep their variance.
    """
    mean = z.mean(0)
    sd = (z - mean).square().mean(0).sqrt()
    return mean, shrunk_covariance((z - mean) / sd.clamp_min(1e-12)) * torch.outer(sd, sd)


def fit_mixture(z: Tensor, mean: Tensor, covariance: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights `(k,)`, means `(k, z_dim)` and factors `(k, z_dim, z_dim)` of a mixture; a factor times its transpose is
    a covariance. k is `components`, or fewer where that leaves under PER_COMPONENT z-points for one.

    Expectation maximisation finds the clusters in the whitened first AXES principal axes; each one's covariance is
    then shrunk, in coordinates in which all z-points together are white: so towards the shape of them all.
    """
    from sklearn.mixture import GaussianMixture

    variances, axes = torch.linalg.eigh(covariance)
    scales = variances.clamp_min(1e-9 * variances.mean()).sqrt()
    white = (z - mean) @ (axes / scales)
    leading = white[:, -AXES:].numpy()
    k = max(1, min(components, len(z) // PER_COMPONENT))
    mixture = GaussianMixture(k, reg_covar=1e-2, max_iter=200, random_state=0).fit(leading)
    shares = torch.from_numpy(mixture.predict_proba(leading)).to(z.dtype)
    weights = shares.mean(0)
    centres = (shares.T @ white) / shares.sum(0)[:, None]
    own = [shrunk_covariance(white - centre, share) for centre, share in zip(centres, shares.T, strict=True)]
    factors = (axes * scales) @ torch.linalg.cholesky(torch.stack(own))
    return weights, mean + centres @ (axes * scales).T, factors
