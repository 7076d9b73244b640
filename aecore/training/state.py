"""The state of a training run: the counters that a checkpoint stores, and metric sums that no step waits for."""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from aecore.config import Recipe
from aecore.data.loaders import Loader
from aecore.data.shuffle import World, steps_per_epoch
from aecore.model.autoencoder import Autoencoder

EPOCH_SUMS = ("recon", "kl", "count")  # summed over the open epoch's images; a checkpoint stores them


@dataclass
class TrainState:
    """The counters of a run, as progress.json stores them.

    `epochs` that are complete, optimizer steps (`step`) and images (`samples`) of the whole run, and the open epoch's
    `sums` over all workers' images, by the names of EPOCH_SUMS; empty when no epoch is open and on all ranks but 0.
    """

    epochs: int = 0
    step: int = 0
    samples: int = 0
    sums: dict[str, float] = field(default_factory=dict)


class RunningSums:
    """Sums over images, in float64 on the device: `add` does not wait for the device, `all_reduce` does."""

    def __init__(self, device: torch.device, **widths: int) -> None:
        """`widths`: the name of each sum and how many values an image adds to it, at least 1."""
        self.widths = widths
        self.sums = torch.zeros(sum(widths.values()), dtype=torch.float64, device=device)

    def add(self, **values: Tensor) -> None:
        """Add the images' values: tensors `(images,)` or `(images, width)`, in the order of the widths."""
        assert list(values) == list(self.widths)
        columns = [
            value.detach().double().reshape(len(value), width)
            for value, width in zip(values.values(), self.widths.values(), strict=True)
        ]
        self.sums += torch.cat(columns, 1).sum(0)

    def all_reduce(self, world: World) -> dict[str, np.ndarray]:
        """Return the sums over all workers' images, float64 `(width,)` by name. A collective."""
        total = self.sums.clone()
        if world.size > 1:
            dist.all_reduce(total)
        columns = total.cpu().split(list(self.widths.values()))
        return {name: column.numpy() for name, column in zip(self.widths, columns, strict=True)}


@dataclass
class TrainingRun:
    """A model in training with its data, optimizer and state on one worker.

    `wrapped_model` is `model` in DistributedDataParallel if there are several workers, else `model` itself. `state` is
    a new TrainState or the one that `load_checkpoint` returned with the weights; `fit` updates it.
    """

    recipe: Recipe
    model: Autoencoder
    wrapped_model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    world: World
    state: TrainState
    train: Loader
    valid: Loader
    epoch_sums: RunningSums = field(init=False)  # of this worker's images in the open epoch
    nonfinite_step: Tensor = field(init=False)  # int64 (): the first step with a loss of nan or inf, -1 without one

    def __post_init__(self) -> None:
        self.epoch_sums = RunningSums(self.device, **dict.fromkeys(EPOCH_SUMS, 1))
        stored = [self.state.sums.get(name, 0.0) for name in EPOCH_SUMS]
        self.epoch_sums.sums += torch.tensor(stored, dtype=torch.float64, device=self.device)
        self.nonfinite_step = torch.full((), -1, dtype=torch.int64, device=self.device)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.train), self.recipe.optim.batch)
