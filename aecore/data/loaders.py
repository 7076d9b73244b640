"""Data loaders: batches from a node cache, from the device's memory or from a stream.

`NodeLoader` and `DeviceLoader` yield bit-identical batches in the order that `aecore.data.shuffle` plans.
`StreamLoader` also yields each image once per epoch, but in another order, and cannot start within an epoch.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from aecore.data.dataset import Dataset
from aecore.data.node_cache import PREFETCH
from aecore.data.shuffle import BatchSampler, derive_seed, evenly_spaced, plan_epoch, steps_per_epoch
from aecore.data.threads import map_ahead, num_threads

SHUFFLE_BUFFER_BYTES = 128 << 20  # of images among which a stream is shuffled
SWAP_ROWS = 64  # images that are swapped with the shuffle buffer at once


@dataclass(frozen=True)
class Batch:
    """This worker's slice of a global batch of `count` images; at an epoch's end it may be empty on some workers.

    `images` may be overwritten when the next batch is requested: copy them to keep them.
    """

    images: Tensor  # uint8 (local, size, size, channels), on the device
    positions: Tensor  # int64 (local,), of the images in the global batch, on the device
    count: int

    @classmethod
    def whole(cls, images: Tensor) -> "Batch":
        """Return the global batch of `images`."""
        return cls(images, torch.arange(len(images), device=images.device), len(images))


class Loader(Protocol):
    resumable: bool  # True if `batches` can start within an epoch

    def __len__(self) -> int:
        """Return the number of images in the split, on all workers together."""
        ...

    def batches(self, epoch: int | None, first: int = 0) -> Iterator[Batch]:
        """Yield this worker's slices of the global batches of an epoch, from step `first` on.

        All workers get the same number of batches, and together each image once. `epoch` None is for evaluation, in
        any order.
        """
        ...

    def spaced_images(self, limit: int) -> Tensor:
        """Return at most `limit` images evenly spaced over the split in stored order, uint8 on the device."""
        ...


class NodeLoader:
    """Loads images from memory or a memory-mapped file; threads gather the next batches during a step."""

    resumable = True

    def __init__(self, images: np.ndarray, sampler: BatchSampler, device: torch.device) -> None:
        self.images, self.sampler, self.device = images, sampler, device
        self._flat = images.reshape(len(images), -1) if len(images) else images

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, epoch: int | None, first: int = 0) -> Iterator[Batch]:
        threads = min(2, num_threads())  # two saturate the memory bandwidth
        # One for the yielded batch, one per thread, one for the next: a new buffer per batch costs a third of the rate.
        buffers = cycle([self._new_buffer() for _ in range(threads + 2)])
        with ThreadPoolExecutor(threads, "gather") as gatherers:
            steps = zip(buffers, self.sampler.steps(len(self), epoch, first), strict=False)
            yield from map_ahead(gatherers, lambda step: self._gather(step[0], *step[1]), steps, threads)

    def spaced_images(self, limit: int) -> Tensor:
        return torch.from_numpy(self.images[evenly_spaced(len(self), limit)]).to(self.device)

    def _new_buffer(self) -> Tensor | None:
        if self.device.type != "cpu":
            return None  # torch pools pinned memory and reuses it only after the copy to the device
        largest = min(len(self), self.sampler.batch + self.sampler.min_last - 1)
        local = -(-largest // self.sampler.world.size)
        return torch.empty((local, *self.images.shape[1:]), dtype=torch.uint8)

    def _gather(self, buffer: Tensor | None, rows: np.ndarray, positions: np.ndarray, count: int) -> Batch:
        if buffer is None:
            buffer = torch.empty((len(rows), *self.images.shape[1:]), dtype=torch.uint8, pin_memory=True)
        images = buffer[: len(rows)]
        if len(rows):  # mode "clip" for speed: with "raise" numpy copies twice
            np.take(self._flat, rows, axis=0, out=images.view(len(rows), -1).numpy(), mode="clip")
        device_positions = torch.from_numpy(positions).to(self.device, non_blocking=True)
        return Batch(images.to(self.device, non_blocking=True), device_positions, count)


class DeviceLoader:
    """Loads images from the device's memory."""

    resumable = True

    def __init__(self, images: np.ndarray, sampler: BatchSampler, device: torch.device) -> None:
        self.sampler, self.device = sampler, device
        self.images = torch.empty(images.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(images), 4096):
            chunk = np.array(images[start : start + 4096])
            self.images[start : start + len(chunk)] = torch.from_numpy(chunk)

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, epoch: int | None, first: int = 0) -> Iterator[Batch]:
        for rows, positions, count in self.sampler.steps(len(self), epoch, first):
            indices = torch.from_numpy(np.stack([rows, positions])).to(self.device, non_blocking=True)
            yield Batch(self.images.index_select(0, indices[0]), indices[1], count)

    def spaced_images(self, limit: int) -> Tensor:
        return self.images[torch.from_numpy(evenly_spaced(len(self), limit)).to(self.device)]


class StreamLoader:
    """Loads images from a stream: `iter_chunks(epoch)` yields this worker's images in arrays of any length.

    The workers' streams are disjoint, hold each image once, and at most `max_local` images each. A buffer shuffles
    them. `read_spaced(limit)` returns the images of `spaced_images`.
    """

    resumable = False

    def __init__(
        self, iter_chunks: Callable[[int | None], Iterator[np.ndarray]], read_spaced: Callable[[int], np.ndarray],
        count: int, sampler: BatchSampler, device: torch.device,
    ) -> None:  # fmt: skip
        self.iter_chunks, self.read_spaced, self.count = iter_chunks, read_spaced, count
        self.sampler, self.device = sampler, device

    def __len__(self) -> int:
        return self.count

    @property
    def max_local(self) -> int:
        return -(-self.count // self.sampler.world.size)

    def batches(self, epoch: int | None, first: int = 0) -> Iterator[Batch]:
        assert first == 0, "a stream cannot start within an epoch"
        steps, max_local = steps_per_epoch(self.count, self.sampler.batch, self.sampler.min_last), self.max_local
        sizes = [max_local * (step + 1) // steps - max_local * step // steps for step in range(steps)]
        chunks = self.iter_chunks(epoch)
        if epoch is not None:
            seed = derive_seed(self.sampler.seed, epoch, self.sampler.world.rank)
            chunks = shuffle_rows(chunks, np.random.Generator(np.random.Philox(seed)))
        for images in regroup(chunks, sizes):
            local = torch.from_numpy(images).to(self.device)
            start, count = self._position_and_count(len(images)) if epoch is not None else (0, len(images))
            yield Batch(local, torch.arange(start, start + len(images), device=self.device), count)

    def spaced_images(self, limit: int) -> Tensor:
        return torch.from_numpy(self.read_spaced(limit)).to(self.device)

    def _position_and_count(self, local: int) -> tuple[int, int]:
        """Return the images of this global batch on lower ranks, and on all ranks. A collective operation."""
        world = self.sampler.world
        if world.size == 1:
            return 0, local
        gathered = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(world.size)]
        dist.all_gather(gathered, torch.tensor([local], device=self.device))
        counts = torch.cat(gathered).tolist()
        return sum(counts[: world.rank]), sum(counts)


def iter_shards(dataset: Dataset, split: str, seed: int, epoch: int | None) -> Iterator[np.ndarray]:
    """Yield the images of `split`, one shard at a time: uint8 (rows, size, size, channels). A StreamLoader's chunks.

    The order of the shards is a function of (seed, epoch); `epoch` None keeps the stored order. A thread per CPU
    reads and decodes the next shards meanwhile.
    """
    shards = dataset.shards(split)
    order = range(len(shards)) if epoch is None else plan_epoch(seed, epoch, len(shards))
    with ThreadPoolExecutor(num_threads(), "decode") as decoders:
        yield from map_ahead(decoders, dataset.decode_shard, (shards[index] for index in order), PREFETCH)


def shuffle_rows(chunks: Iterator[np.ndarray], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the rows of `chunks`, each once: a few at a time are swapped with random rows of a buffer."""
    buffer, filled = np.empty(0, np.uint8), 0
    for chunk in chunks:
        if not len(buffer):
            rows = max(2 * SWAP_ROWS, SHUFFLE_BUFFER_BYTES // max(1, chunk[0].nbytes)) if len(chunk) else 0
            buffer = np.empty((rows, *chunk.shape[1:]), np.uint8)
        start = min(len(chunk), len(buffer) - filled)
        buffer[filled : filled + start] = chunk[:start]
        filled += start
        for offset in range(start, len(chunk), SWAP_ROWS):
            incoming = chunk[offset : offset + SWAP_ROWS]
            slots = rng.choice(filled, len(incoming), replace=False, shuffle=False)
            outgoing = buffer[slots]
            buffer[slots] = incoming
            yield outgoing
    for slots in np.array_split(rng.permutation(filled), max(1, filled // SWAP_ROWS)):
        yield buffer[slots]


def regroup(chunks: Iterator[np.ndarray], sizes: list[int]) -> Iterator[np.ndarray]:
    """Yield the rows of `chunks` in groups of `sizes`; the last groups are short or empty if the rows run out."""
    pending, count = [np.empty(0, np.uint8)], 0
    for size in sizes:
        while count < size and (chunk := next(chunks, None)) is not None:
            pending, count = ([*pending, chunk] if count else [chunk]), count + len(chunk)
        rows = np.concatenate(pending) if len(pending) > 1 else pending[0]
        yield rows[:size]
        pending, count = [rows[size:]], max(0, count - size)
    count += sum(len(chunk) for chunk in chunks)
    assert not count, f"{count} images more than the {sum(sizes)} of the batches"
