"""Attributes of images (factors, labels, annotations) as numbers, to relate to z-points."""

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from aecore.data.dataset import Dataset, shard_offsets

NOT_ATTRIBUTES = {"name", "image", "identity", "label", "class"}
MAX_CLASSES = 100


def read_attributes(dataset: Dataset, split: str, rows: np.ndarray) -> dict[str, Tensor]:
    """Read the attributes of `rows` (n,) of a split in stored order: name to values, float32 (n,).

    Only shards that hold one of `rows` are read. Raises ValueError when one is missing or damaged, UnreadShardError
    when storage fails.
    """
    if not len(rows):
        return {}
    shards = dataset.shards(split)
    offsets = shard_offsets(shards)
    needed, position = np.unique(np.searchsorted(offsets, rows, side="right") - 1, return_inverse=True)  # (n,)
    needed_shards = [shards[index] for index in needed]
    table = pa.concat_tables(dataset.read_shard(shard).drop_columns(["name", "image"]) for shard in needed_shards)
    local_rows = rows - offsets[needed][position] + shard_offsets(needed_shards)[position]
    return extract_attributes(table.take(local_rows))


def extract_attributes(table: pa.Table) -> dict[str, Tensor]:
    """Return each numeric column, and each class of the labels as an attribute that is 1 for its images.

    A class is named by the column `class` if there is one, else `label N`.
    """
    attributes = {
        name: table[name].to_numpy()
        for name in table.column_names
        if name not in NOT_ATTRIBUTES and (pa.types.is_integer(t := table[name].type) or pa.types.is_floating(t))
    }
    if "class" in table.column_names or "label" in table.column_names:
        has_names = "class" in table.column_names
        labels = table["class" if has_names else "label"].to_numpy()
        classes = np.unique(labels)
        if len(classes) <= MAX_CLASSES:
            attributes |= {str(label) if has_names else f"label {label}": labels == label for label in classes}
    return {name: torch.from_numpy(np.array(values, np.float32)) for name, values in attributes.items()}
