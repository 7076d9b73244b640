"""The loss of one image: summed pixel loss + kl_factor * summed KL (Kingma 2014, eq. 7; Higgins 2017, eq. 4)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from aecore.model import Latent


def bce(logits: Tensor, images: Tensor) -> Tensor:
    """Binary cross-entropy summed over pixels, nats per image `(batch,)`; `images` in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).sum(1)


def mse(logits: Tensor, images: Tensor) -> Tensor:
    """Squared error summed over pixels, per image `(batch,)`."""
    return F.mse_loss(logits.sigmoid(), images, reduction="none").flatten(1).sum(1)


PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"bce": bce, "mse": mse}


def loss_parts(pixels: str, logits: Tensor, latent: Latent, images: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction and KL of each image, both `(batch,)` float32, to be joined as recon + kl_factor * kl."""
    return PIXEL_LOSSES[pixels](logits, images), latent.kl().sum(1)
