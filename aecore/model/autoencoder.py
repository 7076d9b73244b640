"""The convolutional autoencoder: four layers each way, deterministic (AE) or variational (VAE, Kingma 2014)."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aecore.config import Model, Recipe
from aecore.model.sync_batch_norm import SyncBatchNorm

# Bounds within which exp(logvar) is finite; without them the KL of a near-AE explodes in its first epoch.
LOGVAR_RANGE = (-30.0, 20.0)
NETWORK_VERSION = 2  # stored with weights; raise it if the network changes (1: LeakyReLU)
ACTIVE_VARIANCE = 0.01  # a dimension is active if its mean varies more over the images (Burda 2016, section 5)
MIN_SIZE, MAX_SIZE = 16, 512
BATCH_SIZE = 64  # images or z-points in one call of the network outside of training


@dataclass(frozen=True)
class ImageShape:
    """The shape of a dataset's images: square, `size` pixels (16 to 512) a side, `channels` 1 or 3.

    Raises ValueError for any other.
    """

    size: int
    channels: int

    def __post_init__(self) -> None:
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ValueError(f"image size must be between {MIN_SIZE} and {MAX_SIZE}, not {self.size}")
        if self.channels not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels, not {self.channels}")

    @property
    def padded_size(self) -> int:
        """The size rounded up to a multiple of 16: four strided convolutions halve it exactly."""
        return -(-self.size // 16) * 16


@dataclass(frozen=True)
class DiagonalGaussian:
    """The encoder's output q(z|x) = N(mean, exp(logvar)): float32 `(batch, z_dim)` each, `logvar` None for an AE."""

    mean: Tensor
    logvar: Tensor | None

    def sample(self, noise: Tensor) -> Tensor:
        """Return z = mean + noise * sd (Kingma 2014, eq. 10), the mean for an AE; `noise` (batch, z_dim) ~ N(0, 1)."""
        return self.mean if self.logvar is None else self.mean + noise * torch.exp(0.5 * self.logvar)

    def kl(self) -> Tensor:
        """Return KL(q(z|x) || N(0, 1)) per dimension, `(batch, z_dim)` in nats; 0 for an AE (Kingma 2014, app. B)."""
        if self.logvar is None:
            return torch.zeros_like(self.mean)
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)


class Autoencoder(nn.Module):
    """Four convolutions of stride 2, a linear layer to q(z|x) (VAE) or z (AE), and the transposed way back."""

    def __init__(self, config: Model, image: ImageShape, *, variational: bool):
        super().__init__()
        self.image, self.z_dim, self.variational = image, config.z_dim, variational
        widths = [image.channels, *config.channels]
        side = image.padded_size // 16
        self._feature_shape = (config.channels[-1], side, side)
        features = math.prod(self._feature_shape)

        down: list[nn.Module] = []
        for c_in, c_out in pairwise(widths):
            down += [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1), _norm(config.norm, c_out), nn.SiLU()]
        self.encoder = nn.Sequential(*down, nn.Flatten())
        self.to_latent = nn.Linear(features, config.z_dim * (2 if variational else 1))

        self.from_latent = nn.Linear(config.z_dim, features)
        up: list[nn.Module] = []
        for c_in, c_out in pairwise(reversed(config.channels)):
            up += [_upsample(c_in, c_out), _norm(config.norm, c_out), nn.SiLU()]
        self.decoder = nn.Sequential(*up, _upsample(config.channels[0], image.channels))
        self.apply(_init_weights)

    @property
    def device(self) -> torch.device:
        return self.to_latent.weight.device

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """Return q(z|x) of `images` (batch, channels, size, size) float in [0, 1]."""
        low, high = self._padding()
        hidden = _bf16_to_float32(self.to_latent(self.encoder(F.pad(images, (low, high, low, high)))))
        if not self.variational:
            return DiagonalGaussian(hidden, None)
        mean, logvar = hidden.chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar.clamp(*LOGVAR_RANGE))

    def logits(self, z: Tensor) -> Tensor:
        """Return pixel logits (batch, channels, size, size) of `z` (batch, z_dim); their sigmoid is the image."""
        features = self.from_latent(z).view(-1, *self._feature_shape)
        padded = _bf16_to_float32(self.decoder(features))
        low, size = self._padding()[0], self.image.size
        return padded[:, :, low : low + size, low : low + size]

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, DiagonalGaussian]:
        """Return the reconstructions' logits and q(z|x).

        `images` (batch, channels, size, size) float in [0, 1], `noise` (batch, z_dim) ~ N(0, 1).
        """
        posterior = self.encode(images)
        return self.logits(posterior.sample(noise)), posterior

    @torch.inference_mode()
    def decode(self, z: Tensor) -> Tensor:
        """Return images uint8 (batch, size, size, channels) of `z` (batch, z_dim) float32."""
        return to_uint8(torch.sigmoid(self.logits(z)))

    def _padding(self) -> tuple[int, int]:
        """Return the pixels to pad before and after each row and column."""
        total = self.image.padded_size - self.image.size
        return total // 2, total - total // 2


def decode_batches(model: Autoencoder, z: Tensor) -> np.ndarray:
    """Return the images uint8 (n, size, size, channels) of z-points float32 (n, z_dim), of BATCH_SIZE at a time."""
    return torch.cat([model.decode(batch.to(model.device)).cpu() for batch in z.split(BATCH_SIZE)]).numpy()


def to_uint8(images: Tensor) -> Tensor:
    """Convert (batch, channels, size, size) float in [0, 1] to (batch, size, size, channels) uint8."""
    return images.mul(255.0).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def to_float(images: Tensor) -> Tensor:
    """Convert (batch, size, size, channels) uint8 to (batch, channels, size, size) float32 in [0, 1], channels last."""
    return images.permute(0, 3, 1, 2).float().div_(255.0)


def default_device() -> torch.device:
    """Return this process's GPU if it has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_model(recipe: Recipe, image: ImageShape) -> Autoencoder:
    """Return a new network in channels-last format; its weights are a function of `recipe.optim.seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.optim.seed)
        model = Autoencoder(recipe.model, image, variational=recipe.variational)
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _bf16_to_float32(tensor: Tensor) -> Tensor:
    # Loss and latents are float32 under autocast; float64 stays float64.
    return tensor.float() if tensor.dtype is torch.bfloat16 else tensor


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "sync_batch":
        return SyncBatchNorm(channels)
    if kind == "none":
        return nn.Identity()
    # Groups of about 8 channels; their number must divide the channels.
    num_groups = next(n for n in range(max(1, channels // 8), 0, -1) if channels % n == 0)
    return nn.GroupNorm(num_groups, channels)


def _init_weights(layer: nn.Module) -> None:
    """Draw weights of variance 2 / fan-in for convolutions (He 2015) and 1 / fan-in for linear layers; zero the biases.

    No SiLU follows a linear layer. So the signal keeps its scale from layer to layer without norms.
    """
    if isinstance(layer, nn.Linear):
        variance = 1 / layer.in_features
    elif isinstance(layer, nn.Conv2d):
        variance = 2 / (layer.in_channels * math.prod(layer.kernel_size))
    elif isinstance(layer, nn.ConvTranspose2d):  # stride 2: a pixel sums over a quarter of the kernel's weights
        variance = 2 / (layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride))
    else:
        return
    nn.init.normal_(layer.weight, std=variance**0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def _upsample(c_in: int, c_out: int) -> nn.Module:
    # The kernel size is a multiple of the stride: 3 would give a checkerboard (Odena 2016).
    return nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1)
