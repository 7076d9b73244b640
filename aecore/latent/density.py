"""Gaussians and Gaussian mixtures fitted to z-points, also to fewer z-points than dimensions."""

from math import log

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

CLUSTER_AXES = 32  # principal axes in which a mixture's clusters are fitted
PER_COMPONENT = 50  # minimum of z-points for each component of a mixture
EPSILON = 1e-30  # replaces 0 in a denominator
SPANNED = 1e-9  # minimum variance of an axis that the z-points span, relative to that of the first axis
EMPTY = 1e-9  # maximum sum of the memberships of a cluster without z-points
VARIANCE_FLOOR = 1e-4  # of a component, relative to the variance of all z-points in the same direction


def shrunk_covariance(centred: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the covariance `(z_dim, z_dim)` of centred points `(n, z_dim)`, shrunk towards m I (Ledoit and Wolf 2004).

    m is the mean variance. The shrinkage follows from the variance of the points' outer products: it is small for many
    points, and for few the result is positive definite. `weights` (n,) >= 0, by default equal, weight the points.
    """
    n = len(centred)
    weights = torch.full_like(centred[:, 0], 1 / n) if weights is None else weights / weights.sum()
    covariance = (centred * weights[:, None]).T @ centred
    target = covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)
    distance = (covariance - target).square().sum()
    error = weights.square().sum() * (weights @ centred.square().sum(1).square() - covariance.square().sum())
    shrinkage = (error / distance.clamp_min(EPSILON)).clamp(0, 1)
    return (1 - shrinkage) * covariance + shrinkage * target


def fit_gaussian(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean `(z_dim,)` and the covariance `(z_dim, z_dim)` of z-points float64 `(n, z_dim)`.

    Each eigenvalue of the correlations is shrunk by itself (Ledoit and Wolf 2020): an AE has most variance along few
    axes, and shrinking all towards their mean, as `shrunk_covariance` does, would fill up the other axes. The sum of
    the variances is kept.
    """
    mean = z.mean(0)
    sd = (z - mean).square().mean(0).sqrt()
    standardised = (z - mean) / sd.clamp_min(EPSILON)
    eigenvalues, axes = torch.linalg.eigh(standardised.T @ standardised / len(z))
    shrunk = shrunk_eigenvalues(eigenvalues.clamp_min(1e-12 * eigenvalues[-1] + EPSILON), max(1, len(z) - 1))
    covariance = (axes * shrunk) @ axes.T * torch.outer(sd, sd)
    return mean, covariance * (sd.square().sum() / covariance.trace().clamp_min(EPSILON))


def shrunk_eigenvalues(eigenvalues: Tensor, n: int) -> Tensor:
    """Shrink the eigenvalues `(p,)` > 0, ascending, of a sample covariance with n degrees of freedom.

    Ledoit and Wolf 2020, Annals of Statistics 48: each by itself, from kernel estimates of the eigenvalues' density and
    of its Hilbert transform.
    """
    p, h, sqrt5 = len(eigenvalues), n ** (-1 / 3), 5**0.5
    nonzero = eigenvalues[max(0, p - n) :]  # n points span n axes at most
    width = h * nonzero
    x = (nonzero[:, None] - nonzero) / width
    kernel = 3 / (4 * sqrt5) * (1 - x.square() / 5).clamp_min(0)  # Epanechnikov
    density = (kernel / width).mean(1)
    log_ratio = ((sqrt5 - x) / (sqrt5 + x)).abs().clamp(1e-12, 1e12).log()
    kernel_hilbert = -3 / (10 * torch.pi) * x + 3 / (4 * sqrt5 * torch.pi) * (1 - x.square() / 5) * log_ratio
    hilbert = (torch.where(x.abs() < 1e3, kernel_hilbert, -1 / (torch.pi * x)) / width).mean(1)
    if p <= n:
        c = p / n
        scaled = torch.pi * c * nonzero
        return nonzero / ((scaled * density).square() + (1 - c - scaled * hilbert).square())
    hilbert_at_0 = 3 / (10 * h**2) + 3 / (4 * sqrt5 * h) * (1 - 1 / (5 * h**2)) * log(
        (1 + sqrt5 * h) / abs(1 - sqrt5 * h)
    )
    null_space = 1 / ((p - n) / n * hilbert_at_0 * (1 / nonzero).mean())  # one value for all axes without variance
    shrunk = nonzero / ((torch.pi * nonzero).square() * (density.square() + hilbert.square()))
    return torch.cat([null_space.expand(p - n), shrunk])


def fit_mixture(z: Tensor, mean: Tensor, covariance: Tensor, n_components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights `(k,)`, means `(k, z_dim)` and covariance factors `(k, z_dim, z_dim)` of a Gaussian mixture.

    `z` float64 (n, z_dim); `mean` and `covariance` are those of `fit_gaussian`. A factor times its transpose is a
    covariance. k is `n_components`, or fewer if these would have under PER_COMPONENT z-points each, or if there are
    fewer distinct z-points.

    One component is the Gaussian of `mean` and `covariance`. For several, expectation maximisation fits the clusters in
    the first CLUSTER_AXES principal axes, whitened. The covariance of each is then shrunk in coordinates in which all
    z-points are white: towards the covariance of them all. Axes that the z-points do not span, such as constant
    dimensions, are left out: their columns of the factors are 0.
    """
    variances, axes = torch.linalg.eigh(covariance)
    max_components = min(n_components, len(z) // PER_COMPONENT)
    if max_components <= 1:
        return z.new_ones(1), mean[None], (axes * variances.clamp_min(0).sqrt())[None]
    spanned = variances >= SPANNED * variances[-1]
    axes, scales = axes[:, spanned], variances[spanned].clamp_min(EPSILON).sqrt()
    white = (z - mean) @ (axes / scales)
    memberships = _fit_clusters(white[:, -CLUSTER_AXES:], max_components)
    weights = memberships.mean(0)
    centres = (memberships.T @ white) / memberships.sum(0)[:, None]
    unit = white.square().mean().sqrt().clamp_min(EPSILON)  # 1, or less for fewer z-points than z_dim
    covariances = [
        shrunk_covariance((white - centre) / unit, membership)
        for centre, membership in zip(centres, memberships.T, strict=True)
    ]
    floor = VARIANCE_FLOOR * torch.eye(white.shape[1], dtype=z.dtype)  # a cluster may be a single outlier
    factors = (axes * scales) @ torch.linalg.cholesky(torch.stack(covariances) + floor)
    return weights, mean + centres @ (axes * scales).T, pad(factors, (0, len(mean) - white.shape[1]))


def _fit_clusters(white: Tensor, k: int) -> Tensor:
    """Return the membership of points `(n, axes)` in up to k clusters, `(n, clusters)`; rows sum to 1.

    Fewer distinct points than k leave clusters empty; these are dropped.
    """
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    points = white.numpy()
    k = min(k, len(np.unique(points, axis=0)))
    with threadpool_limits(1):  # on busy CPUs several BLAS threads are 20 times slower, waiting for each other
        mixture = GaussianMixture(k, reg_covar=VARIANCE_FLOOR, max_iter=200, random_state=0).fit(points)
        memberships = torch.from_numpy(mixture.predict_proba(points))
    return memberships[:, memberships.sum(0) > EMPTY]
