"""The loss of one image: summed pixel loss + kl_factor * summed KL (Kingma 2014, eq. 7; Higgins 2017, eq. 4)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from aecore.config import Loss
from aecore.model.autoencoder import DiagonalGaussian


def bce(logits: Tensor, images: Tensor) -> Tensor:
    """Return the binary cross-entropy of each image, summed over pixels, `(batch,)` in nats; `images` in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).sum(1)


def mse(logits: Tensor, images: Tensor) -> Tensor:
    """Return the squared error of each image, summed over pixels, `(batch,)`; `images` in [0, 1]."""
    return F.mse_loss(logits.sigmoid(), images, reduction="none").flatten(1).sum(1)


PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"bce": bce, "mse": mse}


def loss_terms(
    loss: Loss, logits: Tensor, posterior: DiagonalGaussian, images: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixel loss, the KL and the penalised KL of each image: float32 `(batch,)`, in nats.

    `logits` and `images` (batch, channels, size, size), the latter in [0, 1]. In the penalised KL, which belongs into
    the training loss, each dimension counts at least `loss.free_bits`, and has no gradient below it (Kingma 2016,
    appendix C.8; per image and not per batch, so that the number of workers makes no difference).
    """
    kl_per_dim = posterior.kl()
    penalised = kl_per_dim.clamp_min(loss.free_bits) if loss.free_bits else kl_per_dim
    return PIXEL_LOSSES[loss.pixels](logits, images), kl_per_dim.sum(1), penalised.sum(1)
