"""The real images of a study: some of a dataset's, spread evenly over it, and the metrics that compare with them."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from aecore.images import decode_rows
from aecore.scores import Scores
from aecore.shards import Manifest, Shard, read_shard

MOST_SHARDS = 64  # read of a split
FEWEST = 64  # images of a split that the metrics need


@dataclass(frozen=True)
class Images:
    """uint8 (n, size, size, channels)."""

    train: np.ndarray
    test: np.ndarray
    scores: Scores


def check_enough(manifest: Manifest, limit: int) -> None:
    """Raises ValueError where a dataset, or what is used of it, is too small to be compared with."""
    held_out = held_out_split(manifest)
    counts = {split: manifest.count(split) if split in manifest.splits else 0 for split in ("train", held_out)}
    if min(limit, *counts.values()) < FEWEST:
        has = " and ".join(f"{count} in {split}" for split, count in counts.items())
        raise ValueError(
            f"a study compares with at least {FEWEST} images of each split: here are {has}, --limit {limit}"
        )


def read_images(fs: pafs.FileSystem, root: str, manifest: Manifest, limit: int) -> Images:
    """At most `limit` images of the training split and of the unseen ones. Raises ValueError for a damaged shard."""
    train, labels = read_spread(fs, root, manifest, "train", limit)
    test, _ = read_spread(fs, root, manifest, held_out_split(manifest), limit)
    return Images(train, test, Scores(train, test, labels))


def held_out_split(manifest: Manifest) -> str:
    """The split of unseen images: test, or else valid."""
    return "test" if manifest.splits.get("test") else "valid"


def read_spread(
    fs: pafs.FileSystem, root: str, manifest: Manifest, split: str, count: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """At most `count` images of a split, from everywhere in it, and their labels where the set has labels.

    A set may be stored class by class: its first images would not stand for it. Of a split in many shards some are
    read, evenly chosen.
    """
    shards = [manifest.shards(split)[i] for i in spread(len(manifest.shards(split)), MOST_SHARDS)]
    starts = np.cumsum([0, *(shard.rows for shard in shards)])
    chosen = spread(int(starts[-1]), count)
    images = np.empty((len(chosen), manifest.size, manifest.size, manifest.channels), np.uint8)
    labels: list[np.ndarray] = []
    done = 0
    for shard, start in zip(shards, starts, strict=False):
        rows = chosen[(chosen >= start) & (chosen < start + shard.rows)] - start
        table = read_shard(fs, root, shard).take(pa.array(rows))
        _decode(table, manifest, shard, images[done : done + len(rows)])
        done += len(rows)
        if "label" in table.column_names:
            labels.append(table["label"].to_numpy())
    return images, np.concatenate(labels) if labels else None


def spread(total: int, count: int) -> np.ndarray:
    """At most `count` of the numbers below `total`, evenly spread, int64."""
    return np.arange(min(total, count)) * total // max(1, min(total, count))


def _decode(table: pa.Table, manifest: Manifest, shard: Shard, out: np.ndarray) -> None:
    try:
        decode_rows(table["image"], manifest.encoding, manifest.size, manifest.channels, out)
    except ValueError as error:
        raise ValueError(f"{shard.path}: {error}") from error
