"""Numbers that judge reconstructions and decoded z-points."""

import torch
import torch.nn.functional as F
from torch import Tensor

PYRAMID_FLOOR = 16  # Karras 2018 stops the Laplacian pyramid at 16 pixels
PATCH = 7
MAX_PATCHES = 16_384


def psnr(squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [0, 1] from their mean squared errors; same shape."""
    return -10.0 * torch.log10(squared_error.clamp_min(1e-10))


def sliced_wasserstein(images: Tensor, reference: Tensor, *, seed: int = 0, projections: int = 128) -> float:
    """Sliced Wasserstein distance on Laplacian pyramids, times 1000, mean over levels (Karras 2018, section 5).

    Both are (n, channels, size, size) float in [0, 1]: 0 for equal sets, larger for sets that look less alike at
    some scale. Unlike the paper, both are normalised with the reference's statistics: normalised with its own, a
    set of nearly gray images would count as full of contrast.
    """
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for level, wanted in zip(_pyramid(images), _pyramid(reference), strict=True):
        where = torch.randint(0, 2**31, (MAX_PATCHES, 3), generator=generator)
        patches, patches_wanted = _patches(level, where), _patches(wanted, where)
        mean = patches_wanted.mean(dim=(0, 2, 3), keepdim=True)
        sd = patches_wanted.std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-6)
        length = patches[0].numel()
        directions = F.normalize(torch.randn(length, projections, generator=generator), dim=0)
        projected = (((patches - mean) / sd).reshape(-1, length) @ directions).sort(dim=0).values
        projected_wanted = (((patches_wanted - mean) / sd).reshape(-1, length) @ directions).sort(dim=0).values
        distances.append((projected - projected_wanted).abs().mean().item())
    return 1000.0 * sum(distances) / len(distances)


def _pyramid(images: Tensor) -> list[Tensor]:
    levels = []
    while images.shape[-1] >= 2 * PYRAMID_FLOOR:
        small = F.avg_pool2d(images, 2)
        levels.append(images - F.interpolate(small, size=images.shape[-1], mode="bilinear", align_corners=False))
        images = small
    return [*levels, images]


def _patches(level: Tensor, where: Tensor) -> Tensor:
    # Random patches of random images: (MAX_PATCHES, channels, PATCH, PATCH).
    window = level.unfold(2, PATCH, 1).unfold(3, PATCH, 1)
    span = level.shape[-1] - PATCH + 1
    return window[where[:, 0] % len(level), :, where[:, 1] % span, where[:, 2] % span]
