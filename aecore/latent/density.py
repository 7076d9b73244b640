"""Gaussians and mixtures of them, fitted to z-points; sound with fewer images than components."""

from math import log

import torch
from torch import Tensor

AXES = 32  # where a mixture's clusters are sought
PER_COMPONENT = 50  # z-points that there should be for each
TINY = 1e-30  # in the place of 0 in a denominator
FLOOR = 1e-4  # of a cluster's variances, as a share of all z-points' variance in the same direction


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
    weight = (spread / distance.clamp_min(TINY)).clamp(0, 1)
    return (1 - weight) * covariance + weight * target


def fit_gaussian(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(z_dim,)` and covariance `(z_dim, z_dim)` of z-points float64 `(n, z_dim)`.

    The correlations' eigenvalues are shrunk as Ledoit and Wolf (2020) say, each for itself: most variance of an AE lies
    along few axes, and drawing all towards the mean, as in `shrunk_covariance`, would fill up the others. The sum of
    the components' variances stays as it is.
    """
    mean = z.mean(0)
    sd = (z - mean).square().mean(0).sqrt()
    unit = (z - mean) / sd.clamp_min(TINY)
    eigenvalues, axes = torch.linalg.eigh(unit.T @ unit / len(z))
    shrunk = shrunk_eigenvalues(eigenvalues.clamp_min(1e-12 * eigenvalues[-1] + TINY), max(1, len(z) - 1))
    covariance = (axes * shrunk) @ axes.T * torch.outer(sd, sd)
    return mean, covariance * (sd.square().sum() / covariance.trace().clamp_min(TINY))


def shrunk_eigenvalues(eigenvalues: Tensor, n: int) -> Tensor:
    """Eigenvalues `(p,)` > 0, in ascending order, of a sample covariance with n degrees of freedom, shrunk each for
    itself by their density and its Hilbert transform, both estimated (Ledoit and Wolf 2020, Annals of Statistics 48).
    """
    p, h, root = len(eigenvalues), n ** (-1 / 3), 5**0.5
    known = eigenvalues[max(0, p - n) :]
    width = h * known
    x = (known[:, None] - known) / width
    density = (3 / (4 * root) * (1 - x.square() / 5).clamp_min(0) / width).mean(1)
    edge = ((root - x) / (root + x)).abs().clamp(1e-12, 1e12).log()
    near = -3 / (10 * torch.pi) * x + 3 / (4 * root * torch.pi) * (1 - x.square() / 5) * edge
    hilbert = (torch.where(x.abs() < 1e3, near, -1 / (torch.pi * x)) / width).mean(1)
    if p <= n:
        c = p / n
        bend = (torch.pi * c * known * density).square() + (1 - c - torch.pi * c * known * hilbert).square()
        return known / bend
    below = 3 / (10 * h**2) + 3 / (4 * root * h) * (1 - 1 / (5 * h**2)) * log((1 + root * h) / abs(1 - root * h))
    unknown = 1 / ((p - n) / n * below * (1 / known).mean())  # one value for all the axes that n points cannot show
    shrunk = known / ((torch.pi * known).square() * (density.square() + hilbert.square()))
    return torch.cat([unknown.expand(p - n), shrunk])


def fit_mixture(z: Tensor, mean: Tensor, covariance: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights `(k,)`, means `(k, z_dim)` and factors `(k, z_dim, z_dim)` of a mixture; a factor times its transpose is
    a covariance. k is `components`, or fewer where that leaves under PER_COMPONENT z-points for one.

    Expectation maximisation finds the clusters in the whitened first AXES principal axes; each one's covariance is
    then shrunk, in coordinates in which all z-points together are white: so towards the shape of them all.
    """
    variances, axes = torch.linalg.eigh(covariance)
    scales = (variances.clamp_min(0) + 1e-9 * variances.mean() + TINY).sqrt()
    white = (z - mean) @ (axes / scales)
    shares = _cluster(white[:, -AXES:], max(1, min(components, len(z) // PER_COMPONENT)))
    weights = shares.mean(0)
    centres = (shares.T @ white) / shares.sum(0)[:, None]
    # 1 but where there are fewer z-points than z_dim: then they fill a part of it
    unit = white.square().mean().sqrt().clamp_min(TINY)
    pairs = zip(centres, shares.T, strict=True)
    own = [shrunk_covariance((white - centre) / unit, share) for centre, share in pairs]
    floor = FLOOR * torch.eye(len(mean), dtype=z.dtype)  # a cluster may be a single odd point
    factors = (axes * scales) @ torch.linalg.cholesky(torch.stack(own) + floor)
    return weights, mean + centres @ (axes * scales).T, factors


def _cluster(white: Tensor, k: int) -> Tensor:
    """How much each of the points `(n, axes)` belongs to each of k clusters, `(n, k)`; rows sum to 1."""
    if k == 1:
        return torch.ones_like(white[:, :1])
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    points = white.numpy()
    with threadpool_limits(1):  # on busy processors the threads' waiting for each other takes 20 times as long
        mixture = GaussianMixture(k, reg_covar=FLOOR, max_iter=200, random_state=0).fit(points)
        return torch.from_numpy(mixture.predict_proba(points))
