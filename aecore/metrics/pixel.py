"""Numbers that judge reconstructions and decoded z-points."""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PYRAMID_FLOOR = 16  # Karras 2018 stops the Laplacian pyramid at 16 pixels
PATCH = 7
MAX_PATCHES = 16_384
SSIM_WINDOW, SSIM_SD = 11, 1.5
CHROMA = ((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # Cb and Cr of RGB: ITU-R T.871, as in JPEG


def psnr(squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [0, 1] from their mean squared errors; same shape."""
    return -10.0 * torch.log10(squared_error.clamp_min(1e-10))


def chroma(images: Tensor) -> Tensor:
    """The colours alone, Cb and Cr (ITU-R T.871) of RGB `images` (n, 3, h, w) float in [0, 1].

    Float (n, 2, h, w) in [-0.5, 0.5], all 0 for gray: a picture's light and dark, and so most of its sharpness, has no
    part in it.
    """
    return torch.einsum("nchw,kc->nkhw", images, torch.tensor(CHROMA).to(images))


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each pair of images, `(n,)`: 1 for equal ones, about 0 for unlike ones (Wang 2004).

    Both (n, channels, size, size) float in [0, 1], at least 11 pixels a side. A Gaussian window of 11 pixels and sd
    1.5, where it lies wholly inside; the mean over places and channels.
    """
    window = _gaussian_window(images.shape[-1]).to(images)
    blur = lambda maps: window @ maps @ window.T  # noqa: E731
    mean, wanted = blur(images), blur(reference)
    variance, variance_wanted = blur(images.square()) - mean.square(), blur(reference.square()) - wanted.square()
    covariance = blur(images * reference) - mean * wanted
    c1, c2 = 0.01**2, 0.03**2
    alike = (2 * mean * wanted + c1) * (2 * covariance + c2)
    return (alike / ((mean.square() + wanted.square() + c1) * (variance + variance_wanted + c2))).flatten(1).mean(1)


@cache
def _gaussian_window(size: int) -> Tensor:
    """The window as a matrix that blurs along one side, (size - 10, size)."""
    place, row = torch.arange(size), torch.arange(size - SSIM_WINDOW + 1)[:, None] + SSIM_WINDOW // 2
    weights = torch.exp(-((place - row) ** 2) / (2 * SSIM_SD**2)) * ((place - row).abs() <= SSIM_WINDOW // 2)
    return weights / weights.sum(1, keepdim=True)


def sliced_wasserstein(images: Tensor, reference: Tensor, *, seed: int = 0, projections: int = 128) -> float:
    """Sliced Wasserstein distance on Laplacian pyramids, times 1000, mean over levels (Karras 2018, section 5).

    Both are (n, channels, size, size) float in [0, 1]: 0 for equal sets, larger for sets that look less alike at
    some scale. Unlike the paper, both are normalised with the reference's statistics: normalised with its own, a
    set of nearly gray images would count as full of contrast.
    """
    return SlicedWasserstein(reference, seed=seed, projections=projections)(images)


class SlicedWasserstein:
    """`sliced_wasserstein` of several sets of images to one reference, whose part is computed once."""

    def __init__(self, reference: Tensor, *, seed: int = 0, projections: int = 128):
        generator = torch.Generator().manual_seed(seed)
        self._levels: list[tuple[Callable[[Tensor], Tensor], Tensor]] = []
        for wanted in _pyramid(reference):
            where = torch.randint(0, 2**31, (MAX_PATCHES, 3), generator=generator)
            patches = _patches(wanted, where)
            mean = patches.mean(dim=(0, 2, 3), keepdim=True)
            sd = patches.std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-6)
            directions = F.normalize(torch.randn(patches[0].numel(), projections, generator=generator), dim=0)
            project = partial(_project, where=where, mean=mean, sd=sd, directions=directions)
            self._levels.append((project, project(wanted)))

    def __call__(self, images: Tensor) -> float:
        pairs = zip(_pyramid(images), self._levels, strict=True)
        distances = [(project(level) - wanted).abs().mean().item() for level, (project, wanted) in pairs]
        return 1000.0 * sum(distances) / len(distances)


def _project(level: Tensor, where: Tensor, mean: Tensor, sd: Tensor, directions: Tensor) -> Tensor:
    """The patches at `where`, normalised and projected, sorted along each direction: (projections, MAX_PATCHES)."""
    patches = (_patches(level, where) - mean) / sd
    along = (directions.T @ patches.flatten(1).T).numpy()
    return torch.from_numpy(np.sort(along, axis=1))  # on CPUs 20 to 50 times faster than torch's sort


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
