"""Run ingest's tasks in the test's own process, without Ray."""

import pickle
from collections import deque
from collections.abc import Iterator

import pytest

from aecore.data.readers import open_zip
from jobs.ingest.shard_task import IngestSpec, ShardError, ShardResult, ShardTask, ShardWriter


def write_shards(spec: IngestSpec, queue: deque[ShardTask]) -> Iterator[ShardResult | ShardError | None]:
    """Write the shards one by one; spec and tasks are pickled as Ray sends them."""
    open_zip.cache_clear()  # a worker process opens the zip itself
    writer = ShardWriter(pickle.loads(pickle.dumps(spec)))
    yield None
    while queue:
        yield writer.write(pickle.loads(pickle.dumps(queue.popleft())))


def patch_ingest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `ingest` write its shards by this module's `write_shards`."""
    monkeypatch.setattr("jobs.ingest.job.connect", lambda: None)
    monkeypatch.setattr("jobs.ingest.job.write_shards", write_shards)
