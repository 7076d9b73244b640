"""The Ray actors of an ingest."""

import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem

from aecore.data.images import Crop
from jobs.ingest import pool
from jobs.ingest.shard_task import IngestSpec, ShardTask


class Writer:
    """Writes nothing; the shard `slow` takes until the file `released` exists."""

    def __init__(self, spec: IngestSpec) -> None:
        self.released = Path(spec.root) / "released"

    def write(self, task: ShardTask) -> str:
        while task.path == "slow" and not self.released.exists():
            time.sleep(0.01)
        return task.path


@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_without_tasks_leaves_its_cpu_to_one_that_lost_its_node(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wait_until
):
    import ray

    monkeypatch.setattr(pool, "ShardWriter", Writer)
    unused: Any = None
    names = ["slow", *map(str, range(6))]
    queue = deque(ShardTask(name, items=unused, reader=unused, record=None) for name in names)
    spec = IngestSpec(
        fs=LocalFileSystem(), root=str(tmp_path), plan="", size=16, channels=3, crop=Crop(), encoding="png", quality=95
    )  # fmt: skip
    written: list[Any] = []
    consumer = threading.Thread(target=lambda: written.extend(pool.write_shards(spec, queue)), daemon=True)
    consumer.start()
    try:
        wait_until(lambda: sum(map(bool, written)) >= 5)  # the slow shard, and maybe one behind it, are left
        wait_until(lambda: ray.available_resources().get("CPU", 0) >= 1)
    finally:  # else the actors hold the CPUs of later tests
        (tmp_path / "released").touch()
        consumer.join()
    assert sorted(filter(None, written)) == sorted(names)
