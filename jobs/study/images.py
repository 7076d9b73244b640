"""Read the real images of a study, evenly spaced over a dataset, and build the metric suite that compares with them."""

from dataclasses import dataclass

import numpy as np

from aecore.data.dataset import Dataset
from aecore.data.shards import Manifest
from aecore.metrics.suite import MetricSuite

MIN_PER_SPLIT = 64  # images that the metrics need
MAX_IN_PROCESS = 20_000  # images that one process holds and encodes; Ray Data encodes larger sets


@dataclass(frozen=True)
class StudyImages:
    """Images uint8 (n, size, size, channels) and the metrics of their dataset."""

    train: np.ndarray
    held_out: np.ndarray
    metric_suite: MetricSuite


def held_out_split(manifest: Manifest) -> str:
    """Return the name of the held-out split: test, or valid if the dataset has no test images."""
    return "test" if manifest.splits.get("test") and manifest.count("test") else "valid"


def check_image_count(manifest: Manifest, limit: int) -> None:
    """Raise ValueError if a split or the limit has fewer images than the metrics need."""
    splits = ("train", held_out_split(manifest))
    counts = {split: manifest.count(split) if split in manifest.splits else 0 for split in splits}
    if min(counts.values()) < MIN_PER_SPLIT:
        text = " and ".join(f"{count} in {split}" for split, count in counts.items())
        raise ValueError(
            f"a study needs at least {MIN_PER_SPLIT} images in each split, found {text}: ingest more images"
        )
    if limit < MIN_PER_SPLIT:
        raise ValueError(f"a study needs at least {MIN_PER_SPLIT} images, not --limit {limit}")


def read_images(dataset: Dataset, limit: int, num_samples: int) -> StudyImages:
    """Read at most `limit` and MAX_IN_PROCESS training images, and `num_samples` held-out images.

    Raises ValueError naming a damaged shard.
    """
    limit = min(limit, MAX_IN_PROCESS)
    train = dataset.images("train", limit)
    held_out = dataset.images(held_out_split(dataset.manifest), num_samples)
    return StudyImages(train, held_out, MetricSuite(train, read_labels(dataset, limit)))


def read_labels(dataset: Dataset, limit: int) -> np.ndarray | None:
    """Return the labels int64 (n,) of the training images that `read_images` reads; None if there are under two.

    Raises ValueError naming a damaged shard.
    """
    labels_by_shard = []
    for shard, rows in dataset.spaced_rows("train", limit):
        table = dataset.read_shard(shard)
        if "label" not in table.column_names:
            return None
        labels_by_shard.append(table["label"].to_numpy()[rows])
    labels = np.concatenate(labels_by_shard)
    return labels if len(np.unique(labels)) > 1 else None
