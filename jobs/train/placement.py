"""Resources of training workers: how much one gets, how many fit into the cluster, and the wait until they are free."""

import logging

from cluster.ray_connection import has_gpu, uses_local_ray

log = logging.getLogger(__name__)
WARN_AFTER_SECONDS = 5  # a longer wait for resources is logged


def worker_resources(num_workers: int, streaming: bool = False) -> dict[str, float]:
    """Return the resources of one of `num_workers`: a GPU if the cluster has any, else an even share of the CPUs.

    With `streaming` the CPU share is halved: the tasks that decode the images take the other half.
    """
    if has_gpu():
        return {"GPU": 1, "CPU": 1}
    cpus = [count for node in node_resources() if (count := int(node.get("CPU", 0)))]
    cpus_per_worker = max(1, min(min(cpus), sum(cpus) // num_workers)) if cpus else 1
    return {"CPU": cpus_per_worker if not streaming else cpus_per_worker // 2 or 0.5}


def worker_capacity(resources: dict[str, float]) -> int:
    """Return how many workers with `resources` each fit into the cluster if nothing else runs there."""
    return sum(min(int(node.get(name, 0) // amount) for name, amount in resources.items()) for node in node_resources())


def wait_for_resources(num_workers: int, resources: dict[str, float]) -> None:
    """Wait until `num_workers` with `resources` each can start, and log a long wait.

    Ray Train itself waits without a log line, and ignores Ctrl-C meanwhile. The placement group of the wait shows an
    autoscaler what to add. Raises ValueError if a Ray on this machine alone can never start so many workers.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    capacity = worker_capacity(resources)
    amounts = " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
    request = f"{num_workers} worker{'s' * (num_workers > 1)} with {amounts} each"
    if uses_local_ray() and capacity < num_workers:
        raise ValueError(f"{request}: this machine has resources for {capacity}; set scale.workers={capacity}")
    group = placement_group([resources] * num_workers)
    try:
        if not group.wait(WARN_AFTER_SECONDS):
            log.warning("waiting for resources for %s; the idle cluster has resources for %d", request, capacity)
        while not group.wait(1):
            pass
    finally:
        remove_placement_group(group)


def node_resources() -> list[dict[str, float]]:
    """Return the total resources of each living node of the connected cluster, used or free."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
