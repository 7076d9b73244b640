"""The Ray actors of `zpoint ingest`: one per CPU, which write the queued shards.

Ray Data is not used: it leaves an actor idle for 0.1 to 0.3 s after each shard of 0.3 s.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

from pyarrow.fs import LocalFileSystem

from jobs.ingest.shard_task import IngestSpec, ShardError, ShardResult, ShardTask, ShardWriter

TASKS_PER_ACTOR = 2  # the next one is there when the actor has written a shard
MAX_RESTARTS = 3  # of an actor that died, and retries of a shard whose actor died


def write_shards(spec: IngestSpec, queue: deque[ShardTask]) -> Iterator[ShardResult | ShardError | None]:
    """Write the shards in `queue` on all CPUs of the cluster and yield each result as it arrives.

    Yields None when an actor is ready. Ray restarts an actor that dies; if its node is lost, on the CPU of one that has
    no task left. If the caller clears `queue`, the tasks that run already are awaited and no further one is started.
    Raises RuntimeError if the actors of one shard keep dying.
    """
    import ray
    from ray.exceptions import RayActorError

    # Two threads decode while one waits for a remote store; on a local disk they only contend for Python's lock.
    max_concurrency = 1 if isinstance(spec.fs, LocalFileSystem) else TASKS_PER_ACTOR
    num_actors = min(len(queue), max(1, int(ray.cluster_resources().get("CPU", 0))))
    actor_class: Any = ray.remote(ShardWriter)  # Ray's type stubs lack `.options` of an actor class
    actor_class = actor_class.options(
        num_cpus=1,
        max_concurrency=max_concurrency,
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RESTARTS,
        scheduling_strategy="SPREAD",
    )
    actors = [actor_class.remote(spec) for _ in range(num_actors)]
    # An actor that gets no CPU never becomes ready and gets no task.
    pending: dict[Any, tuple[Any, ShardTask | None]] = {
        actor.__ray_ready__.remote(): (actor, None) for actor in actors for _ in range(TASKS_PER_ACTOR)
    }
    try:
        while queue or any(task for _, task in pending.values()):
            [ref], _ = ray.wait(list(pending))
            actor, task = pending.pop(ref)
            try:
                result = ray.get(ref)
            except RayActorError as error:
                shard = f"shard {task.path}" if task else "shards"
                raise RuntimeError(f"cannot write {shard}: the worker process died each time ({error})") from error
            if queue:
                next_task = queue.popleft()
                pending[actor.write.remote(next_task)] = actor, next_task
            elif not any(actor is busy for busy, _ in pending.values()):
                ray.kill(actor)  # else it would hold its CPU
            yield result if task else None
    finally:
        for actor in actors:
            ray.kill(actor)
