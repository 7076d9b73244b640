import math

import pytest
import torch
from scipy import stats

from aecore.latent.density import PER_COMPONENT, fit_gaussian, fit_mixture, shrunk_covariance, shrunk_eigenvalues
from aecore.latent.samplers import SAMPLERS, fit_latent_stats, sample


def correlated(n=4000, z_dim=6):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(z_dim, z_dim, generator=generator)
    return torch.randn(n, z_dim, generator=generator) @ mix + 3.0


def two_clusters(n=2000, z_dim=5):
    """Return points half about -4 and half about 4 in each dimension, with sds of 1 and 0.5."""
    generator = torch.Generator().manual_seed(0)
    cluster = torch.arange(n)[:, None] % 2
    return torch.randn(n, z_dim, generator=generator) * (1 - 0.5 * cluster) + 8.0 * cluster - 4


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_are_a_function_of_the_seed(name):
    latents = fit_latent_stats(correlated())
    first = sample(name, 9, latents, seed=4)
    assert first.shape == (9, 6)
    assert first.dtype == torch.float32
    assert torch.equal(first, sample(name, 9, latents, seed=4))
    assert not torch.equal(first, sample(name, 9, latents, seed=5))


def test_boundary_and_radius_bound_the_samples():
    latents = fit_latent_stats(correlated())
    assert sample("cube", 500, latents, 0, boundary=7.0).abs().max() <= 7
    assert sample("cube", 500, latents, 0, boundary=7.0).abs().max() > 6.9
    torch.testing.assert_close(sample("sphere", 5, latents, 0, radius=3.0).norm(dim=1), torch.full((5,), 3.0))
    torch.testing.assert_close(sample("sphere", 5, latents, 0).norm(dim=1), torch.full((5,), 6**0.5))


def assert_distributed(values, distribution):
    """Check by a Kolmogorov-Smirnov test that values `(n,)` are draws from a distribution of scipy.stats."""
    assert stats.kstest(values.double().numpy(), distribution.cdf).pvalue > 1e-3


def made_up_stats(mean, covariance, **mixture):
    return {"mean": torch.tensor(mean), "covariance": torch.tensor(covariance), **mixture}


def test_cube_and_normal_have_their_distribution_in_each_dimension():
    latents = made_up_stats([5.0, 5.0, 5.0], [[9.0, 0, 0], [0, 9, 0], [0, 0, 9]])  # neither uses them
    z = {name: sample(name, 5000, latents, 1) for name in ("cube", "normal")}
    for i in range(3):
        assert_distributed(z["cube"][:, i], stats.uniform(-1, 2))
        assert_distributed(z["normal"][:, i], stats.norm())
    for points in z.values():
        assert torch.corrcoef(points.T).sub(torch.eye(3)).abs().max() < 0.05


def test_sphere_is_uniform_in_any_direction():
    """A coordinate of the uniform sphere in three dimensions is uniform in [-radius, radius] (Archimedes)."""
    z = sample("sphere", 5000, made_up_stats([0.0, 0, 0], torch.eye(3).tolist()), 0, radius=2.0)
    for direction in ([1.0, 0, 0], [0, 0, -1.0], [1.0, 1, 1], [1.0, -1, 0]):
        unit = torch.nn.functional.normalize(torch.tensor(direction), dim=0)
        assert_distributed(z @ unit, stats.uniform(-2, 4))


def test_diagonal_has_the_mean_and_sd_of_each_dimension_without_correlations():
    latents = made_up_stats([1.0, -2.0, 0.0], [[16.0, 1.9, 0], [1.9, 0.25, 0], [0, 0, 1]])
    z = sample("diagonal", 5000, latents, 0)
    for i, (mean, sd) in enumerate([(1, 4), (-2, 0.5), (0, 1)]):
        assert_distributed(z[:, i], stats.norm(mean, sd))
    assert torch.corrcoef(z.T)[0, 1].abs() < 0.05


def test_gaussian_has_the_covariance_of_the_statistics():
    covariance = torch.tensor([[16.0, 1.9], [1.9, 0.25]])  # a correlation of 0.95
    z = sample("gaussian", 5000, made_up_stats([1.0, -2.0], covariance.tolist()), 0)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), (z - torch.tensor([1.0, -2])).T, upper=False
    )
    for row in white:
        assert_distributed(row, stats.norm())


def test_mixture_draws_its_components_by_weight_and_scales_the_noise_by_their_factor():
    latents = made_up_stats(
        [0.0, 0.0], torch.eye(2).tolist(), gmm_weights=torch.tensor([0.9, 0.1]),
        gmm_means=torch.tensor([[-10.0, 0], [10, 0]]),
        gmm_factors=torch.tensor([[[0.5, 0.0], [0, 1]], [[1.0, 0], [2, 1]]]),  # sds 0.5, 1 and 1, sqrt(5)
    )  # fmt: skip
    z = sample("gmm", 5000, latents, 0)
    right = z[:, 0] > 0
    assert stats.binomtest(int(right.sum()), 5000, 0.1).pvalue > 1e-3
    assert_distributed(z[~right][:, 0], stats.norm(-10, 0.5))
    assert_distributed(z[~right][:, 1], stats.norm(0, 1))
    assert_distributed(z[right][:, 0], stats.norm(10, 1))
    assert_distributed(z[right][:, 1], stats.norm(0, 5**0.5))


@pytest.mark.parametrize("name", ["normal", "diagonal", "gaussian", "gmm"])
def test_temperature_scales_the_distance_from_the_mean(name):
    latents = fit_latent_stats(correlated(), n_components=1)
    centre = 0 if name == "normal" else latents["mean"]
    offsets = {t: sample(name, 50, latents, 0, temperature=t) - centre for t in (0.0, 1.0, 2.0)}
    torch.testing.assert_close(offsets[2.0], 2 * offsets[1.0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(offsets[0.0], torch.zeros(50, 6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["gaussian", "gmm"])
def test_fitted_samplers_have_the_moments_of_the_data(name):
    z = correlated()
    sampled = fit_latent_stats(sample(name, 20_000, fit_latent_stats(z), 0), n_components=0)
    fitted = fit_latent_stats(z, n_components=0)
    torch.testing.assert_close(sampled["mean"], fitted["mean"], atol=0.1, rtol=0.05)
    torch.testing.assert_close(sampled["covariance"], fitted["covariance"], atol=0.4, rtol=0.1)


def test_mixture_fits_the_clusters_and_gaussian_fills_the_gap():
    latents = fit_latent_stats(two_clusters(), n_components=2)
    mixed, single = sample("gmm", 1000, latents, 0), sample("gaussian", 1000, latents, 0)
    assert torch.allclose(latents["gmm_weights"], torch.tensor(0.5), atol=0.02)
    between = lambda z: (z.mean(1).abs() < 2).float().mean()  # noqa: E731
    assert between(mixed) < 0.01
    assert between(single) > 0.2
    upper = mixed[mixed.mean(1) > 0]
    torch.testing.assert_close(upper.mean(0), torch.full((5,), 4.0), atol=0.15, rtol=0)
    assert upper.std(0).max() < 0.7  # a single Gaussian has 4


@pytest.mark.parametrize("name", ["gaussian", "gmm"])
@pytest.mark.parametrize(("n", "z_dim"), [(1, 8), (2, 300), (40, 1200), (120, 300)])
def test_fewer_images_than_dimensions_give_finite_samples_of_the_right_variance(n, z_dim, name):
    latents = fit_latent_stats(torch.randn(n, z_dim, generator=torch.manual_seed(0)))
    z = sample(name, 500, latents, 0)
    assert torch.isfinite(z).all()
    if n > 2:  # the z-points' variance, also along axes without sample variance
        assert z.var(0).mean().item() == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize(("n", "rank", "z_dim"), [(1000, 16, 64), (4000, 4, 40)])
def test_mixture_of_z_points_that_span_a_subspace_is_as_wide_as_they_are(n, rank, z_dim):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, rank, generator=generator) @ torch.randn(rank, z_dim, generator=generator)
    ratio = sample("gmm", 4000, fit_latent_stats(z), 0).std(0) / z.std(0)
    torch.testing.assert_close(ratio, torch.ones(z_dim), atol=0.1, rtol=0)


def test_dimension_that_never_varies_stays_constant():
    z = correlated(500)
    z[:, 2] = 7.0
    latents = fit_latent_stats(z)
    for name in ("diagonal", "gaussian", "gmm"):
        assert (sample(name, 50, latents, 0)[:, 2] - 7).abs().max() < 0.1


def test_single_outlier_keeps_the_mixture_finite():
    z = torch.cat([correlated(1000), torch.full((1, 6), 1e4)])
    assert torch.isfinite(sample("gmm", 100, fit_latent_stats(z), 0)).all()


def random_covariance(z_dim, strength):
    """Return a covariance whose variances fall along its axes from 1 to 10 ** -strength, and a root of it."""
    axes = torch.linalg.qr(torch.randn(z_dim, z_dim, generator=torch.manual_seed(1), dtype=torch.float64)).Q
    root = axes * torch.logspace(0, -strength / 2, z_dim, dtype=torch.float64)
    return root @ root.T, root


def divergence(true, estimate):
    """Return the KL divergence in nats from the true Gaussian to the estimated one of the same mean."""
    ratio = torch.linalg.solve(estimate, true)
    return 0.5 * (ratio.trace() - len(true) - torch.linalg.slogdet(ratio).logabsdet).item()


@pytest.mark.parametrize("strength", [0, 2, 4])
@pytest.mark.parametrize("n", [25, 100, 5000])
def test_gaussian_has_a_smaller_divergence_than_other_estimates(n, strength):
    """With more points than dimensions: than the sample covariance, and than linear shrinkage of unequal variances."""
    true, root = random_covariance(50, strength)
    z = torch.randn(n, 50, generator=torch.manual_seed(0), dtype=torch.float64) @ root.T
    fitted = divergence(true, fit_gaussian(z)[1])
    if n > 50:
        assert fitted < 1.05 * divergence(true, torch.cov(z.T))
    if n > 50 and strength:
        assert fitted < divergence(true, shrunk_covariance(z - z.mean(0)))
    assert fitted < (0.6 if n == 5000 else 40)


@pytest.mark.parametrize("n", [2, 3, 11, 12, 13, 39, 40, 41, 42, 80])
def test_gaussian_is_positive_definite_for_any_number_of_points(n):
    root = random_covariance(40, 3)[1]
    z = torch.randn(n, 40, generator=torch.manual_seed(0), dtype=torch.float64) @ root.T
    covariance = fit_gaussian(z)[1]
    eigenvalues = torch.linalg.eigvalsh(covariance)
    assert eigenvalues.min() > 0
    torch.testing.assert_close(covariance.trace(), z.var(0, correction=0).sum())


def reference_shrinkage(eigenvalues, n):
    """Return the analytical shrinkage of Ledoit and Wolf 2020, one eigenvalue at a time."""
    p, h = len(eigenvalues), n ** (-1 / 3)
    nonzero = list(eigenvalues[max(0, p - n) :])

    def mean(function, x):
        return sum(function((x - other) / (h * other)) / (h * other) for other in nonzero) / len(nonzero)

    def epanechnikov(u):
        return 3 / (4 * 5**0.5) * max(0, 1 - u**2 / 5)

    def hilbert_transform(u):
        ratio = abs((5**0.5 - u) / (5**0.5 + u))
        return -3 * u / (10 * math.pi) + 3 / (4 * 5**0.5 * math.pi) * (1 - u**2 / 5) * math.log(ratio)

    shrunk = []
    for x in nonzero:
        density, hilbert = mean(epanechnikov, x), mean(hilbert_transform, x)
        if p <= n:
            c = p / n
            shrunk.append(x / ((math.pi * c * x * density) ** 2 + (1 - c - math.pi * c * x * hilbert) ** 2))
        else:
            shrunk.append(x / (math.pi**2 * x**2 * (density**2 + hilbert**2)))
    if p <= n:
        return shrunk
    logarithm = math.log(abs((1 + 5**0.5 * h) / (1 - 5**0.5 * h)))
    bracket = 3 / (10 * h**2) + 3 / (4 * 5**0.5 * h) * (1 - 1 / (5 * h**2)) * logarithm
    hilbert_at_0 = bracket / math.pi * sum(1 / x for x in nonzero) / len(nonzero)
    return [1 / (math.pi * (p - n) / n * hilbert_at_0)] * (p - n) + shrunk


@pytest.mark.parametrize(("p", "n"), [(10, 50), (10, 11), (10, 10), (30, 12), (30, 20)])
def test_eigenvalues_are_shrunk_as_in_the_paper(p, n):
    eigenvalues = torch.cat([torch.full((max(0, p - n),), 1e-9), torch.logspace(-1, 1, min(p, n))]).double()
    expected = torch.tensor(reference_shrinkage(eigenvalues.tolist(), n), dtype=torch.float64)
    torch.testing.assert_close(shrunk_eigenvalues(eigenvalues, n), expected, rtol=1e-6, atol=1e-12)


def test_gaussian_is_fitted_to_the_shrunk_correlations():
    """Each dimension counts alike, whatever its scale; the sum of the variances stays as it is."""
    z = torch.randn(60, 8, generator=torch.manual_seed(0), dtype=torch.float64).cumsum(1) * torch.arange(1, 9) ** 2 + 5
    sd = z.std(0, correction=0)
    eigenvalues, axes = torch.linalg.eigh(torch.corrcoef(z.T))
    correlation = axes @ torch.diag(shrunk_eigenvalues(eigenvalues, 59)) @ axes.T
    expected = torch.outer(sd, sd) * correlation
    mean, covariance = fit_gaussian(z)
    torch.testing.assert_close(mean, z.mean(0))
    torch.testing.assert_close(covariance, expected * sd.square().sum() / expected.trace())


def test_each_cluster_has_its_own_mean_and_covariance():
    """Shrunk in coordinates in which all points are white."""
    z = two_clusters(4000).double()
    mean, covariance = fit_gaussian(z)
    root = torch.linalg.cholesky(covariance)
    weights, means, factors = fit_mixture(z, mean, covariance, 2)
    for weight, centre, factor in zip(weights, means, factors, strict=True):
        cluster = z[(z.mean(1) > 0) == (centre.mean() > 0)]
        white = torch.linalg.solve_triangular(root, (cluster - cluster.mean(0)).T, upper=False).T
        assert weight.item() == pytest.approx(0.5, abs=0.01)
        torch.testing.assert_close(centre, cluster.mean(0), atol=0.02, rtol=0)
        expected = root @ (shrunk_covariance(white) + 1e-4 * torch.eye(5)) @ root.T
        torch.testing.assert_close(factor @ factor.T, expected, atol=2e-3, rtol=0.02)


@pytest.mark.parametrize("n", [2, 5, 20, 2 * PER_COMPONENT - 1])
def test_mixture_of_one_component_is_the_fitted_gaussian(n):
    """Shrunk once more, the covariance of few z-points would be many times as wide as they are."""
    z = torch.randn(n, 200, generator=torch.manual_seed(0), dtype=torch.float64)
    mean, covariance = fit_gaussian(z)
    weights, means, [factor] = fit_mixture(z, mean, covariance, 10)
    assert weights.tolist() == [1]
    torch.testing.assert_close(means, mean[None])
    torch.testing.assert_close(factor @ factor.T, covariance)


def test_shrunk_covariance_equals_that_of_scikit_learn():
    from sklearn.covariance import ledoit_wolf

    z = torch.randn(30, 12, generator=torch.manual_seed(0), dtype=torch.float64) * torch.arange(1, 13)
    z = z - z.mean(0)
    expected, _ = ledoit_wolf(z.numpy(), assume_centered=True)
    torch.testing.assert_close(shrunk_covariance(z), torch.from_numpy(expected))
    weights = torch.ones(40, dtype=torch.float64)
    weights[30:] = 0  # points of weight 0 do not count
    torch.testing.assert_close(shrunk_covariance(torch.cat([z, z[:10] * 9]), weights), torch.from_numpy(expected))


def test_stats_stored_without_a_mixture_still_sample():
    old = {name: tensor for name, tensor in fit_latent_stats(correlated()).items() if name in ("mean", "covariance")}
    assert sample("gaussian", 3, old, 0).shape == (3, 6)
    with pytest.raises(ValueError, match="without a mixture"):
        sample("gmm", 3, old, 0)


def test_few_z_points_reduce_the_mixture_components():
    assert len(fit_latent_stats(correlated(100))["gmm_weights"]) == 2
    assert len(fit_latent_stats(correlated(99))["gmm_weights"]) == 1
    assert len(fit_latent_stats(correlated(9))["gmm_weights"]) == 1
    assert len(fit_latent_stats(correlated(600))["gmm_weights"]) == 10


@pytest.mark.parametrize("num_distinct", [1, 2, 5, 9])
@pytest.mark.filterwarnings("error")
def test_mixture_of_few_distinct_z_points_is_as_wide_as_they_are(num_distinct):
    """scikit-learn's GaussianMixture leaves components empty if there are fewer distinct points."""
    distinct = torch.randn(num_distinct, 8, generator=torch.manual_seed(0))
    z = distinct[torch.arange(600) % num_distinct]
    sampled = sample("gmm", 4000, fit_latent_stats(z), 0)
    torch.testing.assert_close(sampled.mean(0), z.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(sampled.std(0), z.std(0), atol=0.1, rtol=0)


def test_unknown_sampler_and_arguments_are_refused():
    latents = fit_latent_stats(correlated())
    with pytest.raises(ValueError, match=r"unknown sampler 'x'.*cube"):
        sample("x", 1, latents, 0)
    with pytest.raises(ValueError, match=r"sampler normal does not take these arguments: .*'radius'"):
        sample("normal", 1, latents, 0, radius=1.0)
    with pytest.raises(ValueError, match=r"sampler normal does not take these arguments: .*float"):
        sample("normal", 2.0, latents, 0)
