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
    """Return the pixel loss and the KL of each image, in numpy."""
    p = 1 / (1 + np.exp(-logits))
    losses = -(images * np.log(p) + (1 - images) * np.log1p(-p)) if pixels == "bce" else (p - images) ** 2
    kl = -0.5 * (1 + logvar - mean**2 - np.exp(logvar))
    return losses.sum((1, 2, 3)), kl.sum(1)


@pytest.mark.parametrize("pixels", ["bce", "mse"])
@pytest.mark.parametrize("kl_factor", FACTORS)
def test_losses_equal_a_float64_reference(pixels, kl_factor):
    logits, images = torch.randn(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
    posterior = DiagonalGaussian(torch.randn(4, 7), torch.randn(4, 7))
    recon, kl, kl_penalty = loss_terms(Loss(pixels=pixels), logits, posterior, images)
    assert torch.equal(kl, kl_penalty)
    doubles = [t.double().numpy() for t in (logits, images, posterior.mean, posterior.logvar)]
    expected_recon, expected_kl = reference(pixels, *doubles)
    np.testing.assert_allclose(recon.numpy(), expected_recon, rtol=1e-5)
    np.testing.assert_allclose(kl.numpy(), expected_kl, rtol=1e-5)
    ours = float((recon + kl_factor * kl_penalty).mean())
    assert ours == pytest.approx(float((expected_recon + kl_factor * expected_kl).mean()), rel=1e-5)


@pytest.mark.parametrize("pixels", ["bce", "mse"])
@pytest.mark.parametrize("kl_factor", FACTORS)
def test_gradients_equal_finite_differences(pixels, kl_factor):
    """Through a whole small network, in float64, with fixed noise."""
    recipe = check_recipe({
        "model": {"z_dim": 3, "channels": [2, 2, 2, 2], "norm": "group"},
        "loss": {"pixels": pixels, "kl_factor": kl_factor},
    })  # fmt: skip
    model = build_model(recipe, ImageShape(16, 1)).double()
    torch.manual_seed(0)
    images, noise = torch.rand(2, 1, 16, 16, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)

    def loss():
        recon, _, kl_penalty = loss_terms(recipe.loss, *model(images, noise), images)
        return (recon + kl_factor * kl_penalty).sum()

    loss().backward()
    for parameter in model.parameters():
        for index in {0, parameter.numel() // 2, parameter.numel() - 1}:
            position, step = np.unravel_index(index, parameter.shape), 1e-5
            value = parameter.data[position].item()
            with torch.no_grad():
                parameter[position] = value + step
                high = loss().item()
                parameter[position] = value - step
                low = loss().item()
                parameter[position] = value
            assert parameter.grad[position].item() == pytest.approx((high - low) / (2 * step), rel=1e-4, abs=1e-4)


def test_losses_equal_closed_forms():
    """The KL of N(m, s^2) from N(0, 1), and a BCE of ln 2 for each pixel of probability 0.5."""
    posterior = DiagonalGaussian(torch.full((1, 5), 2.0), torch.full((1, 5), math.log(0.25)))
    recon, kl, _ = loss_terms(Loss(), torch.zeros(1, 3, 16, 16), posterior, torch.full((1, 3, 16, 16), 0.5))
    assert kl.item() == pytest.approx(5 * (math.log(2) + 0.5 * (0.25 + 4 - 1)))
    assert recon.item() == pytest.approx(3 * 16 * 16 * math.log(2))


def test_kl_below_free_bits_has_no_gradient():
    mean = torch.tensor([[0.1, 2.0]], requires_grad=True)
    posterior = DiagonalGaussian(mean, torch.zeros(1, 2))
    _, kl, kl_penalty = loss_terms(Loss(free_bits=0.5), torch.zeros(1, 1, 16, 16), posterior, torch.zeros(1, 1, 16, 16))
    assert kl.item() == pytest.approx(0.005 + 2.0)
    assert kl_penalty.item() == pytest.approx(0.5 + 2.0)
    kl_penalty.sum().backward()
    assert mean.grad.tolist() == [[0.0, 2.0]]


def test_ae_has_no_kl():
    _, kl, _ = loss_terms(
        Loss(), torch.zeros(2, 1, 4, 4), DiagonalGaussian(torch.randn(2, 3), None), torch.zeros(2, 1, 4, 4)
    )
    assert kl.tolist() == [0.0, 0.0]
