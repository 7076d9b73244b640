"""The node cache: one decoded uint8 copy of a split per node, filled by all local workers, then memory-mapped.

An entry is the folder `<digest>-<split>/`. It holds images.u8 (rows x size x size x channels), a small .crc file per
shard and complete.json, written last. A .crc file is the shard's lock and, once the shard is decoded, holds the
checksum of its rows; its modification time is that of the last check. The kernel releases the locks of a dead process,
so another process takes its shards over. Bytes are replaced only in place and by the correct ones, so processes that
have the entry mapped are not disturbed. The file `<digest>-<split>.lock` beside the folder is locked by all processes
that use the entry; a locked entry is not evicted.
"""

import fcntl
import logging
import math
import mmap
import os
import threading
import time
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow.fs as pafs

from aecore.data.cache_eviction import CacheSpaceError, allocate, check_space, mark_in_use
from aecore.data.dataset import Dataset, shard_offsets
from aecore.data.io import write_json
from aecore.data.shards import Shard, UnreadShardError
from aecore.data.threads import num_threads

log = logging.getLogger(__name__)
BLOCK_BYTES = 1 << 21  # decoded, written and checked at once; part of the checksum's definition
PREFETCH = 2  # shards that are read while others are decoded
TRUSTED_S = 3600  # after a check, before an entry is checked again
_buffers = threading.local()


def open_cache(
    folder: Path, dataset: Dataset, split: str,
    on_progress: Callable[[int], None] = lambda rows: None, max_bytes: int | None = None,
) -> np.ndarray:  # fmt: skip
    """Return the images of `split`, uint8 `(rows, size, size, channels)`, read-only and memory-mapped; fill them first.

    Damaged shards of an older entry are decoded again. `on_progress(rows)` is called after each shard that this process
    decodes, with the rows that all processes have decoded by then. The entries in `folder` may take `max_bytes`
    together, by default half of the disk space available to them; entries not in use are evicted, the least recently
    used first. Raises ValueError for a damaged shard, CacheSpaceError for a folder that is not writable or a split that
    exceeds the limit, UnreadShardError when storage fails.
    """
    entry = _find_entry(folder, dataset, split)
    if not entry.shape[0]:
        return np.empty(entry.shape, np.uint8)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usage_lock = mark_in_use(entry.path)
        try:
            if not entry.is_trusted():
                allocate(entry.path, entry.bytes, max_bytes)
                _fill(entry, on_progress)
            with open(entry.images, "rb") as file:
                mapped = mmap.mmap(file.fileno(), entry.bytes, prot=mmap.PROT_READ)
        except BaseException:
            usage_lock.close()
            raise
    except UnreadShardError:
        raise
    except OSError as error:
        raise _storage_error(entry.path, error) from error
    weakref.finalize(mapped, usage_lock.close)  # in use as long as an array of it exists
    return np.frombuffer(mapped, np.uint8).reshape(entry.shape)


def check_cache_space(folder: Path, dataset: Dataset, max_bytes: int | None) -> None:
    """Raise CacheSpaceError if the splits of `dataset` do not fit into `folder` together, as `open_cache` does of one.

    So a training ends before it fills the cache with one split and has no space for the next.
    """
    entries = [_find_entry(folder, dataset, split) for split in dataset.manifest.splits]
    sizes = {entry.path: entry.bytes for entry in entries if entry.bytes}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_space(sizes, max_bytes)
    except OSError as error:
        raise _storage_error(folder, error) from error


def _find_entry(folder: Path, dataset: Dataset, split: str) -> "_CacheEntry":
    return _CacheEntry(folder / f"{dataset.manifest.digest[:16]}-{split}", dataset, split)


def _storage_error(path: Path, error: OSError) -> CacheSpaceError:
    return CacheSpaceError(f"cannot fill the node cache {path}: {error}; ZPOINT_CACHE names its folder")


@dataclass(frozen=True)
class _CacheEntry:
    """The decoded copy of one split and its dataset."""

    path: Path
    dataset: Dataset
    split: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.dataset.count(self.split), *self.dataset.image_shape

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def bytes(self) -> int:
        return math.prod(self.shape)

    @property
    def images(self) -> Path:
        return self.path / "images.u8"

    def slots(self) -> list["_ShardSlot"]:
        shards = self.dataset.shards(self.split)
        offsets = shard_offsets(shards).tolist()
        return [_ShardSlot(index, shard, offsets[index]) for index, shard in enumerate(shards)]

    def is_trusted(self) -> bool:
        """Return True if the entry was checked since the last boot, recently, and not written to after that."""
        try:
            complete, images = os.stat(self.path / "complete.json"), os.stat(self.images)
        except FileNotFoundError:
            return False
        recent = time.time() - complete.st_mtime < min(TRUSTED_S, time.clock_gettime(time.CLOCK_BOOTTIME))
        return recent and complete.st_mtime_ns > images.st_mtime_ns and images.st_size == self.bytes


@dataclass
class _ShardSlot:
    """The rows of one shard in the entry; `lock` is its .crc file while this process holds it."""

    index: int
    shard: Shard
    start: int
    lock: BinaryIO = field(init=False)
    reading: Future[list[bytes]] = field(init=False)
    decoding: list[Future[int]] = field(init=False)

    def blocks(self, row_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield the first row, within the shard, and the number of rows of each block."""
        rows = max(1, BLOCK_BYTES // row_bytes)
        for first_row in range(0, self.shard.rows, rows):
            yield first_row, min(rows, self.shard.rows - first_row)


def _fill(entry: _CacheEntry, on_progress: Callable[[int], None]) -> None:
    """Decode or check each shard's rows, together with the other processes that fill the entry."""
    started = time.time()
    with (
        open(entry.images, "r+b", buffering=0) as file,
        ThreadPoolExecutor(num_threads(), "decode") as decoders,
        ThreadPoolExecutor(PREFETCH, "read") as readers,
    ):
        fill = CacheFill(entry, file, started, decoders, readers, on_progress)
        slots = entry.slots()
        while locked_slots := fill.fill_unlocked(slots):
            # Other processes hold these: they finish them, or die and release their locks.
            if len(locked_slots) == len(slots):
                time.sleep(0.02)
            slots = locked_slots
    write_json(
        pafs.LocalFileSystem(), str(entry.path / "complete.json"), {"shape": entry.shape, "root": entry.dataset.root}
    )


@dataclass
class CacheFill:
    """One process's pipeline that reads, decodes and writes the shards that no other process has locked."""

    entry: _CacheEntry
    file: BinaryIO
    started: float
    decoders: ThreadPoolExecutor
    readers: ThreadPoolExecutor
    on_progress: Callable[[int], None]
    reading: deque[_ShardSlot] = field(default_factory=deque)
    decoding: deque[_ShardSlot] = field(default_factory=deque)

    def fill_unlocked(self, slots: list[_ShardSlot]) -> list[_ShardSlot]:
        """Check or decode those of `slots` that no other process has locked; return the locked ones.

        The next shards are read while one is decoded.
        """
        locked: list[_ShardSlot] = []
        try:
            for slot in slots:
                if not self._lock(slot):
                    locked.append(slot)
                elif self._is_intact(slot):
                    slot.lock.close()
                else:
                    slot.reading = self.readers.submit(self._read, slot)
                    self.reading.append(slot)
                    if len(self.reading) > PREFETCH:
                        self._decode_next()
            while self.reading:
                self._decode_next()
            while self.decoding:
                self._finish(self.decoding.popleft())
        finally:
            for slot in (*self.reading, *self.decoding):
                slot.lock.close()
        return locked

    def _lock(self, slot: _ShardSlot) -> bool:
        fd = os.open(self.entry.path / f"{slot.index:05d}.crc", os.O_RDWR | os.O_CREAT, 0o666)
        slot.lock = os.fdopen(fd, "r+b", buffering=0)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            slot.lock.close()
            return False
        return True

    def _is_intact(self, slot: _ShardSlot) -> bool:
        checksum = slot.lock.read(64)
        if not checksum:
            return False
        if os.fstat(slot.lock.fileno()).st_mtime < self.started:  # else another process has just decoded or checked it
            blocks = [self.decoders.submit(self._check, slot, *block) for block in slot.blocks(self.entry.row_bytes)]
            if _checksum(blocks) != checksum:
                log.warning("node cache %s: %s is damaged; decoding it again", self.entry.path, slot.shard.path)
                os.ftruncate(slot.lock.fileno(), 0)
                return False
            os.utime(slot.lock.fileno())
        return True

    def _read(self, slot: _ShardSlot) -> list[bytes]:
        return self.entry.dataset.read_shard(slot.shard)["image"].to_pylist()

    def _decode_next(self) -> None:
        slot = self.reading[0]
        encoded = slot.reading.result()
        slot.decoding = [
            self.decoders.submit(self._decode, slot, encoded[first_row : first_row + rows], first_row)
            for first_row, rows in slot.blocks(self.entry.row_bytes)
        ]
        self.decoding.append(self.reading.popleft())
        if len(self.decoding) > 1:
            self._finish(self.decoding[0])
            self.decoding.popleft()

    def _finish(self, slot: _ShardSlot) -> None:
        checksum = _checksum(slot.decoding)
        os.pwrite(slot.lock.fileno(), checksum, 0)
        self.on_progress(self._rows_done())
        slot.lock.close()

    def _rows_done(self) -> int:
        with os.scandir(self.entry.path) as files:
            done = {int(file.name[:-4]) for file in files if file.name.endswith(".crc") and file.stat().st_size}
        return sum(
            shard.rows for index, shard in enumerate(self.entry.dataset.shards(self.entry.split)) if index in done
        )

    def _decode(self, slot: _ShardSlot, encoded: list[bytes], first_row: int) -> int:
        block = _thread_buffer(len(encoded) * self.entry.row_bytes)
        images = np.frombuffer(block, np.uint8).reshape(len(encoded), *self.entry.shape[1:])
        self.entry.dataset.decode_rows(slot.shard, encoded, first_row, images)
        offset, remaining = (slot.start + first_row) * self.entry.row_bytes, block
        while remaining:
            written = os.pwrite(self.file.fileno(), remaining, offset)
            offset, remaining = offset + written, remaining[written:]
        return zlib.crc32(block)

    def _check(self, slot: _ShardSlot, first_row: int, rows: int) -> int:
        block = _thread_buffer(rows * self.entry.row_bytes)
        length = os.preadv(self.file.fileno(), [block], (slot.start + first_row) * self.entry.row_bytes)
        return zlib.crc32(block[:length])


def _checksum(blocks: list[Future[int]]) -> bytes:
    return b"%08x" % zlib.crc32(np.array([block.result() for block in blocks], "<u4").tobytes())


def _thread_buffer(size: int) -> memoryview:
    """Return this thread's buffer for a block, reused so that it stays in the processor's cache."""
    buffer = getattr(_buffers, "block", None)
    if buffer is None or len(buffer) < size:
        buffer = _buffers.block = memoryview(bytearray(max(size, BLOCK_BYTES)))
    return buffer[:size]
