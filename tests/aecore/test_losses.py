import pytest
import torch

from aecore.losses import loss_parts
from aecore.model import Latent


@pytest.mark.parametrize("pixels", ["bce", "mse"])
@pytest.mark.parametrize("kl_factor", [0.0, 1e-6, 1.0, 10.0])
def test_against_a_float64_reference(pixels, kl_factor):
    logits, images = torch.randn(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
    latent = Latent(torch.randn(4, 7), torch.randn(4, 7))
    recon, kl = loss_parts(pixels, logits, latent, images)
    ours = (recon + kl_factor * kl).mean()

    p, x = torch.sigmoid(logits.double()), images.double()
    each = -(x * p.log() + (1 - x) * (1 - p).log()) if pixels == "bce" else (p - x) ** 2
    mean, logvar = latent.mean.double(), latent.logvar.double()
    reference_kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar)
    reference = (each.sum((1, 2, 3)) + kl_factor * reference_kl.sum(1)).mean()
    torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=1e-4)


def test_an_ae_has_no_kl():
    _, kl = loss_parts("bce", torch.zeros(2, 1, 4, 4), Latent(torch.randn(2, 3), None), torch.zeros(2, 1, 4, 4))
    assert kl.tolist() == [0.0, 0.0]
