"""The node cache: right pixels, each shard decoded once by all processes, whatever happens to one of them."""

import multiprocessing
import os
import signal
import threading
import time
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from aecore.data import dataset as dataset_module
from aecore.data.dataset import Dataset
from aecore.data.images import encode_image
from aecore.data.node_cache import open_cache
from aecore.data.shards import Manifest, save_manifest, shard_table, write_shard

FS = pafs.LocalFileSystem()
SHARDS, ROWS, SIZE = 8, 5, 8
SPAWN = multiprocessing.get_context("spawn")


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SHARDS * ROWS, SIZE, SIZE, 1), np.uint8)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root, images = tmp_path / "data", [encode_image(image, "png") for image in pixels()]
    shards = []
    for number in range(SHARDS):
        rows = images[number * ROWS : (number + 1) * ROWS]
        table = shard_table(pa.table({"name": [str(i) for i in range(ROWS)]}), rows)
        shards.append(write_shard(FS, str(root), f"train-{number:05d}.parquet", table))
    splits = {"train": tuple(shards), "valid": ()}
    save_manifest(FS, str(root), Manifest(dataset="x", options={}, size=8, channels=1, encoding="png", splits=splits))
    return root


def filled(folder: Path, root: Path, seconds: float = 0.0, told=None) -> np.ndarray:
    """Open the cache, taking `seconds` over each shard; `told` gets the rows done by each shard decoded here."""

    def tell(done: int) -> None:
        if told is not None:
            told.put((os.getpid(), done))
        time.sleep(seconds)

    return open_cache(folder, Dataset.open(FS, str(root)), "train", tell)


def test_it_gives_the_pixels_in_order_and_fills_once(tmp_path: Path, dataset: Path):
    images = filled(tmp_path / "cache", dataset)
    assert (images == pixels()).all()
    assert not images.flags.writeable
    for shard in dataset.glob("*.parquet"):
        shard.unlink()
    assert (filled(tmp_path / "cache", dataset) == pixels()).all()


def test_an_empty_split_needs_no_file(tmp_path: Path, dataset: Path):
    assert open_cache(tmp_path / "c", Dataset.open(FS, str(dataset)), "valid").shape == (0, 8, 8, 1)
    assert not (tmp_path / "c").exists()


def test_two_processes_share_the_work(tmp_path: Path, dataset: Path):
    told = SPAWN.Queue()
    workers = [SPAWN.Process(target=filled, args=(tmp_path / "cache", dataset, 0.3, told)) for _ in range(2)]
    for worker in workers:
        worker.start()
    decoded = [told.get(timeout=60) for _ in range(SHARDS)]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert told.empty()
    assert {pid for pid, _ in decoded} == {worker.pid for worker in workers}
    assert max(done for _, done in decoded) == SHARDS * ROWS  # each counts what the other did
    assert (filled(tmp_path / "cache", dataset) == pixels()).all()


def test_a_killed_filler_is_taken_over(tmp_path: Path, dataset: Path):
    """Killed while it decodes its third shard and another process waits for that one."""
    told = SPAWN.Queue()
    dying = SPAWN.Process(target=fill_and_hang, args=(tmp_path / "cache", dataset, told))
    dying.start()
    assert told.get(timeout=60) == "hangs"
    assert dying.pid
    threading.Timer(0.5, os.kill, (dying.pid, signal.SIGKILL)).start()
    seen: list[int] = []
    images = open_cache(tmp_path / "cache", Dataset.open(FS, str(dataset)), "train", seen.append)
    dying.join(60)
    assert dying.exitcode == -signal.SIGKILL
    assert (images == pixels()).all()
    assert len(seen) == SHARDS - 2


def fill_and_hang(folder: Path, root: Path, told) -> None:
    calls, decode = count(), dataset_module.decode_rows

    def decode_two(*args) -> None:
        if next(calls) == 2:
            told.put("hangs")
            time.sleep(600)
        decode(*args)

    dataset_module.decode_rows = decode_two
    filled(folder, root)


def test_a_damaged_shard_is_named_and_can_be_mended(tmp_path: Path, dataset: Path):
    shard = dataset / "train-00002.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + b"X")
    with pytest.raises(ValueError, match=r"train-00002.parquet is damaged"):
        filled(tmp_path / "cache", dataset)
    shard.write_bytes(whole)
    assert (filled(tmp_path / "cache", dataset) == pixels()).all()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, dataset: Path):
    (tmp_path / "cache").touch()
    with pytest.raises(ValueError, match=r"cannot fill the node cache .*cache.*ZPOINT_CACHE names its folder"):
        filled(tmp_path / "cache", dataset)
