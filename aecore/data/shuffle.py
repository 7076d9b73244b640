"""The order of images: pure functions of (seed, epoch, step), the same for any number of workers."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class World:
    """The `rank` of this worker among `size` workers."""

    rank: int = 0
    size: int = 1

    def positions(self, count: int) -> np.ndarray:
        """Return this worker's positions in a global batch of `count` images: consecutive, int64 `(local,)`.

        The workers' positions are disjoint, cover the batch and differ in number by one at most. With fewer images
        than workers some have none.
        """
        return np.array_split(np.arange(count), self.size)[self.rank]


def plan_epoch(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the order of `count` images in an epoch: a permutation, int64 `(count,)`."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, epoch, 0))).permutation(count)


@dataclass(frozen=True)
class BatchSampler:
    """Samples this worker's slices of the global batches of `batch` images; `min_last` as in `steps_per_epoch`."""

    seed: int
    batch: int
    world: World = World()
    min_last: int = 1

    def steps(self, count: int, epoch: int | None, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Yield this worker's rows, their positions in the global batch, and its size, from step `first` on.

        `epoch` None keeps the stored order of the `count` images.
        """
        plan = np.arange(count) if epoch is None else plan_epoch(self.seed, epoch, count)
        steps = steps_per_epoch(count, self.batch, self.min_last)
        for step in range(first, steps):
            end = count if step == steps - 1 else (step + 1) * self.batch
            rows = plan[step * self.batch : end]
            positions = self.world.positions(len(rows))
            yield rows[positions], positions, len(rows)


def evenly_spaced(count: int, limit: int) -> np.ndarray:
    """Return at most `limit` of the rows 0 to `count` - 1, int64: a split may be stored class by class."""
    return np.arange(count) if limit >= count else np.arange(limit) * count // limit


def steps_per_epoch(count: int, batch: int, min_last: int = 1) -> int:
    """Return the number of batches of `count` images.

    The last one may be short. With fewer than `min_last` images it is merged into the one before.
    """
    full, rest = divmod(count, batch)
    return full + (rest >= min_last or 0 < count < batch)


def derive_seed(*counters: int) -> int:
    """Return a 64-bit seed for the random stream of `counters` (run seed, epoch or step, purpose)."""
    return int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0])
