"""What a dataset's source knows of its images (attributes, factors, labels), as numbers that go with z-points."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from aecore.data.dataset import Dataset

NOT_ATTRIBUTES = {"name", "image", "identity", "label", "class"}
MOST_CLASSES = 100


def read_attributes(dataset: Dataset, split: str, rows: np.ndarray) -> dict[str, Tensor]:
    """Read the attributes of `rows` (n,) of a split in stored order: name to values, float32 (n,).

    Image columns are not read. Raises OSError when a shard is missing.
    """
    fs = dataset.fs
    paths = [f"{dataset.root}/{shard.path}" for shard in dataset.shards(split)]
    if not paths:
        return {}
    columns = [name for name in pq.read_schema(paths[0], filesystem=fs).names if name not in ("name", "image")]
    tables = [pq.read_table(path, columns=columns, filesystem=fs) for path in paths]
    return attributes_of(pa.concat_tables(tables).take(pa.array(rows)))


def attributes_of(table: pa.Table) -> dict[str, Tensor]:
    """Each column of numbers as it is; of labels each class as one attribute, 1 where an image is of it.

    Classes go by their name where the set has names, else by `label N`.
    """
    numbers = {
        name: table[name].to_numpy()
        for name in table.column_names
        if name not in NOT_ATTRIBUTES and (pa.types.is_integer(t := table[name].type) or pa.types.is_floating(t))
    }
    if "class" in table.column_names or "label" in table.column_names:
        named = "class" in table.column_names
        values = table["class" if named else "label"].to_numpy()
        classes = np.unique(values)
        if len(classes) <= MOST_CLASSES:
            numbers |= {str(one) if named else f"label {one}": values == one for one in classes}
    return {name: torch.from_numpy(np.array(values, np.float32)) for name, values in numbers.items()}
