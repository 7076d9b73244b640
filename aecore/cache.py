"""The node cache: one decoded uint8 copy of a split per node, filled once by all local workers, then memory-mapped.

`<folder>/<digest>-<split>/` holds images.u8 (rows x size x size x channels), a `.lock` and a `.done` file per shard
while it fills, and complete.json at the end. A worker claims a shard by locking its lock file; the kernel drops the
lock of a worker that dies, so another takes the shard over.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs

from aecore.files import write_json
from aecore.images import decode_rows
from aecore.shards import Manifest, Shard, read_shard

LOCAL = pafs.LocalFileSystem()


def open_cache(
    folder: Path, fs: pafs.FileSystem, root: str, manifest: Manifest, split: str,
    filled: Callable[[int], None] = lambda rows: None,
) -> np.ndarray:  # fmt: skip
    """The split's images, uint8 `(rows, size, size, channels)`, read-only and memory-mapped; filled first if need be.

    `filled(rows)` is called after each shard that this process decoded. Raises ValueError for a damaged shard or
    a folder that cannot be written.
    """
    shape = (manifest.count(split), manifest.size, manifest.size, manifest.channels)
    if shape[0] == 0:
        return np.empty(shape, np.uint8)
    place = folder / f"{manifest.digest[:16]}-{split}"
    if not (place / "complete.json").exists():
        try:
            place.mkdir(parents=True, exist_ok=True)
            _fill(place, fs, root, manifest, split, shape, filled)
        except OSError as error:
            raise ValueError(f"cannot fill the node cache {place}: {error}; ZPOINT_CACHE names its folder") from error
    return np.memmap(place / "images.u8", np.uint8, "r", shape=shape)


def _fill(
    place: Path, fs: pafs.FileSystem, root: str, manifest: Manifest, split: str, shape: tuple[int, ...],
    filled: Callable[[int], None],
) -> None:  # fmt: skip
    with open(place / "images.u8", "ab") as file:
        # Real blocks, not a hole: a full disk must show here and not as SIGBUS in a mapped page.
        os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
    images = np.memmap(place / "images.u8", np.uint8, "r+", shape=shape)
    todo = list(_with_offsets(manifest.shards(split)))
    # First what nobody holds, then wait for what others hold: they finish it, or die and leave it to us.
    for wait in (False, True):
        for shard, start in todo:
            with _claim(place / f"{shard.path}.lock", wait) as claimed:
                if claimed and not (place / f"{shard.path}.done").exists():
                    table = read_shard(fs, root, shard)
                    rows = images[start : start + shard.rows]
                    decode_rows(table["image"], manifest.encoding, manifest.size, manifest.channels, rows)
                    (place / f"{shard.path}.done").touch()
                    filled(shard.rows)
    images.flush()
    write_json(LOCAL, str(place / "complete.json"), {"shape": shape, "root": root})


def _with_offsets(shards: tuple[Shard, ...]) -> Iterator[tuple[Shard, int]]:
    start = 0
    for shard in shards:
        yield shard, start
        start += shard.rows


@contextmanager
def _claim(path: Path, wait: bool) -> Iterator[bool]:
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
