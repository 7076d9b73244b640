"""The real images of a study: some of a dataset's, spread evenly over it, and the metrics that compare with them."""

from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from aecore.data.dataset import Dataset
from aecore.data.shards import Manifest
from aecore.metrics.suite import MetricSuite

FEWEST = 64  # images of a split that the metrics need
LARGE = 20_000  # images that one process holds and encodes; more are encoded through Ray Data


@dataclass(frozen=True)
class Images:
    """uint8 (n, size, size, channels)."""

    train: np.ndarray
    test: np.ndarray
    scores: MetricSuite


def check_enough(manifest: Manifest, limit: int) -> None:
    """Raises ValueError where a dataset, or what is used of it, is too small to be compared with."""
    held_out = held_out_split(manifest)
    counts = {split: manifest.count(split) if split in manifest.splits else 0 for split in ("train", held_out)}
    if min(limit, *counts.values()) < FEWEST:
        has = " and ".join(f"{count} in {split}" for split, count in counts.items())
        raise ValueError(
            f"a study compares with at least {FEWEST} images of each split: here are {has}, --limit {limit}"
        )


def read_images(dataset: Dataset, limit: int) -> Images:
    """At most `limit` images, and LARGE, of the training split and of the unseen ones.

    Raises ValueError for a damaged shard.
    """
    limit = min(limit, LARGE)
    train = dataset.images("train", limit)
    test = dataset.images(held_out_split(dataset.manifest), limit)
    return Images(train, test, MetricSuite(train, test, read_labels(dataset, limit)))


def read_labels(dataset: Dataset, limit: int) -> np.ndarray | None:
    """The labels int64 (n,) of the training images that `read_images` gives; None where the set has fewer than two."""
    fs, labels = dataset.fs, []
    for shard, rows in dataset.spaced_rows("train", limit):
        path = f"{dataset.root}/{shard.path}"
        if "label" not in pq.read_schema(path, filesystem=fs).names:
            return None
        labels.append(pq.read_table(path, columns=["label"], filesystem=fs)["label"].to_numpy()[rows])
    found = np.concatenate(labels)
    return found if len(np.unique(found)) > 1 else None


def held_out_split(manifest: Manifest) -> str:
    """The split of unseen images: test, or else valid."""
    return "test" if manifest.splits.get("test") else "valid"
