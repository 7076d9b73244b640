"""Where the loop gets its images from: a node cache, the device's memory, or a stream. All give the same batches.

`NodeLoader` and `DeviceLoader` give, bit by bit, the images that `aecore.data.shuffle` plans. `StreamLoader` gives each
image once per epoch too, but in an order of its own, and begins an epoch only at its start.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from aecore.data.node_cache import num_threads
from aecore.data.shuffle import BatchSampler, derive_seed, evenly_spaced, steps_per_epoch

STREAM_BUFFER = 128 << 20  # bytes of images among which a stream is shuffled
PIECE = 64  # images that change places at once


@dataclass(frozen=True)
class Batch:
    """This worker's part of a global batch of `count` images; it may be empty, on some workers, at an epoch's end.

    `images` may be overwritten as soon as the next batch is asked for: who wants to keep them takes a copy.
    """

    images: Tensor  # uint8 (local, size, size, channels), on the device
    positions: Tensor  # int64 (local,), places in the global batch, on the device
    count: int


class Loader(Protocol):
    resumable: bool  # whether `batches` can begin within an epoch

    def __len__(self) -> int:
        """The images of the split, on all workers together."""
        ...

    def batches(self, epoch: int | None, first: int = 0) -> Iterator[Batch]:
        """This worker's parts of the global batches of an epoch, from step `first` on.

        As many on each worker, and together each image once. `epoch` None: in no order in particular, for judging.
        """
        ...

    def spread(self, count: int) -> Tensor:
        """At most `count` images, evenly spread over the split as stored, uint8 on the device."""
        ...


class NodeLoader:
    """Images in memory or a memory-mapped file; the next batches are gathered while the step runs."""

    resumable = True

    def __init__(self, images: np.ndarray, order: BatchSampler, device: torch.device) -> None:
        self.images, self.order, self.device = images, order, device
        self._flat = images.reshape(len(images), -1) if len(images) else images

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, epoch: int | None, first: int = 0) -> Iterator[Batch]:
        threads = min(2, num_threads())  # two reach what the memory can give
        # The yielded one, those in the making and the next: memory fresh from the kernel for each would cost a third.
        rooms = cycle([self._room() for _ in range(threads + 2)])
        with ThreadPoolExecutor(threads, "gather") as gatherers:
            coming: deque[Future[Batch]] = deque()
            for step in self.order.steps(len(self), epoch, first):
                coming.append(gatherers.submit(self._gather, next(rooms), *step))
                if len(coming) > threads:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()

    def spread(self, count: int) -> Tensor:
        return torch.from_numpy(self.images[evenly_spaced(len(self), count)]).to(self.device)

    def _room(self) -> Tensor | None:
        if self.device.type != "cpu":
            return None  # torch keeps a pool of pinned memory, which knows when the copy to the device is done
        local = -(-self.order.batch // self.order.world.size)
        return torch.empty((local, *self.images.shape[1:]), dtype=torch.uint8)

    def _gather(self, room: Tensor | None, rows: np.ndarray, positions: np.ndarray, count: int) -> Batch:
        if room is None:
            room = torch.empty((len(rows), *self.images.shape[1:]), dtype=torch.uint8, pin_memory=True)
        images = room[: len(rows)]
        if len(rows):  # "clip" for speed: with "raise" numpy copies twice
            np.take(self._flat, rows, axis=0, out=images.view(len(rows), -1).numpy(), mode="clip")
        places = torch.from_numpy(positions)
        return Batch(images.to(self.device, non_blocking=True), places.to(self.device, non_blocking=True), count)


class DeviceLoader:
    """Images that lie in the device's memory."""

    resumable = True

    def __init__(self, images: np.ndarray, order: BatchSampler, device: torch.device) -> None:
        self.order, self.device = order, device
        self.images = torch.empty(images.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(images), 4096):
            part = np.array(images[start : start + 4096])
            self.images[start : start + len(part)] = torch.from_numpy(part)

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, epoch: int | None, first: int = 0) -> Iterator[Batch]:
        for rows, positions, count in self.order.steps(len(self), epoch, first):
            both = torch.from_numpy(np.stack([rows, positions])).to(self.device, non_blocking=True)
            yield Batch(self.images.index_select(0, both[0]), both[1], count)

    def spread(self, count: int) -> Tensor:
        return self.images[torch.from_numpy(evenly_spaced(len(self), count)).to(self.device)]


class StreamLoader:
    """Images that go by: `pour(epoch)` gives this worker's share of them, in arrays of any number of rows.

    The shares together hold each image once, and none holds more than `share` images. They are shuffled through a
    buffer. `few` gives what `spread` has to.
    """

    resumable = False

    def __init__(
        self, pour: Callable[[int | None], Iterator[np.ndarray]], few: Callable[[int], np.ndarray], count: int,
        order: BatchSampler, device: torch.device,
    ) -> None:  # fmt: skip
        self.pour, self.few, self.count, self.order, self.device = pour, few, count, order, device

    def __len__(self) -> int:
        return self.count

    @property
    def share(self) -> int:
        return -(-self.count // self.order.world.size)

    def batches(self, epoch: int | None, first: int = 0) -> Iterator[Batch]:
        assert first == 0, "a stream begins at its start"
        steps, share = steps_per_epoch(self.count, self.order.batch), self.share
        sizes = [share * (step + 1) // steps - share * step // steps for step in range(steps)]
        pieces = self.pour(epoch)
        if epoch is not None:
            seed = derive_seed(self.order.seed, epoch, self.order.world.rank)
            pieces = shuffled(pieces, np.random.Generator(np.random.Philox(seed)))
        for images in regrouped(pieces, sizes):
            here = torch.from_numpy(images).to(self.device)
            before, count = self._counts(len(images)) if epoch is not None else (0, len(images))
            yield Batch(here, torch.arange(before, before + len(images), device=self.device), count)

    def spread(self, count: int) -> Tensor:
        return torch.from_numpy(self.few(count)).to(self.device)

    def _counts(self, mine: int) -> tuple[int, int]:
        """How many images of this global batch the workers before this one have, and all of them. A collective."""
        world = self.order.world
        if world.size == 1:
            return 0, mine
        every = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(world.size)]
        dist.all_gather(every, torch.tensor([mine], device=self.device))
        counts = torch.cat(every).tolist()
        return sum(counts[: world.rank]), sum(counts)


def shuffled(pieces: Iterator[np.ndarray], draw: np.random.Generator) -> Iterator[np.ndarray]:
    """The rows of `pieces`, each once: a few at a time change places with random ones that wait in a buffer."""
    buffer, filled = np.empty(0, np.uint8), 0
    for piece in pieces:
        if not len(buffer):
            rows = max(2 * PIECE, STREAM_BUFFER // max(1, piece[0].nbytes)) if len(piece) else 0
            buffer = np.empty((rows, *piece.shape[1:]), np.uint8)
        start = min(len(piece), len(buffer) - filled)
        buffer[filled : filled + start] = piece[:start]
        filled += start
        for at in range(start, len(piece), PIECE):
            part = piece[at : at + PIECE]
            places = draw.choice(filled, len(part), replace=False, shuffle=False)
            out = buffer[places]
            buffer[places] = part
            yield out
    for places in np.array_split(draw.permutation(filled), max(1, filled // PIECE)):
        yield buffer[places]


def regrouped(pieces: Iterator[np.ndarray], sizes: list[int]) -> Iterator[np.ndarray]:
    """The rows of `pieces` in groups of `sizes`; the last groups are short or empty where the rows do not suffice."""
    waiting, have = [np.empty(0, np.uint8)], 0
    for size in sizes:
        while have < size and (piece := next(pieces, None)) is not None:
            waiting, have = ([*waiting, piece] if have else [piece]), have + len(piece)
        rows = np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
        yield rows[:size]
        waiting, have = [rows[size:]], max(0, have - size)
    have += sum(len(piece) for piece in pieces)
    assert not have, f"{have} images more than the {sum(sizes)} that were due"
