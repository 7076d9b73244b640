import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from aecore.config import check_recipe
from aecore.model.autoencoder import (
    Autoencoder,
    DiagonalGaussian,
    ImageShape,
    build_model,
    to_float,
    to_uint8,
)
from aecore.model.sync_batch_norm import SyncBatchNorm


@pytest.mark.parametrize("size", [16, 28, 32, 50, 96])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kl_factor", [0, 1])
def test_output_shapes_for_all_image_shapes(size, channels, kl_factor):
    recipe = check_recipe({"model": {"z_dim": 5}, "loss": {"kl_factor": kl_factor}})
    model = build_model(recipe, ImageShape(size, channels)).eval()
    images = torch.rand(2, channels, size, size)
    logits, posterior = model(images, torch.randn(2, 5))
    assert logits.shape == images.shape
    assert posterior.mean.shape == (2, 5)
    assert (posterior.logvar is None) == (kl_factor == 0)
    assert model.decode(torch.randn(3, 5)).shape == (3, size, size, channels)


@pytest.mark.parametrize("z_dim", [2, 1200])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_extreme_z_dims_and_all_norms_decode(z_dim, norm):
    recipe = check_recipe({"model": {"z_dim": z_dim, "norm": norm}})
    model = build_model(recipe, ImageShape(28, 1))
    assert model.decode(torch.randn(2, z_dim)).dtype == torch.uint8


@pytest.mark.parametrize(
    ("norm", "layer"),
    [("batch", nn.BatchNorm2d), ("sync_batch", SyncBatchNorm), ("group", nn.GroupNorm), ("none", nn.Identity)],
)
def test_each_hidden_layer_has_the_norm_of_the_recipe(norm, layer):
    model = Autoencoder(check_recipe({"model": {"norm": norm}}).model, ImageShape(32, 3), variational=True)
    assert [type(model.encoder[i]) for i in (1, 4, 7, 10)] == [layer] * 4
    assert [type(model.decoder[i]) for i in (1, 4, 7)] == [layer] * 3
    if norm == "group":
        assert [model.encoder[i].num_groups for i in (1, 4, 7, 10)] == [4, 8, 16, 32]


def test_layers_have_the_documented_shapes():
    model = Autoencoder(check_recipe({}).model, ImageShape(96, 3), variational=True)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [32, 64, 128, 256]
    transposed = [m for m in model.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [m.out_channels for m in transposed] == [128, 64, 32, 3]
    assert all(m.kernel_size == (3, 3) and m.stride == (2, 2) for m in convolutions)
    assert all(m.kernel_size == (4, 4) and m.stride == (2, 2) for m in transposed)


@pytest.mark.parametrize("shape", [(15, 3), (1024, 3), (96, 2)])
def test_unsupported_image_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="image"):
        ImageShape(*shape)


def test_weights_are_a_function_of_the_seed_alone():
    shape, recipe = ImageShape(28, 1), check_recipe({"optim": {"seed": 3}})
    first, torch_state = build_model(recipe, shape), torch.get_rng_state()
    second = build_model(recipe, shape)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(torch_state, torch.get_rng_state())


@pytest.mark.parametrize("size", [28, 96])
def test_without_norms_the_signal_keeps_its_scale(size):
    """The first layers of a new network then have gradients, at any image size."""
    model = build_model(check_recipe({"loss": {"kl_factor": 0}}), ImageShape(size, 3))
    decoder = [lambda z: model.from_latent(z).view(-1, *model._feature_shape), *model.decoder]
    hidden, sds = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0)), []
    for layer in (*model.encoder, model.to_latent, *decoder):
        hidden = layer(hidden)
        sds.append(hidden.std().item())
    assert 0.05 < min(sds) <= max(sds) < 3


def test_kl_equals_that_of_torch_distributions():
    posterior = DiagonalGaussian(torch.randn(6, 4), torch.randn(6, 4))
    kl = posterior.kl()
    q = torch.distributions.Normal(posterior.mean, torch.exp(0.5 * posterior.logvar))
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl, expected)


def test_z_has_the_sd_of_the_posterior():
    """The sd is exp(logvar / 2)."""
    mean, logvar = torch.tensor([[1.0, -3.0]]).expand(4000, 2), torch.tensor([[math.log(16), math.log(0.25)]])
    posterior = DiagonalGaussian(mean, logvar.expand(4000, 2))
    torch.testing.assert_close(posterior.sample(torch.ones(4000, 2)), torch.tensor([[5.0, -2.5]]).expand(4000, 2))
    z = posterior.sample(torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)))
    for values, sd, centre in zip(z.T, (4, 0.5), (1, -3), strict=True):
        assert stats.kstest(values.numpy(), stats.norm(centre, sd).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("bias", "bound"), [(1e4, 20), (-1e4, -30)])
def test_extreme_logvar_is_clamped_and_leaves_the_kl_finite(bias, bound):
    model = build_model(check_recipe({"model": {"z_dim": 3}}), ImageShape(16, 1))
    torch.nn.init.constant_(model.to_latent.bias[3:], bias)
    posterior = model.encode(torch.rand(2, 1, 16, 16))
    assert (posterior.logvar == bound).all()
    assert posterior.kl().isfinite().all()
    assert posterior.mean.abs().max() < 100


def test_network_equals_its_layers_written_out():
    """A size that is padded, by one more pixel after than before; two channels in, the mean and logvar out."""
    model = build_model(check_recipe({"model": {"z_dim": 3, "channels": [4, 5, 6, 7]}}), ImageShape(17, 1))
    images, noise = torch.rand(2, 1, 17, 17), torch.randn(2, 3)
    hidden = torch.zeros(2, 1, 32, 32)
    hidden[:, :, 7:24, 7:24] = images
    for layer in (0, 3, 6, 9):
        hidden = F.silu(F.conv2d(hidden, model.encoder[layer].weight, model.encoder[layer].bias, stride=2, padding=1))
    mean, logvar = F.linear(hidden.flatten(1), model.to_latent.weight, model.to_latent.bias).split(3, dim=1)
    hidden = F.linear(mean + noise * torch.exp(logvar / 2), model.from_latent.weight, model.from_latent.bias)
    hidden = hidden.view(2, 7, 2, 2)
    for layer in (0, 3, 6, 9):
        weight, bias = model.decoder[layer].weight, model.decoder[layer].bias
        hidden = F.conv_transpose2d(hidden, weight, bias, stride=2, padding=1)
        hidden = F.silu(hidden) if layer < 9 else hidden
    logits, posterior = model(images, noise)
    torch.testing.assert_close(posterior.mean, mean)
    torch.testing.assert_close(posterior.logvar, logvar)
    torch.testing.assert_close(logits, hidden[:, :, 7:24, 7:24])


def test_decoded_image_is_the_sigmoid_of_the_logits_in_256_steps():
    model = build_model(check_recipe({"model": {"z_dim": 3}}), ImageShape(16, 3))
    z = 3 * torch.randn(4, 3)
    expected = (255 * torch.sigmoid(model.logits(z))).round().permute(0, 2, 3, 1)
    assert torch.equal(model.decode(z).float(), expected)


def test_uint8_round_trip_is_exact():
    images = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(images)), images)
