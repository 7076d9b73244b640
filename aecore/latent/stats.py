"""Statistics of z-points: moments, principal axes, distance from normal, and whether they are one region."""

from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from aecore.data.shuffle import evenly_spaced
from aecore.latent.directions import principal_axes
from aecore.model.autoencoder import ACTIVE_VARIANCE, DiagonalGaussian

WITHIN_LIMIT = 20.0  # the bound of `ZStats.within`
CORE_SDS = 2.0  # the core of a distribution: its values within so many sds of the median
NORMAL_IQR = 1.34898  # interquartile range of N(0, 1)
NUM_NEIGHBOURS = 10  # of the graph whose connected components are fragments
MIN_FRAGMENT = 0.01  # fraction of the z-points in a fragment
SILHOUETTE_MARGIN = 0.05  # above a Gaussian's silhouette, z-points count as clustered
STRUCTURE_POINTS = 2_000
PERPLEXITY = 30.0  # of t-SNE, at most
CLUSTER_COUNTS = range(2, 11)


@dataclass(frozen=True)
class ZStats:
    """Statistics of z-points `(n, z_dim)`: float64 arrays `(z_dim,)` unless the field says otherwise."""

    mean: np.ndarray
    sd: np.ndarray
    skew: np.ndarray
    kurtosis: np.ndarray  # excess: 0 for a normal distribution
    core_distance: np.ndarray  # see `core_distance`
    kl: np.ndarray  # nats, mean over images; zeros for an AE
    active: np.ndarray  # bool: the mean of q(z|x) has a variance over 0.01 over the images (Burda 2016, eq. 6)
    radii: np.ndarray  # (n,) distances from the origin
    within: float  # fraction of all n * z_dim coordinates with |z_i| < 20
    correlation: np.ndarray  # (z_dim, z_dim); 0 for a dimension that never varies
    variances: np.ndarray  # of the principal axes, descending

    def axes_for(self, fraction: float) -> int:
        """Return how many principal axes hold `fraction` of the variance, 1 for equal z-points."""
        return int(np.searchsorted(np.cumsum(self.variances), (fraction - 1e-12) * self.variances.sum()) + 1)

    def summary(self) -> dict[str, float]:
        """Return scalars for a table, JSON or MLflow."""
        z_dim = len(self.mean)
        off_diagonal = self.correlation[~np.eye(z_dim, dtype=bool)]
        return {
            "z_dim": z_dim,
            "mean_abs_mean": float(np.abs(self.mean).mean()),
            "centre_radius": float(np.linalg.norm(self.mean)),
            "mean_sd": float(self.sd.mean()),
            "mean_abs_skew": float(np.abs(self.skew).mean()),
            "mean_kurtosis": float(self.kurtosis.mean()),
            "core_distance": float(self.core_distance.mean()),
            "kl": float(self.kl.sum()),
            "active_units": int(self.active.sum()),
            "mean_radius": float(self.radii.mean()),
            "sqrt_z_dim": z_dim**0.5,
            "within_20": self.within,
            "mean_abs_correlation": float(np.abs(off_diagonal).mean()),
            "axes_90": self.axes_for(0.90),
            "axes_99": self.axes_for(0.99),
        }


def compute_z_stats(posterior: DiagonalGaussian, z: Tensor) -> ZStats:
    """Compute the statistics of z-points `z` (n, z_dim) that were drawn from `posterior`, the q(z|x) of n images."""
    points = z.double().cpu()
    x, mean, sd = points.numpy(), points.mean(0), points.std(0, correction=0)
    standardised = (points - mean) / sd.clamp_min(1e-12)
    variances, _ = principal_axes(torch.cov(points.T, correction=0))
    return ZStats(
        mean=mean.numpy(),
        sd=sd.numpy(),
        skew=standardised.pow(3).mean(0).numpy(),
        kurtosis=standardised.pow(4).mean(0).sub(3).numpy(),
        core_distance=core_distance(x),
        kl=posterior.kl().double().mean(0).cpu().numpy(),
        active=(posterior.mean.double().var(0) > ACTIVE_VARIANCE).cpu().numpy(),
        radii=np.linalg.norm(x, axis=1),
        within=float((np.abs(x) < WITHIN_LIMIT).mean()),
        correlation=(standardised.T @ standardised / len(x)).numpy(),
        variances=variances.double().numpy(),
    )


def core_distance(x: np.ndarray) -> np.ndarray:
    """Return how far the core of each dimension of `x` (n, z_dim) is from normal, float64 (z_dim,) in [0, 1].

    It is the Kolmogorov-Smirnov distance between the values within 2 sds of the median and a normal distribution
    truncated there; median and sd come from the quartiles. Typical values: 0 for normal, about 0.05 for uniform, over
    0.1 for two peaks, about 0.8 / sqrt(n) for n normal values.
    """
    from scipy.special import ndtr  # a start of a training or a replica does not wait for SciPy

    q1, median, q3 = np.quantile(x, [0.25, 0.5, 0.75], axis=0)
    standardised = (x - median) / np.maximum((q3 - q1) / NORMAL_IQR, 1e-12)
    distances = np.ones(x.shape[1])
    for i, column in enumerate(standardised.T):
        core = np.sort(column[np.abs(column) < CORE_SDS])
        if len(core):
            normal_cdf = (ndtr(core) - ndtr(-CORE_SDS)) / (ndtr(CORE_SDS) - ndtr(-CORE_SDS))
            empirical_cdf = np.arange(len(core) + 1) / len(core)
            distances[i] = max((empirical_cdf[1:] - normal_cdf).max(), (normal_cdf - empirical_cdf[:-1]).max())
    return distances


@dataclass(frozen=True)
class RegionStructure:
    """Measures of whether z-points are one region.

    `fragments`: connected components of their neighbour graph with at least 1 % of the points. `largest`: fraction of
    points in the largest one. `silhouette`: of the best k-means clustering into 2 to 10 clusters (Rousseeuw 1987).
    `gaussian_silhouette`: the same for a Gaussian of equal mean and covariance, which is one region by definition.
    """

    fragments: int
    largest: float
    silhouette: float
    gaussian_silhouette: float

    @property
    def coherent(self) -> bool:
        """Return True for one fragment whose silhouette exceeds the Gaussian's by less than 0.05."""
        return self.fragments == 1 and self.silhouette < self.gaussian_silhouette + SILHOUETTE_MARGIN


def measure_structure(z: Tensor) -> RegionStructure:
    """Measure the structure of at most 2,000 evenly spaced rows of z-points `(n, z_dim)`."""
    x = z[evenly_spaced(len(z), STRUCTURE_POINTS)].double().cpu().numpy()
    gaussian = np.random.default_rng(0).multivariate_normal(x.mean(0), np.cov(x.T), len(x), method="eigh")
    with threadpool_limits(1):  # on busy CPUs several threads are several times slower, waiting for each other
        fragment_sizes = _connected_component_sizes(x) / len(x)
        silhouette, gaussian_silhouette = _best_silhouette(x), _best_silhouette(gaussian)
    num_fragments = int((fragment_sizes >= MIN_FRAGMENT).sum())
    return RegionStructure(num_fragments, float(fragment_sizes.max()), silhouette, gaussian_silhouette)


def _connected_component_sizes(x: np.ndarray) -> np.ndarray:
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import kneighbors_graph

    graph = kneighbors_graph(x, min(NUM_NEIGHBOURS, len(x) - 1))
    return np.bincount(connected_components(graph, directed=False)[1])


def _best_silhouette(x: np.ndarray) -> float:
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    clusterings = (KMeans(k, random_state=0).fit_predict(x) for k in CLUSTER_COUNTS)
    # Equal points are all in one cluster, which has no silhouette.
    return float(max(silhouette_score(x, labels) if labels.any() else 0 for labels in clusterings))


def tsne(z: Tensor, max_iter: int = 1_000) -> np.ndarray:
    """Embed z-points `(n, z_dim)` in the plane by t-SNE, float (n, 2) (van der Maaten and Hinton 2008).

    Equal z-points, those of a collapsed encoder, are all at the origin.
    """
    from sklearn.manifold import TSNE

    # scikit-learn divides by the sd of the first principal component and crashes on NaN
    # (https://github.com/scikit-learn/scikit-learn/issues/28368). It is also 0 if the squares underflow.
    if not (z - z[0]).square().any():
        return np.zeros((len(z), 2))
    perplexity = min(PERPLEXITY, (len(z) - 1) / 3)
    with threadpool_limits(1):
        embedding = TSNE(perplexity=perplexity, random_state=0, init="pca", max_iter=max_iter)
        return embedding.fit_transform(z.cpu().numpy())
