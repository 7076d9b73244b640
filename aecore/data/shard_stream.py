"""A split decoded anew each time it is gone through, for sets that no node can hold."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow.fs as pafs

from aecore.data.images import decode_rows
from aecore.data.node_cache import PREFETCH, num_threads
from aecore.data.shards import Manifest, Shard, read_shard
from aecore.data.shuffle import evenly_spaced, plan_epoch

SPREAD = 32  # shards among which a few images are taken, where there are so many


def decode_shard(
    fs: pafs.FileSystem, root: str, manifest: Manifest, shard: Shard, rows: np.ndarray | None = None
) -> np.ndarray:
    """The shard's images, or those in `rows`, uint8 (n, size, size, channels). Raises ValueError naming a bad shard."""
    column = read_shard(fs, root, shard)["image"]
    encoded = (column if rows is None else column.take(rows)).to_pylist()
    images = np.empty((len(encoded), manifest.size, manifest.size, manifest.channels), np.uint8)
    try:
        decode_rows(encoded, manifest.encoding, manifest.size, manifest.channels, images)
    except ValueError as error:
        raise ValueError(f"{shard.path}: {error}") from error
    return images


def iter_shards(
    fs: pafs.FileSystem, root: str, manifest: Manifest, split: str, seed: int, epoch: int | None
) -> Iterator[np.ndarray]:
    """The split's images, a shard at a time, the shards in the order of (seed, epoch), or as stored for None.

    As many shards are decoded at once as there are CPUs, and the next ones are read meanwhile.
    """
    shards = manifest.shards(split)
    order = range(len(shards)) if epoch is None else plan_epoch(seed, epoch, len(shards))
    with ThreadPoolExecutor(num_threads(), "decode") as decoders:
        coming: deque = deque()
        for number in order:
            coming.append(decoders.submit(decode_shard, fs, root, manifest, shards[number]))
            if len(coming) > PREFETCH:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def read_spaced_images(fs: pafs.FileSystem, root: str, manifest: Manifest, split: str, count: int) -> np.ndarray:
    """At most `count` images evenly spread over the split as stored, from a few of its shards."""
    parts = spaced_rows_by_shard(manifest, split, count)
    images = [decode_shard(fs, root, manifest, shard, rows) for shard, rows in parts]
    return np.concatenate([np.empty((0, manifest.size, manifest.size, manifest.channels), np.uint8), *images])


def spaced_rows_by_shard(manifest: Manifest, split: str, count: int) -> list[tuple[Shard, np.ndarray]]:
    """The shards that `read_spaced_images` takes images from, and which of each one's rows."""
    shards = manifest.shards(split)
    enough = next((n for n in range(len(shards)) if sum(s.rows for s in shards[:n]) >= count), len(shards))
    chosen = [shards[number] for number in evenly_spaced(len(shards), max(SPREAD, enough))]
    starts = np.cumsum([0, *(shard.rows for shard in chosen)])
    rows = evenly_spaced(int(starts[-1]), count)
    parts = [rows[(rows >= low) & (rows < high)] - low for low, high in pairwise(starts)]
    return list(zip(chosen, parts, strict=True))
