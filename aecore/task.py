"""What the encoder sees and what the decoder must give: the one place between clean images and the network.

All that is drawn here is a function of (seed, step, position in the global batch), made on the training device. So it
repeats exactly, and is the same however many workers share the batch.
"""

import torch
from torch import Tensor

from aecore.config import Recipe
from aecore.feed import Batch
from aecore.model import to_float
from aecore.order import seed_of

NOISE, FLIP = 1, 2  # what the counters' streams are for


def make_pair(recipe: Recipe, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
    """The network's input and its target in a training step, floats in [0, 1] of (local, channels, size, size)."""
    images = batch.images
    if recipe.data.flip:
        drawn = torch.rand(batch.count, generator=stream(images.device, recipe, step, FLIP), device=images.device)
        mirrored = drawn[batch.positions] < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(2), images)
    clean = to_float(images)
    return clean, clean


def stream(device: torch.device, recipe: Recipe, step: int, purpose: int) -> torch.Generator:
    """The random numbers of one step and purpose; draw a global batch's whole, then take this worker's positions."""
    return torch.Generator(device).manual_seed(seed_of(recipe.optim.seed, step, purpose))
