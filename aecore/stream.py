"""A split decoded anew each time it is gone through, for sets that no node can hold."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.fs as pafs

from aecore.cache import AHEAD, cpus
from aecore.images import decode_rows
from aecore.order import plan_epoch
from aecore.shards import Manifest, Shard, read_shard


def decode_shard(
    fs: pafs.FileSystem, root: str, manifest: Manifest, shard: Shard, rows: int | None = None
) -> np.ndarray:
    """The shard's images or its first `rows`, uint8 (n, size, size, channels). Raises ValueError naming a bad shard."""
    encoded = read_shard(fs, root, shard)["image"][:rows].to_pylist()
    images = np.empty((len(encoded), manifest.size, manifest.size, manifest.channels), np.uint8)
    try:
        decode_rows(encoded, manifest.encoding, manifest.size, manifest.channels, images)
    except ValueError as error:
        raise ValueError(f"{shard.path}: {error}") from error
    return images


def pour(
    fs: pafs.FileSystem, root: str, manifest: Manifest, split: str, seed: int, epoch: int | None
) -> Iterator[np.ndarray]:
    """The split's images, a shard at a time, the shards in the order of (seed, epoch), or as stored for None.

    As many shards are decoded at once as there are CPUs, and the next ones are read meanwhile.
    """
    shards = manifest.shards(split)
    order = range(len(shards)) if epoch is None else plan_epoch(seed, epoch, len(shards))
    with ThreadPoolExecutor(cpus(), "decode") as decoders:
        coming: deque = deque()
        for number in order:
            coming.append(decoders.submit(decode_shard, fs, root, manifest, shards[number]))
            if len(coming) > AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def first_images(fs: pafs.FileSystem, root: str, manifest: Manifest, split: str, count: int) -> np.ndarray:
    """The first `count` images of the split as stored."""
    parts, left = [np.empty((0, manifest.size, manifest.size, manifest.channels), np.uint8)], count
    for shard in manifest.shards(split):
        if left <= 0:
            break
        parts.append(decode_shard(fs, root, manifest, shard, left))
        left -= len(parts[-1])
    return np.concatenate(parts)
