"""Statistics of z-points against distributions whose statistics are known."""

import numpy as np
import pytest
import torch

from aecore.latent.stats import compute_z_stats, core_distance, measure_structure, tsne
from aecore.model.autoencoder import DiagonalGaussian

N = 4000


def normal(n=N, z_dim=20, seed=0):
    return torch.randn(n, z_dim, generator=torch.manual_seed(seed))


def told(z, logvar=None):
    return compute_z_stats(DiagonalGaussian(z, logvar), z)


def test_a_standard_normal():
    stats = told(normal())
    numbers = stats.summary()
    assert numbers["mean_radius"] == pytest.approx(20**0.5, rel=0.02)
    assert numbers["mean_sd"] == pytest.approx(1, abs=0.02)
    assert abs(numbers["mean_kurtosis"]) < 0.1
    assert numbers["mean_abs_skew"] < 0.08
    assert numbers["core_distance"] < 0.02
    assert numbers["within_20"] == 1
    assert (numbers["axes_90"], numbers["axes_99"]) == (18, 20)
    assert numbers["mean_abs_correlation"] < 0.03
    assert numbers["active_units"] == 20
    assert stats.radii.shape == (N,)


def test_an_off_centre_correlated_one():
    z = normal()
    z[:, 1] = 50 + 30 * z[:, 0] + 0.1 * z[:, 1]
    stats = told(z)
    assert stats.mean[1] == pytest.approx(50, abs=1.5)
    assert stats.sd[1] == pytest.approx(30, rel=0.05)
    assert stats.correlation[0, 1] > 0.99
    assert stats.axes_for(0.9) == 1
    assert stats.within == pytest.approx(1 - (1 - 0.15) / 20, abs=0.005)


def test_skew_kurtosis_and_core_of_other_shapes():
    uniform, exponential = torch.rand(N, 4, generator=torch.manual_seed(0)), normal(z_dim=4).exp()
    assert told(uniform).kurtosis == pytest.approx(-1.2, abs=0.05)
    assert told(exponential).skew.min() > 2
    assert 0.03 < core_distance(uniform.numpy()).min() < 0.08
    two_peaks = normal(z_dim=4) * 0.2 + torch.sign(normal(z_dim=4, seed=1))
    assert core_distance(two_peaks.numpy()).min() > 0.1
    heavy = normal(z_dim=4)
    heavy[::20] *= 20  # far points leave the core as it is
    assert core_distance(heavy.numpy()).max() < 0.03


def test_kl_and_active_units():
    mean = normal(z_dim=3)
    mean[:, 1] *= 0.05  # its mean hardly varies: not active
    logvar = torch.zeros(N, 3)
    stats = told(mean, logvar)
    assert stats.active.tolist() == [True, False, True]
    assert stats.kl == pytest.approx((0.5 * mean.square()).mean(0).numpy(), rel=1e-4)
    assert told(mean).summary()["kl"] == 0


def test_a_component_that_never_varies():
    z = normal()
    z[:, 3] = 2
    numbers = told(z).summary()
    assert all(np.isfinite(value) for value in numbers.values())
    assert numbers["active_units"] == 19
    assert numbers["axes_99"] == 19


def test_one_region_and_fragments_are_told_apart():
    one = normal(1000, 30) @ torch.diag(torch.linspace(1, 10, 30))
    assert measure_structure(one).coherent
    assert measure_structure(one).fragments == 1
    apart = normal(900, 30)
    apart[::3] += 12
    apart[1::3] -= 12
    found = measure_structure(apart)
    assert not found.coherent
    assert found.fragments == 3
    assert found.largest == pytest.approx(1 / 3, abs=0.01)
    near = normal(900, 5)
    near[::2, 0] += 6  # two clusters whose edges touch
    assert not measure_structure(near).coherent


def test_tsne_keeps_clusters_apart():
    z = normal(120, 10)
    z[60:] += 10
    flat = tsne(z)
    assert flat.shape == (120, 2)
    inner = np.linalg.norm(flat[:60] - flat[:60].mean(0), axis=1).mean()
    assert np.linalg.norm(flat[:60].mean(0) - flat[60:].mean(0)) > 2 * inner
