"""The node cache: one decoded uint8 copy of a split per node, filled once by all local workers, then memory-mapped.

`<folder>/<digest>-<split>/` holds images.u8 (rows x size x size x channels), a small file per shard and, written last,
complete.json. A shard's file is its lock, and holds the checksum of its decoded bytes once they are there; its time is
when they were last found right. The kernel drops the locks of a process that dies, so another takes its shards over.
Bytes are only ever replaced by what they should have been, in place: who has a copy mapped is never disturbed. Beside
the folder lies `<digest>-<split>.lock`, locked by all who use the copy: such a one is not evicted.
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

from aecore.data.cache_eviction import allocate, hold
from aecore.data.dataset import Dataset, shard_offsets
from aecore.data.io import write_json
from aecore.data.shards import Shard, UnreadShardError

log = logging.getLogger(__name__)
LOCAL = pafs.LocalFileSystem()
BLOCK = 1 << 21  # bytes decoded, written and checked in one go; part of the checksum's definition
PREFETCH = 2  # shards being read while others are decoded
TRUSTED_SECONDS = 3600  # for so long a copy that was found right is not read again
_buffers = threading.local()


def open_cache(
    folder: Path, dataset: Dataset, split: str,
    filled: Callable[[int], None] = lambda done: None, limit: int | None = None,
) -> np.ndarray:  # fmt: skip
    """The split's images, uint8 `(rows, size, size, channels)`, read-only and memory-mapped; filled first if need be.

    Damaged parts of an older copy are decoded again. `filled(done)` is called after each shard that this process
    decoded, with the rows that the copy has by then, whoever decoded them. The copies in `folder` may take `limit`
    bytes together, by default half of what the disk has for them; those that nobody uses leave, the least recently
    used first. Raises ValueError for a damaged shard, a folder that cannot be written, or a split over the limit,
    UnreadShardError where storage does not give a shard.
    """
    copy = _Copy(folder / f"{dataset.manifest.digest[:16]}-{split}", dataset, split)
    if not copy.shape[0]:
        return np.empty(copy.shape, np.uint8)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = hold(copy.place)
        try:
            if not copy.is_trusted():
                allocate(copy.place, copy.bytes, limit)
                _fill(copy, filled)
            with open(copy.images, "rb") as file:
                mapped = mmap.mmap(file.fileno(), copy.bytes, prot=mmap.PROT_READ)
        except BaseException:
            held.close()
            raise
    except UnreadShardError:
        raise
    except OSError as error:
        raise ValueError(f"cannot fill the node cache {copy.place}: {error}; ZPOINT_CACHE names its folder") from error
    weakref.finalize(mapped, held.close)  # in use for as long as any array of it lives
    return np.frombuffer(mapped, np.uint8).reshape(copy.shape)


def num_threads() -> int:
    """The threads that this process may use: OMP_NUM_THREADS, which Ray sets for its workers, else its CPUs."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdigit() and int(named) else len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class _Copy:
    """The decoded copy of one split and where it comes from."""

    place: Path
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
        return self.place / "images.u8"

    def parts(self) -> list["_Part"]:
        shards = self.dataset.shards(self.split)
        starts = shard_offsets(shards).tolist()
        return [_Part(number, shard, starts[number]) for number, shard in enumerate(shards)]

    def is_trusted(self) -> bool:
        """Whether the whole copy was found right since the last boot, lately, and not written to after that."""
        try:
            done, images = os.stat(self.place / "complete.json"), os.stat(self.images)
        except FileNotFoundError:
            return False
        recent = time.time() - done.st_mtime < min(TRUSTED_SECONDS, time.clock_gettime(time.CLOCK_BOOTTIME))
        return recent and done.st_mtime_ns > images.st_mtime_ns and images.st_size == self.bytes


@dataclass
class _Part:
    """One shard's rows in the copy; `lock` is its file while this process holds it."""

    number: int
    shard: Shard
    start: int
    lock: BinaryIO = field(init=False)
    reading: Future[list[bytes]] = field(init=False)
    decoding: list[Future[int]] = field(init=False)

    def blocks(self, row_bytes: int) -> Iterator[tuple[int, int]]:
        """First row and number of rows of each block."""
        rows = max(1, BLOCK // row_bytes)
        for first in range(0, self.shard.rows, rows):
            yield first, min(rows, self.shard.rows - first)


def _fill(copy: _Copy, filled: Callable[[int], None]) -> None:
    """Make every shard's rows right, together with whichever other processes are at it."""
    began = time.time()
    with (
        open(copy.images, "r+b", buffering=0) as file,
        ThreadPoolExecutor(num_threads(), "decode") as decoders,
        ThreadPoolExecutor(PREFETCH, "read") as readers,
    ):
        work = CacheFill(copy, file, began, decoders, readers, filled)
        parts = copy.parts()
        while left := work.go_through(parts):
            # Others hold these: they finish them, or die and leave them to us.
            if len(left) == len(parts):
                time.sleep(0.02)
            parts = left
    write_json(LOCAL, str(copy.place / "complete.json"), {"shape": copy.shape, "root": copy.dataset.root})


@dataclass
class CacheFill:
    copy: _Copy
    file: BinaryIO
    began: float
    decoders: ThreadPoolExecutor
    readers: ThreadPoolExecutor
    filled: Callable[[int], None]
    read: deque[_Part] = field(default_factory=deque)
    decoded: deque[_Part] = field(default_factory=deque)

    def go_through(self, parts: list[_Part]) -> list[_Part]:
        """Check or decode those of `parts` that nobody else holds; gives the others.

        While one shard's rows are decoded the next ones are read.
        """
        left: list[_Part] = []
        try:
            for part in parts:
                if not self._claim(part):
                    left.append(part)
                elif self._is_whole(part):
                    part.lock.close()
                else:
                    part.reading = self.readers.submit(self._read, part)
                    self.read.append(part)
                    if len(self.read) > PREFETCH:
                        self._decode_next()
            while self.read:
                self._decode_next()
            while self.decoded:
                self._finish(self.decoded.popleft())
        finally:
            for part in (*self.read, *self.decoded):
                part.lock.close()
        return left

    def _claim(self, part: _Part) -> bool:
        fd = os.open(self.copy.place / f"{part.number:05d}.crc", os.O_RDWR | os.O_CREAT, 0o666)
        part.lock = os.fdopen(fd, "r+b", buffering=0)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            part.lock.close()
            return False
        return True

    def _is_whole(self, part: _Part) -> bool:
        noted = part.lock.read(64)
        if not noted:
            return False
        if os.fstat(part.lock.fileno()).st_mtime < self.began:  # else another has just decoded or checked it
            blocks = [self.decoders.submit(self._check, part, *block) for block in part.blocks(self.copy.row_bytes)]
            if _checksum(blocks) != noted:
                log.warning("node cache %s: %s is damaged; decoding it again", self.copy.place, part.shard.path)
                os.ftruncate(part.lock.fileno(), 0)
                return False
            os.utime(part.lock.fileno())
        return True

    def _read(self, part: _Part) -> list[bytes]:
        return self.copy.dataset.read_shard(part.shard)["image"].to_pylist()

    def _decode_next(self) -> None:
        part = self.read[0]
        rows = part.reading.result()
        part.decoding = [
            self.decoders.submit(self._decode, part, rows[first : first + count], first)
            for first, count in part.blocks(self.copy.row_bytes)
        ]
        self.decoded.append(self.read.popleft())
        if len(self.decoded) > 1:
            self._finish(self.decoded[0])
            self.decoded.popleft()

    def _finish(self, part: _Part) -> None:
        checksum = _checksum(part.decoding)
        os.pwrite(part.lock.fileno(), checksum, 0)
        self.filled(self._rows_done())
        part.lock.close()

    def _rows_done(self) -> int:
        with os.scandir(self.copy.place) as files:
            done = {int(file.name[:-4]) for file in files if file.name.endswith(".crc") and file.stat().st_size}
        return sum(
            shard.rows for number, shard in enumerate(self.copy.dataset.shards(self.copy.split)) if number in done
        )

    def _decode(self, part: _Part, rows: list[bytes], first: int) -> int:
        block = _buffer(len(rows) * self.copy.row_bytes)
        out = np.frombuffer(block, np.uint8).reshape(len(rows), *self.copy.shape[1:])
        self.copy.dataset.decode_rows(part.shard, rows, first, out)
        offset, rest = (part.start + first) * self.copy.row_bytes, block
        while rest:
            written = os.pwrite(self.file.fileno(), rest, offset)
            offset, rest = offset + written, rest[written:]
        return zlib.crc32(block)

    def _check(self, part: _Part, first: int, count: int) -> int:
        block = _buffer(count * self.copy.row_bytes)
        found = os.preadv(self.file.fileno(), [block], (part.start + first) * self.copy.row_bytes)
        return zlib.crc32(block[:found])


def _checksum(blocks: list[Future[int]]) -> bytes:
    return b"%08x" % zlib.crc32(np.array([block.result() for block in blocks], "<u4").tobytes())


def _buffer(size: int) -> memoryview:
    """This thread's own memory for a block: reused, so that it stays in the processor's cache."""
    have = getattr(_buffers, "block", None)
    if have is None or len(have) < size:
        have = _buffers.block = memoryview(bytearray(max(size, BLOCK)))
    return have[:size]
