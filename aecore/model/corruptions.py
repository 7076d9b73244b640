"""What the encoder sees and what the decoder must give: the one place between clean images and the network.

All that is drawn here is a function of (seed, step, position in the global batch), made on the training device. So it
repeats exactly, and is the same however many workers share the batch. Add a task by writing its section in
aecore.config (Task and TASKS) and a function here, and naming it in CORRUPTIONS.
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

NOISE, FLIP, TRAIN, JUDGE = 1, 2, 3, 4  # what the counters' streams are for
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
SHADES = {"black": 0.0, "gray": 0.5}


@dataclass(frozen=True)
class BatchNoise:
    """Random numbers of a global batch of `count` images, of which the caller holds those at `positions`."""

    generator: torch.Generator
    positions: Tensor  # int64 (local,), on the generator's device
    count: int

    def uniform(self, *shape: int) -> Tensor:
        """In [0, 1), float32 (local, *shape)."""
        return torch.rand(self.count, *shape, generator=self.generator, device=self.generator.device)[self.positions]

    def normal(self, *shape: int) -> Tensor:
        """N(0, 1), float32 (local, *shape)."""
        return torch.randn(self.count, *shape, generator=self.generator, device=self.generator.device)[self.positions]


def make_training_pair(recipe: Recipe, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
    """The network's input and its target in a training step, floats in [0, 1] of (local, channels, size, size)."""
    images = batch.images
    if recipe.data.flip:
        mirrored = draws_of(recipe, batch, step, FLIP).uniform() < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(2), images)
    clean = to_float(images)
    return corrupt(recipe.task, clean, draws_of(recipe, batch, step, TRAIN)), clean


def make_eval_pair(recipe: Recipe, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
    """As `make_training_pair`, for evaluation: `step` counts the batches of a split as stored."""
    clean = to_float(batch.images)
    return corrupt(recipe.task, clean, draws_of(recipe, batch, step, JUDGE)), clean


def draws_of(recipe: Recipe, batch: Batch, step: int, purpose: int) -> BatchNoise:
    """The random numbers of one step and purpose for this worker's part of its global batch."""
    return BatchNoise(make_generator(batch.images.device, recipe, step, purpose), batch.positions, batch.count)


def make_generator(device: torch.device, recipe: Recipe, step: int, purpose: int) -> torch.Generator:
    """The random numbers of one step and purpose; draw a global batch's whole, then take this worker's positions."""
    return torch.Generator(device).manual_seed(derive_seed(recipe.optim.seed, step, purpose))


def corrupt(task: Task, clean: Tensor, draws: BatchNoise) -> Tensor:
    """What the encoder sees in the place of `clean` (n, channels, size, size), both floats in [0, 1].

    `clean` itself for the task `reconstruct`. Raises ValueError for a task that these images do not suit.
    """
    make = CORRUPTIONS.get(task.kind)
    return make(task, clean, draws) if make else clean


def _denoise(task: Denoise, clean: Tensor, draws: BatchNoise) -> Tensor:
    # Cut to [0, 1], as what is stored in a picture file and sent to the endpoint would be.
    return (clean + task.sigma * draws.normal(*clean.shape[1:])).clamp_(0, 1)


def _drop(task: Drop, clean: Tensor, draws: BatchNoise) -> Tensor:
    return _hide(clean, draws.uniform(1, *clean.shape[2:]) >= task.keep, task.fill, draws)


def _recolor(task: Recolor, clean: Tensor, draws: BatchNoise) -> Tensor:
    if clean.shape[1] != 3:
        raise ValueError("task.kind recolor takes colour images: this dataset's are gray")
    red, green, blue = (weight * clean[:, i : i + 1] for i, weight in enumerate(LUMA))
    return (red + green + blue).expand_as(clean)


def _inpaint(task: Inpaint, clean: Tensor, draws: BatchNoise) -> Tensor:
    size = clean.shape[-1]
    side = max(1, round(task.block * size))
    count = max(1, round(task.share * size**2 / side**2))
    corners = (draws.uniform(2, count, 1) * (size - side + 1)).long().squeeze(-1)  # top and left of each hole
    top, left = corners.unbind(1)
    # 1 where a hole begins and -1 where it ends, in both directions, sum up to the number of holes over each pixel.
    edges = torch.zeros(len(clean), (size + 1) ** 2, dtype=torch.int32, device=clean.device)
    for down, across, sign in ((0, 0, 1), (side, 0, -1), (0, side, -1), (side, side, 1)):
        places = (top + down) * (size + 1) + left + across
        edges.scatter_add_(1, places, torch.full_like(places, sign, dtype=torch.int32))
    edges = edges.view(-1, 1, size + 1, size + 1)
    holes = edges.cumsum(2, dtype=torch.int32).cumsum(3, dtype=torch.int32)[..., :size, :size]
    return _hide(clean, holes > 0, task.fill, draws)


def _hide(clean: Tensor, hidden: Tensor, fill: Fill, draws: BatchNoise) -> Tensor:
    """`clean` with the pixels that are `hidden` (n, 1, size, size) filled."""
    return torch.where(hidden, draws.uniform(*clean.shape[1:]) if fill == "random" else SHADES[fill], clean)


CORRUPTIONS: dict[str, Callable[[Any, Tensor, BatchNoise], Tensor]] = {
    "denoise": _denoise, "drop": _drop, "recolor": _recolor, "inpaint": _inpaint,
}  # fmt: skip
