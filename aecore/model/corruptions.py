"""Tasks: the encoder's input and the decoder's target, made from clean images.

All noise is a function of (seed, step, position in the global batch) and drawn on the training device: it repeats
exactly and does not depend on how many workers split the batch. To add a task, write its section in aecore.config (Task
and TASKS) and a function here, and list it in CORRUPTIONS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aecore.config import Denoise, Drop, Fill, Inpaint, Recipe, Recolor, Task
from aecore.data.loaders import Batch
from aecore.data.shuffle import derive_seed
from aecore.model.autoencoder import to_float

LATENT_NOISE, FLIP, TRAINING, EVALUATION = 1, 2, 3, 4  # the purpose of a random stream, part of its seed
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
FILL_VALUES = {"black": 0.0, "gray": 0.5}


@dataclass(frozen=True)
class BatchNoise:
    """Random numbers of a global batch of `count` images, of which this worker has those at `positions`."""

    generator: torch.Generator
    positions: Tensor  # int64 (local,), on the generator's device
    count: int

    def uniform(self, *shape: int) -> Tensor:
        """Return uniform numbers in [0, 1), float32 (local, *shape)."""
        return torch.rand(self.count, *shape, generator=self.generator, device=self.generator.device)[self.positions]

    def normal(self, *shape: int) -> Tensor:
        """Return N(0, 1) numbers, float32 (local, *shape)."""
        return torch.randn(self.count, *shape, generator=self.generator, device=self.generator.device)[self.positions]


def make_training_pair(recipe: Recipe, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
    """Return the network's input and target in training step `step`: float in [0, 1], (local, channels, size, size)."""
    images = batch.images
    if recipe.data.flip:
        flipped = make_batch_noise(recipe.optim.seed, batch, step, FLIP).uniform() < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(2), images)
    clean = to_float(images)
    return corrupt(recipe.task, clean, make_batch_noise(recipe.optim.seed, batch, step, TRAINING)), clean


def make_eval_pair(recipe: Recipe, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
    """Return input and target as `make_training_pair` does, unflipped; `step` counts a split's batches as stored."""
    clean = to_float(batch.images)
    return corrupt(recipe.task, clean, make_batch_noise(recipe.optim.seed, batch, step, EVALUATION)), clean


def make_batch_noise(seed: int, batch: Batch, step: int, purpose: int) -> BatchNoise:
    """Return this worker's random numbers for one step and purpose of the run with `seed`."""
    generator = torch.Generator(batch.images.device).manual_seed(derive_seed(seed, step, purpose))
    return BatchNoise(generator, batch.positions, batch.count)


def corrupt(task: Task, clean: Tensor, noise: BatchNoise) -> Tensor:
    """Return the encoder's input for `clean` images (n, channels, size, size), both float in [0, 1].

    For the task `reconstruct` it is `clean` itself. Raises ValueError if the task does not fit these images.
    """
    corruption = CORRUPTIONS.get(task.kind)
    return corruption(task, clean, noise) if corruption else clean


def _denoise(task: Denoise, clean: Tensor, noise: BatchNoise) -> Tensor:
    # Clipped to [0, 1], as a noisy image is that is stored in a file or sent to the endpoint.
    return (clean + task.sigma * noise.normal(*clean.shape[1:])).clamp_(0, 1)


def _drop(task: Drop, clean: Tensor, noise: BatchNoise) -> Tensor:
    return _fill_masked(clean, noise.uniform(1, *clean.shape[2:]) >= task.keep, task.fill, noise)


def _recolor(task: Recolor, clean: Tensor, noise: BatchNoise) -> Tensor:
    if clean.shape[1] != 3:
        raise ValueError("task.kind recolor needs colour images, and this dataset's are gray: take another task.kind")
    red, green, blue = (weight * clean[:, i : i + 1] for i, weight in enumerate(LUMA))
    return (red + green + blue).expand_as(clean)


def _inpaint(task: Inpaint, clean: Tensor, noise: BatchNoise) -> Tensor:
    size = clean.shape[-1]
    side = max(1, round(task.block * size))
    num_holes = max(1, round(task.share * size**2 / side**2))
    corners = (noise.uniform(2, num_holes) * (size - side + 1)).long()  # (n, 2, num_holes): top and left
    top, left = corners.unbind(1)
    # 2D difference array: +1 and -1 at the holes' corners; its cumulative sums count the holes over each pixel.
    corner_sums = torch.zeros(len(clean), (size + 1) ** 2, dtype=torch.int32, device=clean.device)
    for down, right, sign in ((0, 0, 1), (side, 0, -1), (0, side, -1), (side, side, 1)):
        indices = (top + down) * (size + 1) + left + right
        corner_sums.scatter_add_(1, indices, torch.full_like(indices, sign, dtype=torch.int32))
    corner_sums = corner_sums.view(-1, 1, size + 1, size + 1)
    holes = corner_sums.cumsum(2, dtype=torch.int32).cumsum(3, dtype=torch.int32)[..., :size, :size]
    return _fill_masked(clean, holes > 0, task.fill, noise)


def _fill_masked(clean: Tensor, mask: Tensor, fill: Fill, noise: BatchNoise) -> Tensor:
    """Return `clean` with the pixels of `mask` (n, 1, size, size) bool filled."""
    return torch.where(mask, noise.uniform(*clean.shape[1:]) if fill == "random" else FILL_VALUES[fill], clean)


CORRUPTIONS: dict[str, Callable[[Any, Tensor, BatchNoise], Tensor]] = {
    "denoise": _denoise, "drop": _drop, "recolor": _recolor, "inpaint": _inpaint,
}  # fmt: skip
