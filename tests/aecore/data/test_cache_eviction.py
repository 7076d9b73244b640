"""The node cache looks after itself: damage is mended, old copies leave, copies in use stay."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aecore.data import node_cache
from aecore.data.dataset import Dataset
from aecore.data.node_cache import open_cache
from tests.synthetic_dataset import make_dataset, pixels

SHARDS, ROWS = 6, 5
BYTES = SHARDS * ROWS * 64


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "data", {"train": [ROWS] * SHARDS})


@pytest.fixture
def place(tmp_path: Path, dataset: Dataset) -> Path:
    """A filled cache's folder."""
    opened(tmp_path, dataset)
    return tmp_path / "cache" / f"{dataset.manifest.digest[:16]}-train"


def opened(tmp_path: Path, dataset: Dataset, limit: int | None = None):
    """The images, and how many rows the copy had after each shard that was decoded for them."""
    decoded: list[int] = []
    images = open_cache(tmp_path / "cache", dataset, "train", decoded.append, limit)
    return images, decoded


def flip_byte(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def test_a_flipped_byte_is_noticed_and_its_shard_alone_decoded_again(tmp_path, dataset, place, caplog):
    for at in (0, 3 * ROWS * 64 + 17, BYTES - 1):
        flip_byte(place / "images.u8", at)
        images, decoded = opened(tmp_path, dataset)
        assert (images == pixels(SHARDS * ROWS)).all()
        assert decoded == [SHARDS * ROWS]
    assert [f"train-{n:05d}.parquet is damaged" in r.message for n, r in zip((0, 3, 5), caplog.records, strict=True)]


def test_a_copy_that_was_cut_short_is_completed(tmp_path, dataset, place):
    os.truncate(place / "images.u8", 4 * ROWS * 64 + 1)
    images, decoded = opened(tmp_path, dataset)
    assert (images == pixels(SHARDS * ROWS)).all()
    assert decoded == [(SHARDS - 1) * ROWS, SHARDS * ROWS]


def test_a_lost_file_of_images_is_made_again(tmp_path, dataset, place):
    (place / "images.u8").unlink()
    images, decoded = opened(tmp_path, dataset)
    assert (images == pixels(SHARDS * ROWS)).all()
    assert (len(decoded), decoded[-1]) == (SHARDS, SHARDS * ROWS)


@pytest.mark.parametrize("damage", [b"", b"0", b"0123456\n", b"\xff" * 64])
def test_a_damaged_checksum_costs_its_shard(tmp_path, dataset, place, damage):
    (place / "complete.json").unlink()
    (place / "00002.crc").write_bytes(damage)
    os.utime(place / "00002.crc", (0, 0))
    images, decoded = opened(tmp_path, dataset)
    assert (images == pixels(SHARDS * ROWS)).all()
    assert decoded == [SHARDS * ROWS]


def test_without_complete_json_all_is_checked_and_nothing_decoded(tmp_path, dataset, place, monkeypatch):
    (place / "complete.json").unlink()
    checked = []
    check = node_cache.CacheFill._check
    monkeypatch.setattr(node_cache.CacheFill, "_check", lambda *args: checked.append(1) or check(*args))
    assert opened(tmp_path, dataset)[1] == []
    assert len(checked) == SHARDS
    assert opened(tmp_path, dataset)[1] == []
    assert len(checked) == SHARDS, "what was found right just now is not read again"
    old = time.time() - node_cache.TRUSTED_SECONDS - 10
    for file in place.iterdir():
        os.utime(file, (old, old))
    assert opened(tmp_path, dataset)[1] == []
    assert len(checked) == 2 * SHARDS, "but later it is"


def test_a_row_that_does_not_decode_is_named(tmp_path):
    dataset = make_dataset(tmp_path / "data", {"train": [3, 3]})
    wrong = replace(dataset, manifest=dataset.manifest.model_copy(update={"encoding": "jpeg"}))
    with pytest.raises(ValueError, match=r"train-00000.parquet: row 0 does not decode as jpeg"):
        open_cache(tmp_path / "cache", wrong, "train")


def test_shards_of_no_and_many_rows_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(node_cache, "BLOCK_BYTES", 3 * 64)  # three rows
    lengths = [0, 1, 7, 3, 0, 12]
    dataset = make_dataset(tmp_path / "data", {"train": lengths})
    images, decoded = opened(tmp_path, dataset)
    assert (images == pixels(sum(lengths))).all()
    assert decoded == [0, 1, 8, 11, 11, 23]
    os.truncate(tmp_path / "cache" / f"{dataset.manifest.digest[:16]}-train" / "images.u8", 5 * 64)
    images, decoded = opened(tmp_path, dataset)
    assert (images == pixels(sum(lengths))).all()
    assert (len(decoded), decoded[-1]) == (3, 23)


def test_the_least_recently_used_copy_leaves_and_one_in_use_stays(tmp_path):
    sets = {name: make_dataset(tmp_path / name, {"train": [10]}, seed=seed) for seed, name in enumerate("abcd")}
    held = opened(tmp_path, sets["a"])[0]
    opened(tmp_path, sets["b"])
    time.sleep(0.02)
    opened(tmp_path, sets["c"])
    limit = 3 * 640

    opened(tmp_path, sets["d"], limit)  # a is the oldest, but in use; b is the next
    assert copies(tmp_path) == {sets[name].manifest.digest[:16] for name in "acd"}
    assert (held == pixels(10, seed=0)).all()
    time.sleep(0.02)
    opened(tmp_path, sets["c"], limit)
    del held
    opened(tmp_path, sets["b"], limit)
    assert copies(tmp_path) == {sets[name].manifest.digest[:16] for name in "bcd"}
    kept = [opened(tmp_path, sets[name], limit)[0] for name in "bcd"]
    with pytest.raises(ValueError, match=r"0.0 MB of other datasets in use .*ZPOINT_CACHE_MAX"):
        opened(tmp_path, sets["a"], limit)
    assert len(kept) == 3


def copies(tmp_path: Path) -> set[str]:
    return {file.parent.name.split("-")[0] for file in (tmp_path / "cache").glob("*/images.u8")}


def test_a_split_over_the_limit_is_refused(tmp_path, dataset):
    with pytest.raises(ValueError, match=r"ZPOINT_CACHE_MAX.*stream it with data.cache=none"):
        opened(tmp_path, dataset, limit=BYTES - 1)
    assert len(opened(tmp_path, dataset, limit=BYTES)[1]) == SHARDS


def test_by_default_half_of_the_disk_is_the_limit(tmp_path, dataset, monkeypatch):
    usage = type("Usage", (), {"free": 2 * BYTES - 1})
    monkeypatch.setattr("aecore.data.cache_eviction.shutil.disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"data.cache=none"):
        opened(tmp_path, dataset)
    usage.free += 1
    assert len(opened(tmp_path, dataset)[0]) == SHARDS * ROWS


def test_threads_follow_what_ray_gives_a_worker(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert node_cache.num_threads() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert node_cache.num_threads() == len(os.sched_getaffinity(0))


def test_views_keep_the_copy_in_use(tmp_path, dataset, place):
    view = opened(tmp_path, dataset)[0][3:5, 0]
    other = make_dataset(tmp_path / "other", {"train": [SHARDS * ROWS]}, seed=1)
    with pytest.raises(ValueError, match="in use"):
        opened(tmp_path, other, BYTES)
    assert np.array_equal(view, pixels(SHARDS * ROWS)[3:5, 0])
    del view
    opened(tmp_path, other, BYTES)
    assert not place.exists()
