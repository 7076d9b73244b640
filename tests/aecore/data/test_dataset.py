from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aecore.data.dataset import Dataset, shard_offsets
from aecore.data.shuffle import evenly_spaced
from tests.synthetic_dataset import FS, make_dataset, noise_images

LENGTHS = [3, 0, 5, 1]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path, {"train": LENGTHS, "valid": []})


def test_an_opened_dataset_equals_the_written_one(dataset: Dataset):
    assert Dataset.open(FS, dataset.root) == dataset
    assert (dataset.count("train"), dataset.count("valid")) == (9, 0)
    assert dataset.image_shape == (8, 8, 1)
    with pytest.raises(ValueError, match="no split 'test'; it has train, valid"):
        dataset.images("test")


def test_images_are_those_of_all_shards_in_order(dataset: Dataset):
    assert np.array_equal(dataset.images("train"), noise_images(9))
    assert dataset.images("valid").shape == (0, 8, 8, 1)


@pytest.mark.parametrize("limit", [0, 1, 4, 9, 100])
def test_a_limit_takes_evenly_spaced_images(dataset: Dataset, limit: int):
    assert np.array_equal(dataset.images("train", limit), noise_images(9)[evenly_spaced(9, limit)])


@pytest.mark.parametrize("limit", [0, 1, 30, 32, 33, 76, 100])
def test_spaced_indices_are_the_rows_of_the_images(tmp_path: Path, limit: int):
    """Of 38 shards at most 32 are read, unless more are needed."""
    dataset = make_dataset(tmp_path, {"train": [2] * 38})
    indices = dataset.spaced_indices("train", limit)
    assert len(indices) == min(limit, 76)
    assert (np.diff(indices) > 0).all()
    assert np.array_equal(dataset.images("train", limit), noise_images(76)[indices])
    if limit == 32:  # the first row of each shard
        assert indices.tolist() == (2 * evenly_spaced(38, 32)).tolist()
    assert len(dataset.spaced_rows("train", limit)) <= max(32, -(-limit // 2))


def test_blocks_of_a_shard_cover_its_rows(dataset: Dataset):
    shard = dataset.shards("train")[2]
    blocks = list(dataset.iter_blocks(shard, block_bytes=2 * 64))
    assert [first_row for first_row, _ in blocks] == [0, 2, 4]
    assert np.array_equal(np.concatenate([images for _, images in blocks]), dataset.decode_shard(shard))


def test_a_row_of_a_later_block_that_does_not_decode_is_named(dataset: Dataset):
    shard = dataset.shards("train")[2]
    encoded = dataset.read_shard(shard)["image"].to_pylist()
    with pytest.raises(ValueError, match=r"shard train-00002.parquet: row 13 does not decode as png"):
        dataset.decode_rows(shard, [*encoded[:3], b"not a png"], first_row=10)
    as_raw = replace(dataset, manifest=dataset.manifest.model_copy(update={"encoding": "raw"}))
    with pytest.raises(ValueError, match=r"shard train-00002.parquet: row 0 does not decode as raw"):
        as_raw.decode_shard(shard)


def test_offsets_of_shards_end_with_their_total(dataset: Dataset):
    assert shard_offsets(dataset.shards("train")).tolist() == [0, 3, 3, 8, 9]
