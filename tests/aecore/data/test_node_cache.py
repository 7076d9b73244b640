"""The node cache: correct pixels, each shard decoded once by all processes, even if one of them dies."""

import multiprocessing
import os
import signal
import threading
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from aecore.data import dataset as dataset_module
from aecore.data.dataset import Dataset
from aecore.data.node_cache import open_cache
from tests.synthetic_dataset import FS, make_dataset, noise_images

SHARDS, ROWS = 8, 5
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "data", {"train": [ROWS] * SHARDS, "valid": []})


def assert_complete(images: np.ndarray) -> None:
    assert np.array_equal(images, noise_images(SHARDS * ROWS))


def fill(folder: Path, root: str, decoded=None, barrier=None) -> np.ndarray:
    """Open the cache; put (process id, rows done) into the queue `decoded`; wait at `barrier` after the first shard."""
    barriers = [barrier] if barrier else []

    def on_progress(rows: int) -> None:
        if decoded is not None:
            decoded.put((os.getpid(), rows))
        if barriers:
            barriers.pop().wait(120)

    return open_cache(folder, Dataset.open(FS, root), "train", on_progress)


def test_pixels_are_in_order_and_a_filled_cache_needs_no_shards(tmp_path: Path, dataset: Dataset):
    images = fill(tmp_path / "cache", dataset.root)
    assert_complete(images)
    assert not images.flags.writeable
    for shard in Path(dataset.root).glob("*.parquet"):
        shard.unlink()
    assert_complete(fill(tmp_path / "cache", dataset.root))


def test_an_empty_split_creates_no_files(tmp_path: Path, dataset: Dataset):
    assert open_cache(tmp_path / "cache", dataset, "valid").shape == (0, 8, 8, 1)
    assert not (tmp_path / "cache").exists()


def test_two_processes_share_the_decoding(tmp_path: Path, dataset: Dataset):
    queue, both_decode = SPAWN.Queue(), SPAWN.Barrier(2)
    arguments = (tmp_path / "cache", dataset.root, queue, both_decode)
    workers = [SPAWN.Process(target=fill, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    decoded = [queue.get(timeout=120) for _ in range(SHARDS)]
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert queue.empty()
    assert {pid for pid, _ in decoded} == {worker.pid for worker in workers}
    assert max(rows for _, rows in decoded) == SHARDS * ROWS  # progress counts the other process's shards too
    assert_complete(fill(tmp_path / "cache", dataset.root))


def test_shards_of_a_killed_process_are_taken_over(tmp_path: Path, dataset: Dataset):
    """The process is killed while it decodes its third shard and another process waits for that shard."""
    queue = SPAWN.Queue()
    hanging = SPAWN.Process(target=fill_two_shards_and_hang, args=(tmp_path / "cache", dataset.root, queue))
    hanging.start()
    assert queue.get(timeout=120) == "hangs"
    assert hanging.pid
    threading.Timer(0.5, os.kill, (hanging.pid, signal.SIGKILL)).start()
    progress: list[int] = []
    images = open_cache(tmp_path / "cache", dataset, "train", progress.append)
    hanging.join(60)
    assert hanging.exitcode == -signal.SIGKILL
    assert_complete(images)
    assert len(progress) == SHARDS - 2


def fill_two_shards_and_hang(folder: Path, root: str, queue) -> None:
    calls, decode_rows = count(), dataset_module.decode_rows

    def decode_two(*args) -> None:
        if next(calls) == 2:
            while sum(path.stat().st_size > 0 for path in folder.glob("*/*.crc")) < 2:
                time.sleep(0.01)  # another thread may decode the second one
            queue.put("hangs")
            time.sleep(600)
        decode_rows(*args)

    dataset_module.decode_rows = decode_two
    fill(folder, root)


def test_a_damaged_shard_is_named_and_can_be_restored(tmp_path: Path, dataset: Dataset):
    shard = Path(dataset.root) / "train-00002.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"X")
    with pytest.raises(ValueError, match=r"train-00002.parquet is damaged"):
        fill(tmp_path / "cache", dataset.root)
    shard.write_bytes(content)
    assert_complete(fill(tmp_path / "cache", dataset.root))


def test_a_checked_shard_has_the_time_of_its_check(tmp_path: Path, dataset: Dataset):
    """So that the other workers that opened the cache before do not check it again."""
    fill(tmp_path / "cache", dataset.root)
    [entry] = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    for path in entry.glob("*.*"):
        os.utime(path, (0, 0))
    started = time.time()
    fill(tmp_path / "cache", dataset.root)
    times = [path.stat().st_mtime for path in entry.glob("*.crc")]
    assert len(times) == SHARDS
    assert min(times) > started - 1


def test_a_folder_that_is_not_writable_is_named(tmp_path: Path, dataset: Dataset):
    (tmp_path / "cache").touch()
    with pytest.raises(ValueError, match=r"cannot fill the node cache .*cache.*ZPOINT_CACHE names its folder"):
        fill(tmp_path / "cache", dataset.root)
