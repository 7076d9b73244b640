"""What a training holds while it runs, and sums over images that no step waits for."""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from aecore.config import Recipe
from aecore.data.loaders import Loader, NodeLoader
from aecore.data.shuffle import BatchSampler, World
from aecore.model.autoencoder import Autoencoder
from aecore.training.checkpoint import TrainState

EPOCH_SUMS = ("recon", "kl", "count")  # of the open epoch; a checkpoint holds them


class RunningSums:
    """Sums over images, in float64 on the device: adding waits for nothing, reading for the device."""

    def __init__(self, device: torch.device, **widths: int) -> None:
        """`widths` names the sums, each of 1 or more components."""
        self.widths = widths
        self.sums = torch.zeros(sum(widths.values()), dtype=torch.float64, device=device)

    def add(self, **values: Tensor) -> None:
        """Add what each image has: tensors `(images,)` or `(images, width)`, in the order of the widths."""
        assert list(values) == list(self.widths)
        rows = [value.detach().double().reshape(len(value), width) for value, width in zip(values.values(),
                self.widths.values(), strict=True)]  # fmt: skip
        self.sums += torch.cat(rows, 1).sum(0)

    def read(self, world: World) -> dict[str, np.ndarray]:
        """Sums over all workers' images, float64 `(width,)` each. A collective of all workers."""
        every = self.sums.clone()
        if world.size > 1:
            dist.all_reduce(every)
        parts = every.cpu().split(list(self.widths.values()))
        return {key: part.numpy() for key, part in zip(self.widths, parts, strict=True)}


@dataclass
class TrainingRun:
    """What a training holds: `network` is the model as called, wrapped for DDP where there are several workers."""

    recipe: Recipe
    model: Autoencoder
    network: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    world: World
    progress: TrainState
    train: Loader = field(init=False)  # what it learns from; `fit` notes it
    totals: RunningSums = field(init=False)  # this worker's part of the open epoch's
    bad_step: Tensor = field(init=False)  # int64: the first step whose loss was not finite, -1 where there was none

    def __post_init__(self) -> None:
        self.totals = RunningSums(self.device, **dict.fromkeys(EPOCH_SUMS, 1))
        known = [self.progress.sums.get(key, 0.0) for key in EPOCH_SUMS]
        self.totals.sums += torch.tensor(known, dtype=torch.float64, device=self.device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)


def as_loader(run: TrainingRun, images: Loader | np.ndarray) -> Loader:
    """`images` as a feed: an array becomes one."""
    if not isinstance(images, np.ndarray):
        return images
    return NodeLoader(images, BatchSampler(run.recipe.optim.seed, run.recipe.optim.batch, run.world), run.device)
