"""The convolutional autoencoder: four layers each way, deterministic (AE) or variational (VAE, Kingma 2014)."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aecore.config import Model, Recipe
from aecore.model.sync_batch_norm import SyncBatchNorm

# exp(logvar) stays finite and the KL of a near-AE does not explode in its first epoch.
LOGVAR_RANGE = (-30.0, 20.0)
NETWORK = 2  # what weights are for; raised when the network that goes with them changes (1: LeakyReLU)
ACTIVE_KL = 0.01  # variance of a component's mean above which it counts as used (Burda 2016, section 5)
MIN_SIZE, MAX_SIZE = 16, 512


@dataclass(frozen=True)
class ImageShape:
    """The images of a dataset: square, `size` pixels a side, `channels` 1 or 3."""

    size: int
    channels: int

    def __post_init__(self) -> None:
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ValueError(f"image size must be between {MIN_SIZE} and {MAX_SIZE}, not {self.size}")
        if self.channels not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels, not {self.channels}")

    @property
    def padded(self) -> int:
        """The side after padding to a multiple of 16, which four halvings need."""
        return -(-self.size // 16) * 16


@dataclass(frozen=True)
class DiagonalGaussian:
    """The encoder's answer, each `(batch, z_dim)` float32; `logvar` is None for an AE."""

    mean: Tensor
    logvar: Tensor | None

    def sample(self, noise: Tensor) -> Tensor:
        """z = mean + noise * sd (Kingma 2014, eq. 10); the mean alone for an AE."""
        return self.mean if self.logvar is None else self.mean + noise * torch.exp(0.5 * self.logvar)

    def kl(self) -> Tensor:
        """KL(q(z|x) || N(0, 1)) per component, `(batch, z_dim)` (Kingma 2014, appendix B); zeros for an AE."""
        if self.logvar is None:
            return torch.zeros_like(self.mean)
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)


class Autoencoder(nn.Module):
    def __init__(self, config: Model, image: ImageShape, *, variational: bool):
        super().__init__()
        self.image, self.z_dim, self.variational = image, config.z_dim, variational
        side = image.padded // 16
        sizes = [image.channels, *config.channels]
        self._grid = (config.channels[-1], side, side)
        flat = config.channels[-1] * side * side

        down: list[nn.Module] = []
        for before, after in pairwise(sizes):
            down += [
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                _norm(config.norm, after),
                nn.SiLU(),
            ]
        self.encoder = nn.Sequential(*down, nn.Flatten())
        self.to_latent = nn.Linear(flat, config.z_dim * (2 if variational else 1))

        self.from_latent = nn.Linear(config.z_dim, flat)
        up: list[nn.Module] = []
        for before, after in zip(sizes[:1:-1], sizes[-2:0:-1], strict=True):
            up += [_upsample(before, after), _norm(config.norm, after), nn.SiLU()]
        self.decoder = nn.Sequential(*up, _upsample(sizes[1], image.channels))
        self.apply(_initialise)

    @property
    def device(self) -> torch.device:
        return self.to_latent.weight.device

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """`images` (batch, channels, size, size) float in [0, 1]."""
        low = (self.image.padded - self.image.size) // 2
        high = self.image.padded - self.image.size - low
        out = _full(self.to_latent(self.encoder(F.pad(images, (low, high, low, high)))))
        if not self.variational:
            return DiagonalGaussian(out, None)
        mean, logvar = out.chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar.clamp(*LOGVAR_RANGE))

    def logits(self, z: Tensor) -> Tensor:
        """`z` (batch, z_dim) to pixel logits (batch, channels, size, size); their sigmoid is the image."""
        grid = self.from_latent(z).view(-1, *self._grid)
        out = _full(self.decoder(grid))
        low = (self.image.padded - self.image.size) // 2
        return out[:, :, low : low + self.image.size, low : low + self.image.size]

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, DiagonalGaussian]:
        """Logits of the reconstructions and the latent distribution; `noise` (batch, z_dim) ~ N(0, 1)."""
        latent = self.encode(images)
        return self.logits(latent.sample(noise)), latent

    @torch.inference_mode()
    def decode(self, z: Tensor) -> Tensor:
        """`z` (batch, z_dim) float32 to images (batch, size, size, channels) uint8."""
        return to_uint8(torch.sigmoid(self.logits(z)))


def to_uint8(images: Tensor) -> Tensor:
    """(batch, channels, size, size) float in [0, 1] to (batch, size, size, channels) uint8."""
    return images.mul(255.0).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def to_float(images: Tensor) -> Tensor:
    """(batch, size, size, channels) uint8 to (batch, channels, size, size) float32 in [0, 1], channels last."""
    return images.permute(0, 3, 1, 2).float().div_(255.0)


def default_device() -> torch.device:
    """The GPU that this process has, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_model(recipe: Recipe, image: ImageShape) -> Autoencoder:
    """A freshly initialised network; its weights are a function of `recipe.optim.seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.optim.seed)
        model = Autoencoder(recipe.model, image, variational=recipe.variational)
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _full(out: Tensor) -> Tensor:
    """What came out of layers in bf16 as float32; float64 stays."""
    return out.float() if out.dtype is torch.bfloat16 else out


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "sync_batch":
        return SyncBatchNorm(channels)
    if kind == "none":
        return nn.Identity()
    # Groups of about 8 channels; the count must divide them.
    return nn.GroupNorm(next(g for g in range(max(1, channels // 8), 0, -1) if channels % g == 0), channels)


def _initialise(layer: nn.Module) -> None:
    """Weights of variance 2 / fan-in in convolutions (He 2015), 1 / fan-in in the linear layers, which no SiLU follows.

    So the signal keeps its size from layer to layer where no norm sees to it.
    """
    if isinstance(layer, nn.Linear):
        variance = 1 / layer.in_features
    elif isinstance(layer, nn.Conv2d):
        variance = 2 / (layer.in_channels * math.prod(layer.kernel_size))
    elif isinstance(layer, nn.ConvTranspose2d):  # its stride leaves each pixel a quarter of the window
        variance = 2 / (layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride))
    else:
        return
    nn.init.normal_(layer.weight, std=variance**0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def _upsample(before: int, after: int) -> nn.Module:
    # 4, a multiple of the stride: of 3, some pixels would get more than others, and pictures a lattice (Odena 2016).
    return nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
