"""What the z-points of a dataset look like: where they lie, how they are spread, and whether they hang together."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from scipy.special import ndtr
from threadpoolctl import threadpool_limits
from torch import Tensor

from aecore.data.shuffle import evenly_spaced
from aecore.latent.interpolation import principal_axes
from aecore.model.autoencoder import ACTIVE_VARIANCE, DiagonalGaussian

FAR = 20.0  # a component beyond which few lie
CORE = 2.0  # sds about the median
NORMAL_QUARTILES = 1.34898  # from the first to the third, in sds
NEIGHBOURS, FRAGMENT, CLUSTERED, POINTS = 10, 0.01, 0.05, 2_000


@dataclass(frozen=True)
class ZStats:
    """Statistics of z-points `(n, z_dim)`; arrays are float64 numpy. Per component unless something else is said."""

    mean: np.ndarray
    sd: np.ndarray
    skew: np.ndarray
    kurtosis: np.ndarray  # 0 for a normal distribution
    core_distance: np.ndarray  # see `core_distance`
    kl: np.ndarray  # nats, mean over images; zeros for an AE
    active: np.ndarray  # bool: whether its mean varies from image to image (Burda 2016, eq. 6: variance over 0.01)
    radii: np.ndarray  # (n,) distances from the origin
    within: float  # share of all components of all z-points with |x_i| < 20
    correlation: np.ndarray  # (z_dim, z_dim); 0 where a component does not vary
    variances: np.ndarray  # of the principal axes, greatest first

    def axes_for(self, share: float) -> int:
        """How many principal axes hold `share` of the variance."""
        held = np.cumsum(self.variances) / max(self.variances.sum(), 1e-300)
        return int(np.searchsorted(held, share - 1e-12) + 1)

    def summary(self) -> dict[str, float]:
        """The figures for a table, JSON or MLflow."""
        z_dim = len(self.mean)
        off = self.correlation[~np.eye(z_dim, dtype=bool)]
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
            "mean_abs_correlation": float(np.abs(off).mean()),
            "axes_90": self.axes_for(0.90),
            "axes_99": self.axes_for(0.99),
        }


def compute_z_stats(latent: DiagonalGaussian, z: Tensor) -> ZStats:
    """Statistics of the z-points `z` (n, z_dim) that were drawn from `latent`, the encoder's answer to n images."""
    points = z.double().cpu()
    x, mean, sd = points.numpy(), points.mean(0), points.std(0, correction=0)
    standard = (points - mean) / sd.clamp_min(1e-12)
    variances, _ = principal_axes(torch.cov(points.T, correction=0))
    return ZStats(
        mean=mean.numpy(),
        sd=sd.numpy(),
        skew=standard.pow(3).mean(0).numpy(),
        kurtosis=standard.pow(4).mean(0).sub(3).numpy(),
        core_distance=core_distance(x),
        kl=latent.kl().double().mean(0).cpu().numpy(),
        active=(latent.mean.double().var(0) > ACTIVE_VARIANCE).cpu().numpy(),
        radii=np.linalg.norm(x, axis=1),
        within=float((np.abs(x) < FAR).mean()),
        correlation=(standard.T @ standard / len(x)).numpy(),
        variances=variances.double().numpy(),
    )


def core_distance(x: np.ndarray) -> np.ndarray:
    """How far from normal the core of each component of `x` (n, z_dim) is, (z_dim,).

    The Kolmogorov-Smirnov distance of its values within 2 sds of the median to a normal distribution cut there; median
    and sd come from the quartiles. 0 is normal; uniform values have about 0.05, two peaks over 0.1; n normal values
    about 0.8 / sqrt(n).
    """
    low, middle, high = np.quantile(x, [0.25, 0.5, 0.75], axis=0)
    standard = (x - middle) / np.maximum((high - low) / NORMAL_QUARTILES, 1e-12)
    distances = np.ones(x.shape[1])
    for i, column in enumerate(standard.T):
        core = np.sort(column[np.abs(column) < CORE])
        if len(core):
            wanted = (ndtr(core) - ndtr(-CORE)) / (ndtr(CORE) - ndtr(-CORE))
            steps = np.arange(len(core) + 1) / len(core)
            distances[i] = max((steps[1:] - wanted).max(), (wanted - steps[:-1]).max())
    return distances


@dataclass(frozen=True)
class RegionStructure:
    """Whether z-points are one region. `fragments`: parts of their neighbour graph that hold 1 % of them or more;
    `largest`: the share of the largest part; `silhouette`: of the best division into 2 to 10 clusters (Rousseeuw 1987);
    `gaussian_silhouette`: the same for a Gaussian of their mean and covariance, which is one region by definition.
    """

    fragments: int
    largest: float
    silhouette: float
    gaussian_silhouette: float

    @property
    def coherent(self) -> bool:
        """Whether they are one region: one part, no better divided than a Gaussian by more than 0.05."""
        return self.fragments == 1 and self.silhouette < self.gaussian_silhouette + CLUSTERED


def measure_structure(z: Tensor, seed: int = 0) -> RegionStructure:
    """The structure of z-points `(n, z_dim)`, judged by 2,000 of them, evenly spread."""
    x = z[evenly_spaced(len(z), POINTS)].double().cpu().numpy()
    like = np.random.default_rng(seed).multivariate_normal(x.mean(0), np.cov(x.T), len(x), method="eigh")
    with threadpool_limits(1):  # on busy processors the threads' waiting for each other takes several times as long
        sizes = _part_sizes(x) / len(x)
        best, best_like = _silhouette(x, seed), _silhouette(like, seed)
    return RegionStructure(int((sizes >= FRAGMENT).sum()), float(sizes.max()), best, best_like)


def _part_sizes(x: np.ndarray) -> np.ndarray:
    from sklearn.neighbors import kneighbors_graph

    graph = kneighbors_graph(x, min(NEIGHBOURS, len(x) - 1))
    return np.bincount(connected_components(graph, directed=False)[1])


def _silhouette(x: np.ndarray, seed: int) -> float:
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    divisions = (KMeans(k, random_state=seed).fit_predict(x) for k in range(2, 11))
    return float(max(silhouette_score(x, division) for division in divisions))


def tsne(z: Tensor, seed: int = 0) -> np.ndarray:
    """A map of z-points `(n, z_dim)` that keeps neighbours together, float (n, 2) (van der Maaten 2008)."""
    from sklearn.manifold import TSNE

    with threadpool_limits(1):
        return TSNE(random_state=seed, init="pca").fit_transform(z.cpu().numpy())
