"""Statistics of z-points against distributions with closed-form statistics."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch

from aecore.latent.stats import compute_z_stats, core_distance, measure_structure, tsne
from aecore.model.autoencoder import DiagonalGaussian

N = 4000


def normal(n=N, z_dim=20, seed=0):
    return torch.randn(n, z_dim, generator=torch.manual_seed(seed))


def stats_of(z, logvar=None):
    return compute_z_stats(DiagonalGaussian(z, logvar), z)


def test_standard_normal():
    stats = stats_of(normal())
    summary = stats.summary()
    assert summary["mean_radius"] == pytest.approx(20**0.5, rel=0.02)
    assert summary["mean_sd"] == pytest.approx(1, abs=0.02)
    assert abs(summary["mean_kurtosis"]) < 0.1
    assert summary["mean_abs_skew"] < 0.08
    assert summary["core_distance"] < 0.02
    assert summary["within_20"] == 1
    assert (summary["axes_90"], summary["axes_99"]) == (18, 20)
    assert summary["mean_abs_correlation"] < 0.03
    assert summary["active_units"] == 20
    assert stats.radii.shape == (N,)


def test_each_statistic_equals_its_definition():
    z = (normal(500, 4) @ torch.randn(4, 4, generator=torch.manual_seed(2))).exp() * 10 - 5
    posterior = DiagonalGaussian(z + 1, torch.randn(500, 4, generator=torch.manual_seed(3)))
    stats, x = compute_z_stats(posterior, z), z.double().numpy()
    np.testing.assert_allclose(stats.mean, x.mean(0))
    np.testing.assert_allclose(stats.sd, x.std(0))
    np.testing.assert_allclose(stats.skew, scipy.stats.skew(x))
    np.testing.assert_allclose(stats.kurtosis, scipy.stats.kurtosis(x))
    np.testing.assert_allclose(stats.kl, posterior.kl().mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats.radii, np.sqrt((x**2).sum(1)))
    np.testing.assert_allclose(stats.correlation, np.corrcoef(x.T))
    np.testing.assert_allclose(stats.variances, np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1], rtol=1e-4)
    assert stats.within == (np.abs(x) < 20).mean()
    off_diagonal = [abs(stats.correlation[i, j]) for i in range(4) for j in range(4) if i != j]
    assert stats.summary() == pytest.approx({
        "z_dim": 4, "mean_abs_mean": np.abs(x.mean(0)).mean(), "centre_radius": np.linalg.norm(x.mean(0)),
        "mean_sd": x.std(0).mean(), "mean_abs_skew": np.abs(stats.skew).mean(),
        "mean_kurtosis": stats.kurtosis.mean(), "core_distance": core_distance(x).mean(), "kl": stats.kl.sum(),
        "active_units": 4, "mean_radius": stats.radii.mean(), "sqrt_z_dim": 2, "within_20": stats.within,
        "mean_abs_correlation": np.mean(off_diagonal), "axes_90": stats.axes_for(0.9), "axes_99": stats.axes_for(0.99),
    })  # fmt: skip


def test_axes_for_a_share_of_the_variance():
    stats = replace(stats_of(normal(100, 4)), variances=np.array([6.0, 3, 0.9, 0.1]))
    assert [stats.axes_for(share) for share in (0.5, 0.6, 0.61, 0.9, 0.91, 0.99, 1)] == [1, 1, 2, 2, 3, 3, 4]
    assert replace(stats, variances=np.zeros(4)).axes_for(0.9) == 1


def test_core_distance_is_that_of_kolmogorov_and_smirnov():
    x = np.random.default_rng(0).gamma(3, 2, (300, 2))
    for distance, column in zip(core_distance(x), x.T, strict=True):
        q1, median, q3 = np.quantile(column, [0.25, 0.5, 0.75])
        standardised = (column - median) / ((q3 - q1) / (scipy.stats.norm.ppf(0.75) - scipy.stats.norm.ppf(0.25)))
        core = standardised[np.abs(standardised) < 2]
        assert distance == pytest.approx(scipy.stats.kstest(core, scipy.stats.truncnorm(-2, 2).cdf).statistic, abs=1e-5)


def test_off_centre_correlated_normal():
    z = normal()
    z[:, 1] = 50 + 30 * z[:, 0] + 0.1 * z[:, 1]
    stats = stats_of(z)
    assert stats.mean[1] == pytest.approx(50, abs=1.5)
    assert stats.sd[1] == pytest.approx(30, rel=0.05)
    assert stats.correlation[0, 1] > 0.99
    assert stats.axes_for(0.9) == 1
    assert stats.within == pytest.approx(1 - (1 - 0.15) / 20, abs=0.005)


def test_skew_kurtosis_and_core_distance_of_other_distributions():
    uniform, exponential = torch.rand(N, 4, generator=torch.manual_seed(0)), normal(z_dim=4).exp()
    assert stats_of(uniform).kurtosis == pytest.approx(-1.2, abs=0.05)
    assert stats_of(exponential).skew.min() > 2
    assert 0.03 < core_distance(uniform.numpy()).min() < 0.08
    two_peaks = normal(z_dim=4) * 0.2 + torch.sign(normal(z_dim=4, seed=1))
    assert core_distance(two_peaks.numpy()).min() > 0.1
    heavy = normal(z_dim=4)
    heavy[::20] *= 20  # outliers do not change the core
    assert core_distance(heavy.numpy()).max() < 0.03


def test_kl_and_active_units():
    mean = normal(z_dim=3)
    mean[:, 1] *= 0.05  # its mean hardly varies: not active
    logvar = torch.zeros(N, 3)
    stats = stats_of(mean, logvar)
    assert stats.active.tolist() == [True, False, True]
    assert stats.kl == pytest.approx((0.5 * mean.square()).mean(0).numpy(), rel=1e-4)
    assert stats_of(mean).summary()["kl"] == 0


def test_dimension_that_never_varies_gives_finite_statistics():
    z = normal()
    z[:, 3] = 2
    summary = stats_of(z).summary()
    assert all(np.isfinite(value) for value in summary.values())
    assert summary["active_units"] == 19
    assert summary["axes_99"] == 19


def test_structure_separates_one_region_from_clusters():
    ellipsoid = normal(1000, 30) @ torch.diag(torch.linspace(1, 10, 30))
    assert measure_structure(ellipsoid).coherent
    assert measure_structure(ellipsoid).fragments == 1
    apart = normal(900, 30)
    apart[::3] += 12
    apart[1::3] -= 12
    clusters = measure_structure(apart)
    assert not clusters.coherent
    assert clusters.fragments == 3
    assert clusters.largest == pytest.approx(1 / 3, abs=0.01)
    touching = normal(900, 5)
    touching[::2, 0] += 6  # two clusters whose edges touch
    assert not measure_structure(touching).coherent


def test_tsne_keeps_clusters_apart():
    z = normal(120, 10)
    z[60:] += 10
    embedded = tsne(z)
    assert embedded.shape == (120, 2)
    radius = np.linalg.norm(embedded[:60] - embedded[:60].mean(0), axis=1).mean()
    assert np.linalg.norm(embedded[:60].mean(0) - embedded[60:].mean(0)) > 2 * radius


@pytest.mark.parametrize("spread", [0, 1e-38])
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_z_points_of_a_collapsed_encoder_are_one_region_at_one_place(spread):
    z = torch.full((100, 4), 0.3) if not spread else spread * normal(100, 4)
    assert (tsne(z) == 0).all()
    assert measure_structure(z).fragments == 1


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_equal_z_points_have_no_clusters():
    structure = measure_structure(torch.full((100, 4), 0.3))
    assert (structure.silhouette, structure.gaussian_silhouette, structure.coherent) == (0, 0, True)
