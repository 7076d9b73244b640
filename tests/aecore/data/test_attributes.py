import numpy as np
import pyarrow as pa

from aecore.data.attributes import attributes_of, read_attributes
from aecore.data.dataset import Dataset
from aecore.data.shards import Manifest, shard_table, write_shard
from tests.synthetic_dataset import FS


def told(**columns):
    return {name: values.tolist() for name, values in attributes_of(pa.table(columns)).items()}


def test_numbers_stay_and_what_is_no_attribute_goes():
    columns = {"name": ["a", "b"], "identity": [7, 8], "Smiling": pa.array([0, 1], pa.int8()), "skin": [0.25, 0.5]}
    assert told(**columns) == {"Smiling": [0, 1], "skin": [0.25, 0.5]}


def test_each_class_is_an_attribute():
    assert told(label=[3, 0, 3]) == {"label 0": [0, 1, 0], "label 3": [1, 0, 1]}
    assert told(label=[1, 0], **{"class": ["cat", "ant"]}) == {"ant": [0, 1], "cat": [1, 0]}
    assert told(label=list(range(500))) == {}


def test_rows_are_found_across_shards(tmp_path):
    shards = []
    for number in range(3):
        rows = pa.table({"name": list("abcd"), "height": np.arange(4.0) + 4 * number})
        shards.append(write_shard(FS, str(tmp_path), f"{number}.parquet", shard_table(rows, [b"not read"] * 4)))
    manifest = Manifest(
        dataset="made", options={}, size=8, channels=1, encoding="png", splits={"train": tuple(shards), "valid": ()}
    )
    found = read_attributes(Dataset(FS, str(tmp_path), manifest), "train", np.array([0, 5, 11]))
    assert found["height"].tolist() == [0, 5, 11]
    assert read_attributes(Dataset(FS, str(tmp_path), manifest), "valid", np.array([], np.int64)) == {}
