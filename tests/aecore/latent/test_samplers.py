import pytest
import torch

from aecore.latent.density import PER_COMPONENT, fit_gaussian, shrunk_covariance
from aecore.latent.samplers import SAMPLERS, attribute_directions, fit_latent_stats, sample


def skewed(n=4000, z_dim=6):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(z_dim, z_dim, generator=generator)
    return torch.randn(n, z_dim, generator=generator) @ mix + 3.0


def two_clusters(n=2000, z_dim=5):
    """Half the points about -4, half about 4 in every component, with sds of 1 and 0.5."""
    generator = torch.Generator().manual_seed(0)
    side = torch.arange(n)[:, None] % 2
    return torch.randn(n, z_dim, generator=generator) * (1 - 0.5 * side) + 8.0 * side - 4


@pytest.mark.parametrize("name", SAMPLERS)
def test_shape_and_repeat(name):
    latents = fit_latent_stats(skewed())
    first = sample(name, 9, latents, seed=4)
    assert first.shape == (9, 6)
    assert first.dtype == torch.float32
    assert torch.equal(first, sample(name, 9, latents, seed=4))
    assert not torch.equal(first, sample(name, 9, latents, seed=5))


def test_parameters_do_what_they_say():
    latents = fit_latent_stats(skewed())
    assert sample("cube", 500, latents, 0, boundary=7.0).abs().max() <= 7
    assert sample("cube", 500, latents, 0, boundary=7.0).abs().max() > 6.9
    torch.testing.assert_close(sample("sphere", 5, latents, 0, radius=3.0).norm(dim=1), torch.full((5,), 3.0))
    torch.testing.assert_close(sample("sphere", 5, latents, 0).norm(dim=1), torch.full((5,), 6**0.5))


@pytest.mark.parametrize("name", ["normal", "diagonal", "gaussian", "gmm"])
def test_temperature_scales_the_spread(name):
    latents = fit_latent_stats(skewed(), n_components=1)
    centre = 0 if name == "normal" else latents["mean"]
    at = {t: sample(name, 50, latents, 0, temperature=t) - centre for t in (0.0, 1.0, 2.0)}
    torch.testing.assert_close(at[2.0], 2 * at[1.0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(at[0.0], torch.zeros(50, 6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["gaussian", "gmm"])
def test_fitted_samplers_have_the_data_s_moments(name):
    z = skewed()
    drawn = fit_latent_stats(sample(name, 20_000, fit_latent_stats(z), 0), n_components=0)
    wanted = fit_latent_stats(z, n_components=0)
    torch.testing.assert_close(drawn["mean"], wanted["mean"], atol=0.1, rtol=0.05)
    torch.testing.assert_close(drawn["covariance"], wanted["covariance"], atol=0.4, rtol=0.1)


def test_a_mixture_finds_the_clusters_and_a_gaussian_fills_the_gap():
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
def test_fewer_images_than_components_is_sound(n, z_dim, name):
    latents = fit_latent_stats(torch.randn(n, z_dim, generator=torch.manual_seed(0)))
    z = sample(name, 500, latents, 0)
    assert torch.isfinite(z).all()
    if n > 2:  # spread as the z-points are, also where the sample covariance knows nothing
        assert z.var(0).mean().item() == pytest.approx(1, abs=0.25)


def test_a_component_that_never_varies_stays_as_it_is():
    z = skewed(500)
    z[:, 2] = 7.0
    latents = fit_latent_stats(z)
    for name in ("diagonal", "gaussian", "gmm"):
        assert (sample(name, 50, latents, 0)[:, 2] - 7).abs().max() < 0.1


def test_a_lone_far_point_is_a_cluster_that_does_no_harm():
    z = torch.cat([skewed(1000), torch.full((1, 6), 1e4)])
    assert torch.isfinite(sample("gmm", 100, fit_latent_stats(z), 0)).all()


def spread_out(z_dim, strength):
    """A true covariance whose variances fall along its axes from 1 to 10 ** -strength, and a root of it."""
    axes = torch.linalg.qr(torch.randn(z_dim, z_dim, generator=torch.manual_seed(1), dtype=torch.float64)).Q
    root = axes * torch.logspace(0, -strength / 2, z_dim, dtype=torch.float64)
    return root @ root.T, root


def divergence(true, found):
    """KL divergence in nats from the true Gaussian to the found one of the same mean."""
    ratio = torch.linalg.solve(found, true)
    return 0.5 * (ratio.trace() - len(true) - torch.linalg.slogdet(ratio).logabsdet).item()


@pytest.mark.parametrize("strength", [0, 2, 4])
@pytest.mark.parametrize("n", [25, 100, 5000])
def test_the_gaussian_is_nearer_to_the_truth_than_other_estimates(n, strength):
    """With more points than components: than the sample covariance, and than linear shrinkage of unlike variances."""
    true, root = spread_out(50, strength)
    z = torch.randn(n, 50, generator=torch.manual_seed(0), dtype=torch.float64) @ root.T
    found = divergence(true, fit_gaussian(z)[1])
    if n > 50:
        assert found < 1.05 * divergence(true, torch.cov(z.T))
    if n > 50 and strength:
        assert found < divergence(true, shrunk_covariance(z - z.mean(0)))
    assert found < (0.6 if n == 5000 else 40)


@pytest.mark.parametrize("n", [2, 3, 11, 12, 13, 39, 40, 41, 42, 80])
def test_the_gaussian_is_sound_for_any_number_of_points(n):
    root = spread_out(40, 3)[1]
    z = torch.randn(n, 40, generator=torch.manual_seed(0), dtype=torch.float64) @ root.T
    covariance = fit_gaussian(z)[1]
    eigenvalues = torch.linalg.eigvalsh(covariance)
    assert eigenvalues.min() > 0
    torch.testing.assert_close(covariance.trace(), z.var(0, correction=0).sum())


def test_shrinkage_agrees_with_scikit_learn():
    from sklearn.covariance import ledoit_wolf

    z = torch.randn(30, 12, generator=torch.manual_seed(0), dtype=torch.float64) * torch.arange(1, 13)
    z = z - z.mean(0)
    wanted, _ = ledoit_wolf(z.numpy(), assume_centered=True)
    torch.testing.assert_close(shrunk_covariance(z), torch.from_numpy(wanted))
    some = torch.ones(40, dtype=torch.float64)
    some[30:] = 0  # points that weigh nothing do not count
    torch.testing.assert_close(shrunk_covariance(torch.cat([z, z[:10] * 9]), some), torch.from_numpy(wanted))


def test_attributes_give_directions():
    z = skewed(2000)
    grows = z[:, 0] * 2 + 1
    latents = fit_latent_stats(z, {"grows": grows, "same": torch.ones(2000), "up": (z[:, 1] > 3).int()}, n_components=0)
    assert latents["direction.grows"][0].item() == pytest.approx(0.5, rel=1e-4)
    assert not latents["direction.same"].any()
    assert set(attribute_directions(latents)) == {"grows", "up"}  # what did not vary has no direction
    up = z[:, 1] > 3
    torch.testing.assert_close(
        attribute_directions(latents)["up"], z[up].mean(0) - z[~up].mean(0), atol=1e-4, rtol=1e-4
    )


def test_latents_of_before_the_mixture_still_serve():
    old = {name: tensor for name, tensor in fit_latent_stats(skewed()).items() if name in ("mean", "covariance")}
    assert sample("gaussian", 3, old, 0).shape == (3, 6)
    with pytest.raises(ValueError, match="without a mixture"):
        sample("gmm", 3, old, 0)


def test_few_z_points_make_few_components():
    assert len(fit_latent_stats(skewed(2 * PER_COMPONENT))["gmm_weights"]) == 2
    assert len(fit_latent_stats(skewed(9))["gmm_weights"]) == 1


def test_unknown_sampler_and_parameter():
    latents = fit_latent_stats(skewed())
    with pytest.raises(ValueError, match=r"unknown sampler 'x'.*cube"):
        sample("x", 1, latents, 0)
    with pytest.raises(ValueError, match="does not take radius"):
        sample("normal", 1, latents, 0, radius=1.0)
