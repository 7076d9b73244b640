from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from aecore.data.attributes import extract_attributes, read_attributes
from aecore.data.dataset import Dataset
from aecore.data.shards import Manifest, shard_table, write_shard
from tests.synthetic_dataset import FS


def attribute_lists(**columns):
    return {name: values.tolist() for name, values in extract_attributes(pa.table(columns)).items()}


def test_numeric_columns_are_attributes_and_identities_are_not():
    columns = {"name": ["a", "b"], "identity": [7, 8], "Smiling": pa.array([0, 1], pa.int8()), "skin": [0.25, 0.5]}
    assert attribute_lists(**columns) == {"Smiling": [0, 1], "skin": [0.25, 0.5]}


def test_each_class_is_an_attribute():
    assert attribute_lists(label=[3, 0, 3]) == {"label 0": [0, 1, 0], "label 3": [1, 0, 1]}
    assert attribute_lists(label=[1, 0], **{"class": ["cat", "ant"]}) == {"ant": [0, 1], "cat": [1, 0]}
    assert attribute_lists(label=list(range(500))) == {}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Return a dataset of three shards of four rows; the height of a row is its index."""
    shards = []
    for index in range(3):
        rows = pa.table({"name": list("abcd"), "height": np.arange(4.0) + 4 * index})
        shards.append(write_shard(FS, str(tmp_path), f"{index}.parquet", shard_table(rows, [b"not read"] * 4)))
    manifest = Manifest(
        dataset="made", options={}, size=8, channels=1, encoding="png", splits={"train": tuple(shards), "valid": ()}
    )
    return Dataset(FS, str(tmp_path), manifest)


@pytest.mark.parametrize("rows", [[0, 5, 11], [3, 4, 8], [11, 2, 2, 9], [6]])
def test_attributes_are_read_across_shards(dataset: Dataset, rows: list[int]):
    assert read_attributes(dataset, "train", np.array(rows))["height"].tolist() == rows
    assert read_attributes(dataset, "valid", np.array([], np.int64)) == {}


def test_attributes_of_a_damaged_shard_are_refused(dataset: Dataset):
    path = Path(dataset.root) / "1.parquet"
    path.write_bytes(path.read_bytes().replace(np.float64(5).tobytes(), np.float64(50).tobytes()))
    assert read_attributes(dataset, "train", np.array([0, 11]))["height"].tolist() == [0, 11]
    with pytest.raises(ValueError, match=r"shard 1.parquet is damaged"):
        read_attributes(dataset, "train", np.array([0, 5, 11]))
