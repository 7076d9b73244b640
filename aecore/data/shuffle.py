"""Which image is seen when: pure functions of (seed, epoch, step), the same for any number of workers."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class World:
    """This worker's `rank` among `size` workers."""

    rank: int = 0
    size: int = 1


def plan_epoch(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the `count` images of an epoch: a permutation, int64 `(count,)`."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, epoch, 0))).permutation(count)


def step_rows(plan: np.ndarray, step: int, batch: int, world: World) -> tuple[np.ndarray, np.ndarray]:
    """This worker's rows of a global batch and their positions in it, both int64 `(local,)`.

    The workers' parts are disjoint, cover the global batch and differ by one row at most. The last batch may hold
    fewer images than there are workers: then some get none.
    """
    start = step * batch
    rows = plan[start : start + batch]
    positions = np.array_split(np.arange(len(rows)), world.size)[world.rank]
    return rows[positions], positions


@dataclass(frozen=True)
class BatchSampler:
    """How this worker goes through a split: in global batches of `batch`, shared out among the workers."""

    seed: int
    batch: int
    world: World = World()

    def steps(self, count: int, epoch: int | None, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """From step `first` on, this worker's rows of each global batch, their positions in it, and its size.

        `epoch` None goes through the `count` images as they are stored.
        """
        plan = np.arange(count) if epoch is None else plan_epoch(self.seed, epoch, count)
        for step in range(first, steps_per_epoch(count, self.batch)):
            rows, positions = step_rows(plan, step, self.batch, self.world)
            yield rows, positions, min(self.batch, count - step * self.batch)


def evenly_spaced(count: int, wanted: int) -> np.ndarray:
    """At most `wanted` of the rows 0 to `count` - 1, evenly spread, int64: a split may be stored class by class."""
    return np.arange(count) if wanted >= count else np.arange(wanted) * count // wanted


def steps_per_epoch(count: int, batch: int) -> int:
    return -(-count // batch)


def derive_seed(*counters: int) -> int:
    """A 64-bit seed for the stream that `counters` (run seed, epoch or step, purpose) name."""
    return int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0])
