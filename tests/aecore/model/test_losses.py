"""The loss against an independent float64 reference in numpy, closed forms, and numerical gradients."""

import math

import numpy as np
import pytest
import torch

from aecore.config import Loss, check_recipe
from aecore.model.autoencoder import DiagonalGaussian, ImageShape, build_model
from aecore.model.losses import loss_terms

FACTORS = [0.0, 1e-6, 1.0, 10.0]


def reference(pixels, logits, images, mean, logvar):
    """Reconstruction and KL of each image, in numpy."""
    p = 1 / (1 + np.exp(-logits))
    each = -(images * np.log(p) + (1 - images) * np.log1p(-p)) if pixels == "bce" else (p - images) ** 2
    kl = -0.5 * (1 + logvar - mean**2 - np.exp(logvar))
    return each.sum((1, 2, 3)), kl.sum(1)


@pytest.mark.parametrize("pixels", ["bce", "mse"])
@pytest.mark.parametrize("kl_factor", FACTORS)
def test_against_a_float64_reference(pixels, kl_factor):
    logits, images = torch.randn(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
    latent = DiagonalGaussian(torch.randn(4, 7), torch.randn(4, 7))
    recon, kl, held = loss_terms(Loss(pixels=pixels), logits, latent, images)
    assert torch.equal(kl, held)
    doubles = [t.double().numpy() for t in (logits, images, latent.mean, latent.logvar)]
    wanted_recon, wanted_kl = reference(pixels, *doubles)
    np.testing.assert_allclose(recon.numpy(), wanted_recon, rtol=1e-5)
    np.testing.assert_allclose(kl.numpy(), wanted_kl, rtol=1e-5)
    ours = float((recon + kl_factor * held).mean())
    assert ours == pytest.approx(float((wanted_recon + kl_factor * wanted_kl).mean()), rel=1e-5)


@pytest.mark.parametrize("pixels", ["bce", "mse"])
@pytest.mark.parametrize("kl_factor", FACTORS)
def test_gradients_are_those_of_finite_differences(pixels, kl_factor):
    """All the way through a small net, in float64, with a fixed draw of the noise."""
    recipe = check_recipe({
        "model": {"z_dim": 3, "channels": [2, 2, 2, 2], "norm": "group"},
        "loss": {"pixels": pixels, "kl_factor": kl_factor},
    })  # fmt: skip
    model = build_model(recipe, ImageShape(16, 1)).double()
    torch.manual_seed(0)
    images, noise = torch.rand(2, 1, 16, 16, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)

    def loss():
        recon, _, held = loss_terms(recipe.loss, *model(images, noise), images)
        return (recon + kl_factor * held).sum()

    loss().backward()
    for parameter in model.parameters():
        for index in {0, parameter.numel() // 2, parameter.numel() - 1}:
            at, step = np.unravel_index(index, parameter.shape), 1e-5
            kept = parameter.data[at].item()
            with torch.no_grad():
                parameter[at] = kept + step
                high = loss().item()
                parameter[at] = kept - step
                low = loss().item()
                parameter[at] = kept
            assert parameter.grad[at].item() == pytest.approx((high - low) / (2 * step), rel=1e-4, abs=1e-4)


def test_closed_forms():
    """The KL of N(m, s^2) from N(0, 1), and pixels that are even chances: ln 2 each."""
    latent = DiagonalGaussian(torch.full((1, 5), 2.0), torch.full((1, 5), math.log(0.25)))
    recon, kl, _ = loss_terms(Loss(), torch.zeros(1, 3, 16, 16), latent, torch.full((1, 3, 16, 16), 0.5))
    assert kl.item() == pytest.approx(5 * (math.log(2) + 0.5 * (0.25 + 4 - 1)))
    assert recon.item() == pytest.approx(3 * 16 * 16 * math.log(2))


def test_free_bits_cost_nothing_below_their_mark():
    mean = torch.tensor([[0.1, 2.0]], requires_grad=True)
    latent = DiagonalGaussian(mean, torch.zeros(1, 2))
    _, kl, held = loss_terms(Loss(free_bits=0.5), torch.zeros(1, 1, 16, 16), latent, torch.zeros(1, 1, 16, 16))
    assert kl.item() == pytest.approx(0.005 + 2.0)
    assert held.item() == pytest.approx(0.5 + 2.0)
    held.sum().backward()
    assert mean.grad.tolist() == [[0.0, 2.0]]


def test_an_ae_has_no_kl():
    _, kl, _ = loss_terms(
        Loss(), torch.zeros(2, 1, 4, 4), DiagonalGaussian(torch.randn(2, 3), None), torch.zeros(2, 1, 4, 4)
    )
    assert kl.tolist() == [0.0, 0.0]
