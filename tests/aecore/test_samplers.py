import pytest
import torch

from aecore.samplers import SAMPLERS, fit_latents, sample


def skewed(n=4000, z_dim=6):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(z_dim, z_dim, generator=generator)
    return torch.randn(n, z_dim, generator=generator) @ mix + 3.0


@pytest.mark.parametrize("name", SAMPLERS)
def test_shape_and_repeat(name):
    latents = fit_latents(skewed())
    first = sample(name, 9, latents, seed=4)
    assert first.shape == (9, 6)
    assert first.dtype == torch.float32
    assert torch.equal(first, sample(name, 9, latents, seed=4))
    assert not torch.equal(first, sample(name, 9, latents, seed=5))


def test_parameters_do_what_they_say():
    latents = fit_latents(skewed())
    assert sample("cube", 500, latents, 0, boundary=7.0).abs().max() <= 7
    assert sample("cube", 500, latents, 0, boundary=7.0).abs().max() > 6.9
    torch.testing.assert_close(sample("sphere", 5, latents, 0, radius=3.0).norm(dim=1), torch.full((5,), 3.0))
    torch.testing.assert_close(sample("sphere", 5, latents, 0).norm(dim=1), torch.full((5,), 6**0.5))


def test_gaussian_has_the_data_s_moments():
    z = skewed()
    drawn = fit_latents(sample("gaussian", 20_000, fit_latents(z), 0))
    wanted = fit_latents(z)
    torch.testing.assert_close(drawn["mean"], wanted["mean"], atol=0.1, rtol=0.05)
    torch.testing.assert_close(drawn["covariance"], wanted["covariance"], atol=0.3, rtol=0.1)


def test_fewer_images_than_components_is_sound():
    latents = fit_latents(torch.randn(20, 300))
    assert torch.isfinite(sample("gaussian", 4, latents, 0)).all()


def test_unknown_sampler_and_parameter():
    latents = fit_latents(skewed())
    with pytest.raises(ValueError, match=r"unknown sampler 'x'.*cube"):
        sample("x", 1, latents, 0)
    with pytest.raises(ValueError, match="does not take radius"):
        sample("normal", 1, latents, 0, radius=1.0)
