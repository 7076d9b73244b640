"""The node cache under kills, damage, a full disk and concurrent runs: the pixels are correct each time."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from aecore.data.dataset import Dataset
from aecore.data.node_cache import open_cache
from tests.synthetic_dataset import FS, make_dataset, noise_images

SHARDS, ROWS, SIZE = 12, 16, 32
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "data", {"train": [ROWS] * SHARDS}, SIZE)


def assert_complete(images: np.ndarray) -> None:
    assert np.array_equal(images, noise_images(SHARDS * ROWS, SIZE))


def use_cache(folder: Path, root: str, progress=None, pause_at: int = 0, ready=None, release=None) -> None:
    """Open the cache and check each pixel; then hold it until `release` is set. Pause for ever at shard `pause_at`."""
    num_decoded = 0

    def on_progress(rows: int) -> None:
        nonlocal num_decoded
        num_decoded += 1
        if progress is not None:
            progress.put(rows)
        if num_decoded == pause_at:
            time.sleep(600)

    images = open_cache(folder, Dataset.open(FS, root), "train", on_progress)
    assert_complete(images)
    if ready is not None:
        ready.set()
        assert release.wait(60)
        assert_complete(images)


def start(tmp_path: Path, *args: object) -> multiprocessing.Process:
    process = SPAWN.Process(target=use_cache, args=(tmp_path / "cache", str(tmp_path / "data"), *args))
    process.start()
    return process  # pyright: ignore[reportReturnType]


def kill(process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def join(*processes) -> None:
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def count_decoded(tmp_path: Path, dataset: Dataset) -> int:
    """Open the cache, check its pixels, and return how many shards were decoded for that."""
    progress: list[int] = []
    assert_complete(open_cache(tmp_path / "cache", dataset, "train", progress.append))
    return len(progress)


def test_shards_decoded_before_a_kill_are_kept(tmp_path, dataset):
    done = 0
    for _ in range(2):
        progress = SPAWN.Queue()
        process = start(tmp_path, progress, 3)
        for _ in range(3):
            progress.get(timeout=60)
            done += 1
        kill(process)
    assert count_decoded(tmp_path, dataset) <= SHARDS - done
    assert count_decoded(tmp_path, dataset) == 0


def test_a_process_completes_the_cache_after_another_one_is_killed(tmp_path, dataset):
    queues = [SPAWN.Queue(), SPAWN.Queue()]
    killed = start(tmp_path, queues[0], 1)
    queues[0].get(timeout=60)
    survivor = start(tmp_path, queues[1])  # it decodes the other shards, and waits for those that are locked
    queues[1].get(timeout=60)
    kill(killed)
    join(survivor)
    assert count_decoded(tmp_path, dataset) == 0


def test_a_damaged_shard_is_named_each_time_until_it_is_restored(tmp_path, dataset):
    shard = tmp_path / "data" / "train-00007.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"train-00007.parquet is damaged"):
            count_decoded(tmp_path, dataset)
    shard.write_bytes(content)
    assert count_decoded(tmp_path, dataset) < SHARDS  # shards decoded before the error are kept


def test_concurrent_runs_repair_a_damaged_entry_once(tmp_path, dataset):
    """The entry is truncated and a shard overwritten; all three runs read correct pixels."""
    count_decoded(tmp_path, dataset)
    images = next((tmp_path / "cache").glob("*/images.u8"))
    with open(images, "r+b") as file:
        file.truncate(9 * ROWS * SIZE * SIZE + 5)
        file.seek(2 * ROWS * SIZE * SIZE)
        file.write(b"\0" * 4096)
    progress = SPAWN.Queue()
    join(*[start(tmp_path, progress) for _ in range(3)])
    decoded = []
    while not progress.empty():
        decoded.append(progress.get(timeout=5))
    assert len(decoded) == 4  # shard 2 and the last three, each by one of the runs
    assert count_decoded(tmp_path, dataset) == 0


def test_a_reader_of_an_entry_that_is_refilled_is_not_disturbed(tmp_path, dataset):
    ready, release = SPAWN.Event(), SPAWN.Event()
    reader = start(tmp_path, None, 0, ready, release)
    assert ready.wait(60)
    entry = next((tmp_path / "cache").glob("*/images.u8")).parent
    for name in ("complete.json", *(f"{n:05d}.crc" for n in range(SHARDS))):
        (entry / name).unlink()
    assert count_decoded(tmp_path, dataset) == SHARDS
    release.set()
    join(reader)


def test_an_entry_in_use_is_evicted_only_after_its_process_dies(tmp_path, dataset):
    ready, release = SPAWN.Event(), SPAWN.Event()
    reader = start(tmp_path, None, 0, ready, release)
    assert ready.wait(60)
    other = make_dataset(tmp_path / "other", {"train": [ROWS]}, SIZE, seed=1)

    def open_other() -> np.ndarray:
        return open_cache(tmp_path / "cache", other, "train", max_bytes=SHARDS * ROWS * SIZE * SIZE)

    with pytest.raises(ValueError, match=r"of other datasets in use"):
        open_other()
    kill(reader)
    assert np.array_equal(open_other(), noise_images(ROWS, SIZE, 1))
    assert len(list((tmp_path / "cache").glob("*/images.u8"))) == 1


def test_a_full_disk_fails_in_one_line_and_leaves_no_images(tmp_path, dataset, small_disk):
    """The split takes 0.2 MB: first the default limit refuses it, then, with a limit over the disk's size, the disk."""
    disk = small_disk("1m")
    (disk / "ballast").write_bytes(b"x" * 900_000)
    no_space = r"No space left on device; ZPOINT_CACHE names its folder"
    for max_bytes, error in ((None, "data.cache=none"), (10**9, no_space)):
        with pytest.raises(ValueError, match=error):
            open_cache(disk / "cache", dataset, "train", max_bytes=max_bytes)
        assert all(file.stat().st_size == 0 for file in (disk / "cache").glob("*/images.u8"))
    (disk / "ballast").unlink()
    images = open_cache(disk / "cache", dataset, "train")
    assert_complete(images)
    del images


def test_threads_of_one_process_open_the_same_entry(tmp_path, dataset):
    errors: list[BaseException] = []

    def open_entry() -> None:
        try:
            count_decoded(tmp_path, dataset)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=open_entry) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
