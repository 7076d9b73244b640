"""The loss of one image: summed pixel loss + kl_factor * summed KL (Kingma 2014, eq. 7; Higgins 2017, eq. 4)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from aecore.config import Loss
from aecore.model.autoencoder import DiagonalGaussian


def bce(logits: Tensor, images: Tensor) -> Tensor:
    """Binary cross-entropy summed over pixels, nats per image `(batch,)`; `images` in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).sum(1)


def mse(logits: Tensor, images: Tensor) -> Tensor:
    """Squared error summed over pixels, per image `(batch,)`."""
    return F.mse_loss(logits.sigmoid(), images, reduction="none").flatten(1).sum(1)


PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"bce": bce, "mse": mse}


def loss_parts(loss: Loss, logits: Tensor, latent: DiagonalGaussian, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruction loss and KL of each image, and the KL that the loss takes: `(batch,)` in nats, float32.

    They differ where a component's KL is below `loss.free_bits`: there it counts as that much and so has no gradient
    (Kingma 2016, appendix C.8, but for each image by itself, so that the number of workers makes no difference).
    """
    kl = latent.kl()
    held = kl.clamp_min(loss.free_bits) if loss.free_bits else kl
    return PIXEL_LOSSES[loss.pixels](logits, images), kl.sum(1), held.sum(1)
