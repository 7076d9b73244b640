"""Attributes of images (factors, labels, annotations) as numbers, to relate to z-points."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from aecore.data.dataset import Dataset

NOT_ATTRIBUTES = {"name", "image", "identity", "label", "class"}
MAX_CLASSES = 100


def read_attributes(dataset: Dataset, split: str, rows: np.ndarray) -> dict[str, Tensor]:
    """Read the attributes of `rows` (n,) of a split in stored order: name to values, float32 (n,).

    Image columns are not read. Raises OSError when a shard is missing.
    """
    paths = [f"{dataset.root}/{shard.path}" for shard in dataset.shards(split)]
    if not paths:
        return {}
    columns = [name for name in pq.read_schema(paths[0], filesystem=dataset.fs).names if name not in ("name", "image")]
    tables = [pq.read_table(path, columns=columns, filesystem=dataset.fs) for path in paths]
    return extract_attributes(pa.concat_tables(tables).take(pa.array(rows)))


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
