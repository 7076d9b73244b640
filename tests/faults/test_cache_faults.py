"""The node cache under blows: kills, damage, a full disk, several runs at once. The pixels are right each time."""

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
from tests.synthetic_dataset import FS, make_dataset, pixels

SHARDS, ROWS, SIZE = 12, 16, 32
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "data", {"train": [ROWS] * SHARDS}, SIZE)


def use(folder: Path, root: Path, told=None, slow: float = 0.0, ready=None, over=None) -> None:
    """Open the cache, `slow` seconds a shard, check every pixel; then keep it until `over`."""

    def tell(rows: int) -> None:
        if told is not None:
            told.put(rows)
        time.sleep(slow)

    images = open_cache(folder, Dataset.open(FS, str(root)), "train", tell)
    assert np.array_equal(images, pixels(SHARDS * ROWS, SIZE))
    if ready is not None:
        ready.set()
        assert over.wait(60)
        assert np.array_equal(images, pixels(SHARDS * ROWS, SIZE))


def start(tmp_path: Path, *args: object) -> multiprocessing.Process:
    process = SPAWN.Process(target=use, args=(tmp_path / "cache", tmp_path / "data", *args))
    process.start()
    return process  # pyright: ignore[reportReturnType]


def kill(process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def ended(*processes) -> None:
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def decoded_now(tmp_path: Path, dataset: Dataset) -> int:
    """Open the cache here, check its pixels; how many shards that took."""
    rows: list[int] = []
    images = open_cache(tmp_path / "cache", dataset, "train", rows.append)
    assert np.array_equal(images, pixels(SHARDS * ROWS, SIZE))
    return len(rows)


def test_killed_while_filling_then_begun_again(tmp_path, dataset):
    """Twice: what was decoded stays, however little it was."""
    done = 0
    for _ in range(2):
        told = SPAWN.Queue()
        process = start(tmp_path, told, 0.2)
        for _ in range(3):
            told.get(timeout=60)
            done += 1
        kill(process)
    assert decoded_now(tmp_path, dataset) <= SHARDS - done
    assert decoded_now(tmp_path, dataset) == 0


def test_two_fill_and_one_is_killed(tmp_path, dataset):
    told = [SPAWN.Queue(), SPAWN.Queue()]
    dying, living = start(tmp_path, told[0], 0.3), start(tmp_path, told[1], 0.3)
    told[0].get(timeout=60)
    kill(dying)
    ended(living)
    assert decoded_now(tmp_path, dataset) == 0


def test_a_damaged_shard_is_named_by_all_who_fill_and_mended(tmp_path, dataset):
    shard = tmp_path / "data" / "train-00007.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"train-00007.parquet is damaged"):
            decoded_now(tmp_path, dataset)
    shard.write_bytes(whole)
    assert decoded_now(tmp_path, dataset) < SHARDS  # what was done before the error is kept


def test_many_runs_open_a_damaged_copy_at_once(tmp_path, dataset):
    """Cut short and flipped, while one already reads the sound part; all see the right pixels."""
    decoded_now(tmp_path, dataset)
    images = next((tmp_path / "cache").glob("*/images.u8"))
    with open(images, "r+b") as file:
        file.truncate(9 * ROWS * SIZE * SIZE + 5)
        file.seek(2 * ROWS * SIZE * SIZE)
        file.write(b"\0" * 4096)
    told = SPAWN.Queue()
    runs = [start(tmp_path, told) for _ in range(3)]
    ended(*runs)
    decoded = []
    while not told.empty():
        decoded.append(told.get(timeout=5))
    assert len(decoded) == 4  # shard 2 and the last three, each by one of the runs
    assert decoded_now(tmp_path, dataset) == 0


def test_a_reader_of_a_copy_that_is_rebuilt_is_not_disturbed(tmp_path, dataset):
    ready, over = SPAWN.Event(), SPAWN.Event()
    reader = start(tmp_path, None, 0.0, ready, over)
    assert ready.wait(60)
    place = next((tmp_path / "cache").glob("*/images.u8")).parent
    for name in ("complete.json", *(f"{n:05d}.crc" for n in range(SHARDS))):
        (place / name).unlink()
    assert decoded_now(tmp_path, dataset) == SHARDS
    over.set()
    ended(reader)


def test_a_copy_in_use_is_not_evicted_until_its_user_dies(tmp_path, dataset):
    ready, over = SPAWN.Event(), SPAWN.Event()
    reader = start(tmp_path, None, 0.0, ready, over)
    assert ready.wait(60)
    other = make_dataset(tmp_path / "other", {"train": [ROWS]}, SIZE, seed=1)
    limit = SHARDS * ROWS * SIZE * SIZE

    def open_other() -> np.ndarray:
        return open_cache(tmp_path / "cache", other, "train", max_bytes=limit)

    with pytest.raises(ValueError, match=r"of other datasets in use"):
        open_other()
    kill(reader)
    assert np.array_equal(open_other(), pixels(ROWS, SIZE, 1))
    assert len(list((tmp_path / "cache").glob("*/images.u8"))) == 1


def test_a_full_disk_is_told_in_a_line_and_nothing_is_left_on_it(tmp_path, dataset, small_disk):
    """The set takes 0.2 MB. First the limit forbids it, then, with a limit that lies, the disk."""
    disk = small_disk("1m")
    (disk / "ballast").write_bytes(b"x" * 900_000)
    for limit, said in ((None, "data.cache=none"), (10**9, r"No space left on device; ZPOINT_CACHE names its folder")):
        with pytest.raises(ValueError, match=said):
            open_cache(disk / "cache", dataset, "train", max_bytes=limit)
        left = list((disk / "cache").glob("*/images.u8"))
        assert all(file.stat().st_size == 0 for file in left)
    (disk / "ballast").unlink()
    images = open_cache(disk / "cache", dataset, "train")
    assert np.array_equal(images, pixels(SHARDS * ROWS, SIZE))
    del images


def test_threads_of_one_process_may_open_one_copy(tmp_path, dataset):
    errors: list[BaseException] = []

    def open_it() -> None:
        try:
            decoded_now(tmp_path, dataset)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
