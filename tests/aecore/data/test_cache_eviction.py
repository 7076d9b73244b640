"""Repair and eviction in the node cache: damage is repaired, old entries are evicted, entries in use stay."""

import errno
import fcntl
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from aecore.data import node_cache
from aecore.data.cache_eviction import CacheSpaceError, allocate, mark_in_use
from aecore.data.dataset import Dataset
from aecore.data.node_cache import check_cache_space, open_cache
from tests.synthetic_dataset import make_dataset, noise_images

SHARDS, ROWS, ROW_BYTES = 6, 5, 64
BYTES = SHARDS * ROWS * ROW_BYTES


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "data", {"train": [ROWS] * SHARDS})


@pytest.fixture
def entry(tmp_path: Path, dataset: Dataset) -> Path:
    """The folder of a filled cache entry."""
    fill(tmp_path, dataset)
    return tmp_path / "cache" / f"{dataset.manifest.digest[:16]}-train"


def fill(tmp_path: Path, dataset: Dataset, max_bytes: int | None = None) -> tuple[np.ndarray, list[int]]:
    """Return the images, and the rows done after each shard that was decoded for them."""
    progress: list[int] = []
    return open_cache(tmp_path / "cache", dataset, "train", progress.append, max_bytes), progress


def flip_byte(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_a_flipped_byte_makes_its_shard_alone_be_decoded_again(tmp_path, dataset, entry, caplog):
    for offset in (0, 3 * ROWS * ROW_BYTES + 17, BYTES - 1):
        flip_byte(entry / "images.u8", offset)
        images, progress = fill(tmp_path, dataset)
        assert (images == noise_images(SHARDS * ROWS)).all()
        assert progress == [SHARDS * ROWS]
    assert [f"train-{n:05d}.parquet is damaged" in r.message for n, r in zip((0, 3, 5), caplog.records, strict=True)]


def test_a_truncated_entry_is_completed(tmp_path, dataset, entry):
    os.truncate(entry / "images.u8", 4 * ROWS * ROW_BYTES + 1)
    images, progress = fill(tmp_path, dataset)
    assert (images == noise_images(SHARDS * ROWS)).all()
    assert progress == [(SHARDS - 1) * ROWS, SHARDS * ROWS]


def test_a_deleted_image_file_is_filled_again(tmp_path, dataset, entry):
    (entry / "images.u8").unlink()
    images, progress = fill(tmp_path, dataset)
    assert (images == noise_images(SHARDS * ROWS)).all()
    assert (len(progress), progress[-1]) == (SHARDS, SHARDS * ROWS)


@pytest.mark.parametrize("checksum", [b"", b"0", b"0123456\n", b"\xff" * 64])
def test_a_damaged_checksum_makes_its_shard_be_decoded_again(tmp_path, dataset, entry, checksum):
    (entry / "complete.json").unlink()
    (entry / "00002.crc").write_bytes(checksum)
    os.utime(entry / "00002.crc", (0, 0))
    images, progress = fill(tmp_path, dataset)
    assert (images == noise_images(SHARDS * ROWS)).all()
    assert progress == [SHARDS * ROWS]


def test_without_complete_json_shards_are_checked_and_not_decoded(tmp_path, dataset, entry, monkeypatch):
    (entry / "complete.json").unlink()
    checks = []
    check = node_cache.CacheFill._check
    monkeypatch.setattr(node_cache.CacheFill, "_check", lambda *args: checks.append(1) or check(*args))
    assert fill(tmp_path, dataset)[1] == []
    assert len(checks) == SHARDS
    assert fill(tmp_path, dataset)[1] == []
    assert len(checks) == SHARDS, "an entry that was just checked is not read again"
    old = time.time() - node_cache.TRUSTED_S - 10
    for file in entry.iterdir():
        os.utime(file, (old, old))
    assert fill(tmp_path, dataset)[1] == []
    assert len(checks) == 2 * SHARDS, "but later it is"


def test_a_row_that_does_not_decode_is_named(tmp_path):
    dataset = make_dataset(tmp_path / "data", {"train": [3, 3]})
    as_jpeg = replace(dataset, manifest=dataset.manifest.model_copy(update={"encoding": "jpeg"}))
    with pytest.raises(ValueError, match=r"train-00000.parquet: row 0 does not decode as jpeg"):
        open_cache(tmp_path / "cache", as_jpeg, "train")


def test_shards_may_be_empty_or_longer_than_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(node_cache, "BLOCK_BYTES", 3 * ROW_BYTES)
    lengths = [0, 1, 7, 3, 0, 12]
    dataset = make_dataset(tmp_path / "data", {"train": lengths})
    images, progress = fill(tmp_path, dataset)
    assert (images == noise_images(sum(lengths))).all()
    assert progress == [0, 1, 8, 11, 11, 23]
    os.truncate(tmp_path / "cache" / f"{dataset.manifest.digest[:16]}-train" / "images.u8", 5 * ROW_BYTES)
    images, progress = fill(tmp_path, dataset)
    assert (images == noise_images(sum(lengths))).all()
    assert (len(progress), progress[-1]) == (3, 23)


def test_the_least_recently_used_entry_is_evicted_and_one_in_use_stays(tmp_path):
    datasets = {name: make_dataset(tmp_path / name, {"train": [10]}, seed=seed) for seed, name in enumerate("abcd")}
    in_use = fill(tmp_path, datasets["a"])[0]
    fill(tmp_path, datasets["b"])
    fill(tmp_path, datasets["c"])
    limit = 3 * 10 * ROW_BYTES

    def set_last_used(name: str, age_s: float) -> None:  # file systems keep times of coarse steps
        seconds = time.time() - age_s
        os.utime(tmp_path / "cache" / f"{datasets[name].manifest.digest[:16]}-train.lock", (seconds, seconds))

    def cached() -> str:
        digests = {file.parent.name.split("-")[0] for file in (tmp_path / "cache").glob("*/images.u8")}
        return "".join(name for name, dataset in datasets.items() if dataset.manifest.digest[:16] in digests)

    for name, age_s in (("a", 30), ("b", 20), ("c", 10)):
        set_last_used(name, age_s)
    fill(tmp_path, datasets["d"], limit)  # a is the oldest, but in use; b is the next
    assert cached() == "acd"
    assert (in_use == noise_images(10, seed=0)).all()
    set_last_used("d", 5)
    fill(tmp_path, datasets["c"], limit)
    del in_use
    fill(tmp_path, datasets["b"], limit)
    assert cached() == "bcd"
    all_in_use = [fill(tmp_path, datasets[name], limit)[0] for name in "bcd"]
    with pytest.raises(ValueError, match=r"0.0 MB of other datasets in use .*ZPOINT_CACHE_MAX"):
        fill(tmp_path, datasets["a"], limit)
    assert len(all_in_use) == 3


def test_nothing_is_evicted_for_a_split_that_does_not_fit_all_the_same(tmp_path):
    def open_entry(name: str, size: int) -> IO[bytes]:
        lock = mark_in_use(tmp_path / name)
        allocate(tmp_path / name, size, max_bytes=100)
        return lock

    open_entry("idle", 50).close()
    in_use = open_entry("in_use", 40)
    with pytest.raises(CacheSpaceError, match="other datasets in use"):
        open_entry("too_large", 61)
    assert (tmp_path / "idle" / "images.u8").exists()
    open_entry("fits", 60).close()
    assert not (tmp_path / "idle").exists()
    in_use.close()


def test_splits_that_exceed_the_limit_together_are_refused_before_the_first_is_filled(tmp_path, monkeypatch):
    dataset, folder = make_dataset(tmp_path / "data", {"train": [10], "valid": [5], "test": []}), tmp_path / "cache"
    usage = type("Usage", (), {"free": 2 * 15 * ROW_BYTES - 1})
    monkeypatch.setattr("aecore.data.cache_eviction.shutil.disk_usage", lambda path: usage)
    names = r"decoded, \w{16}-train, \w{16}-valid take 0\.0 MB, more than .*"
    with pytest.raises(CacheSpaceError, match=f"{names}half of what its disk has free"):
        check_cache_space(folder, dataset, None)
    with pytest.raises(CacheSpaceError, match=f"{names}ZPOINT_CACHE_MAX"):
        check_cache_space(folder, dataset, 15 * ROW_BYTES - 1)
    assert {path.name for path in folder.iterdir()} == {".lock"}
    usage.free += 1
    check_cache_space(folder, dataset, None)
    caches = [open_cache(folder, dataset, split) for split in dataset.manifest.splits]
    usage.free = 0
    check_cache_space(folder, dataset, None)  # they have their space already
    other = make_dataset(tmp_path / "other", {"train": [9], "valid": [6]}, seed=1)
    with pytest.raises(CacheSpaceError, match=r"take 0\.0 MB, with the 0\.0 MB of other datasets in use more than"):
        check_cache_space(folder, other, 30 * ROW_BYTES - 1)
    assert len(caches) == 3
    del caches
    check_cache_space(folder, other, 30 * ROW_BYTES - 1)
    assert len(list(folder.glob("*/images.u8"))) == 2, "a check evicts nothing"


def test_a_split_over_the_limit_is_refused(tmp_path, dataset):
    with pytest.raises(ValueError, match=r"ZPOINT_CACHE_MAX.*stream it with data.cache=none"):
        fill(tmp_path, dataset, max_bytes=BYTES - 1)
    assert len(fill(tmp_path, dataset, max_bytes=BYTES)[1]) == SHARDS


def test_the_default_limit_is_half_of_the_disk(tmp_path, dataset, monkeypatch):
    usage = type("Usage", (), {"free": 2 * BYTES - 1})
    monkeypatch.setattr("aecore.data.cache_eviction.shutil.disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"half of what its disk has free\): free some space, set ZPOINT_CACHE .*none"):
        fill(tmp_path, dataset)
    usage.free += 1
    assert len(fill(tmp_path, dataset)[0]) == SHARDS * ROWS


def test_a_filled_entry_is_used_though_the_disk_has_less_space_by_now(tmp_path, dataset, monkeypatch):
    usage = type("Usage", (), {"free": 2 * BYTES})
    monkeypatch.setattr("aecore.data.cache_eviction.shutil.disk_usage", lambda path: usage)
    fill(tmp_path, dataset)
    usage.free = BYTES - 1  # the entry takes BYTES of what was free
    [complete] = tmp_path.glob("cache/*/complete.json")
    os.utime(complete, (1, 1))  # checked so long ago that it is checked again
    images, progress = fill(tmp_path, dataset)
    assert ((images == noise_images(SHARDS * ROWS)).all(), progress) == (True, [])


def test_the_cache_is_filled_on_a_file_system_without_fallocate(tmp_path, dataset, monkeypatch):
    """There glibc's posix_fallocate fails for a file open to append, and needs to read what is already in the file."""

    def emulate_fallocate(fd: int, offset: int, size: int) -> None:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if flags & os.O_APPEND or flags & os.O_ACCMODE != os.O_RDWR:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        os.ftruncate(fd, max(offset + size, os.fstat(fd).st_size))

    monkeypatch.setattr(os, "posix_fallocate", emulate_fallocate)
    assert (fill(tmp_path, dataset)[0] == noise_images(SHARDS * ROWS)).all()


def test_a_view_keeps_its_entry_in_use(tmp_path, dataset, entry):
    view = fill(tmp_path, dataset)[0][3:5, 0]
    other = make_dataset(tmp_path / "other", {"train": [SHARDS * ROWS]}, seed=1)
    with pytest.raises(ValueError, match="in use"):
        fill(tmp_path, other, BYTES)
    assert np.array_equal(view, noise_images(SHARDS * ROWS)[3:5, 0])
    del view
    fill(tmp_path, other, BYTES)
    assert not entry.exists()
