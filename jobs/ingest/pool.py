"""The workers of `zpoint ingest`: one Ray actor per CPU, one call per shard.

Not Ray Data, which leaves a worker idle for 0.1 to 0.3 s after each shard of 0.3 s (tests/benchmarks/RESULTS.md).
"""

import json
from collections.abc import Iterator
from typing import Any

from jobs.ingest.shard_task import IngestSpec, ShardWriter

CHUNKS_AT_ONCE = 2  # in a worker: one is decoded while the other waits for storage or for Ray
RESTARTS = 3  # of a worker that died, and for how many times a chunk may go down with it


def run_shard_writers(work: IngestSpec, chunks: list[dict]) -> Iterator[dict]:
    """Give the result of each chunk as it comes, from one worker per CPU of the cluster; a killed one is replaced.

    When a worker is ready for work, {} is given.
    """
    import ray
    from ray.exceptions import RayActorError

    count = min(len(chunks), max(1, int(ray.cluster_resources().get("CPU", 0))))
    remote: Any = ray.remote(ShardWriter)  # Ray's stubs do not know all that it has
    worker = remote.options(
        num_cpus=1,
        max_concurrency=CHUNKS_AT_ONCE,
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
        scheduling_strategy="SPREAD",
    )
    makers = [worker.remote(work) for _ in range(count)]
    left, done = iter(chunks), 0
    # One that finds no CPU free is never ready and gets nothing to do.
    busy = {maker.__ray_ready__.remote(): (maker, "") for maker in makers for _ in range(CHUNKS_AT_ONCE)}
    try:
        while done < len(chunks):
            [over], _ = ray.wait(list(busy))
            maker, name = busy.pop(over)
            try:
                result = ray.get(over)
            except RayActorError as error:
                raise RuntimeError(f"shard {name} could not be made: its worker died each time ({error})") from error
            if (chunk := next(left, None)) is not None:
                busy[maker.make.remote(chunk)] = maker, chunk["name"]
            done += bool(name)
            yield json.loads(result) if name else {}
    finally:
        for maker in makers:
            ray.kill(maker)
