"""Resources of training workers: how much one gets, how many fit into the cluster, and the wait until they are free."""

import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.ray_compat import own_state_api
from cluster.ray_connection import has_gpu, uses_local_ray

if TYPE_CHECKING:
    from aecore.config import Scale

log = logging.getLogger(__name__)
WARN_AFTER_S = 5  # a longer wait for resources is logged
REPLICA = "ServeReplica:"  # how the class names of Ray Serve's replicas begin
UNITS = ("CPU", "GPU")
RESOURCE_UNITS = 10_000  # of 1: Ray counts in ten-thousandths
MAX_HOLDERS = 4  # that the log of a wait names


@dataclass(frozen=True)
class Holding:
    """CPUs and GPUs that one actor or placement group holds on one node. `holder`: a job or an endpoint."""

    holder: str
    node_id: str
    resources: dict[str, float]

    @property
    def of_endpoint(self) -> bool:
        return self.holder.startswith("endpoint ")


def worker_resources(scale: "Scale", num_workers: int | None = None, streaming: bool = False) -> dict[str, float]:
    """Return the resources of one of `num_workers`, by default as many as `scale` has at most.

    With `auto` that is a GPU and a CPU if the cluster has GPUs, else as many CPUs as all of them can have; an endpoint
    keeps what it holds. With `streaming` the share is halved: the tasks that decode the images take the other half.
    """
    num_workers = num_workers or max(1, scale.max_workers)
    gpus, cpus = scale.gpus_per_worker, scale.cpus_per_worker
    nodes = node_resources()
    if gpus == "auto":
        gpus = _gpu_share([node["GPU"] for node in nodes if "GPU" in node], num_workers) if has_gpu() else 0
    if cpus == "auto":
        cpus = 1 if gpus else _cpu_share([int(node.get("CPU", 0)) for node in nodes], num_workers, streaming)
    return ({"GPU": gpus} if gpus else {}) | {"CPU": cpus}


def _cpu_share(cpus: list[int], num_workers: int, streaming: bool) -> float:
    """Return the largest share of which `num_workers` fit into the nodes, at least 1; no worker straddles two nodes."""
    shares = range(max(cpus, default=0), 1, -1)
    share = next((share for share in shares if sum(count // share for count in cpus) >= num_workers), 1)
    return share if not streaming else share // 2 or 0.5


def _gpu_share(gpus: list[float], num_workers: int) -> float:
    """Return 1, or what is left of a GPU that an endpoint shares if there are too few others."""
    fractions = [fraction for count in gpus if (fraction := round(count % 1, 4))]
    return 1 if sum(map(int, gpus)) >= num_workers or not fractions else min(fractions)


def worker_capacity(resources: dict[str, float], without: Collection[str] = ()) -> int:
    """Return how many workers with `resources` each fit into the cluster beside its endpoints if nothing else runs.

    `without`: ids of nodes that do not count.
    """
    return sum(
        min(_ray_units(node.get(name, 0)) // max(1, _ray_units(amount)) for name, amount in resources.items() if amount)
        for node in node_resources(without)
    )


def _ray_units(amount: float) -> int:
    """Return an amount of a resource in RESOURCE_UNITS, rounded as by Ray."""
    return round(amount * RESOURCE_UNITS)


def wait_for_resources(num_workers: int, resources: dict[str, float]) -> None:
    """Wait until `num_workers` with `resources` each can start, and log a long wait and what holds the resources.

    Ray Train itself waits without a log line, and ignores Ctrl-C meanwhile. The placement group of the wait shows an
    autoscaler what to add. Raises ValueError as `check_capacity`.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    capacity = check_capacity(num_workers, resources)
    request = describe_request(num_workers, resources)
    group = placement_group([resources] * num_workers)
    try:
        if not group.wait(WARN_AFTER_S):
            log.warning(
                "waiting for resources for %s; the idle cluster has resources for %d; held now: %s",
                request, capacity, describe_holdings(holdings()),
            )  # fmt: skip
        while not group.wait(1):
            pass
    finally:
        remove_placement_group(group)


def check_capacity(num_workers: int, resources: dict[str, float]) -> int:
    """Return `worker_capacity`. Raises ValueError if a Ray on this machine alone can never start so many workers."""
    capacity = worker_capacity(resources)
    if uses_local_ray() and capacity < num_workers:
        request = describe_request(num_workers, resources)
        raise ValueError(f"{request}: this machine has resources for {capacity}; set scale.workers={capacity}")
    return capacity


def describe_request(num_workers: int, resources: dict[str, float]) -> str:
    """Return the number of workers with the resources of each."""
    return f"{num_workers} worker{'s' * (num_workers > 1)} with {_format(resources)} each"


def holdings() -> list[Holding]:
    """Return what actors and placement groups hold of the connected cluster; none if its state API does not answer."""
    from ray.util.state import list_actors, list_jobs, list_placement_groups

    held: list[Holding] = []
    with suppress(Exception), own_state_api():
        jobs: list[Any] = list_jobs()
        actors: list[Any] = list_actors(filters=[("state", "=", "ALIVE")], detail=True)
        groups: list[Any] = list_placement_groups(filters=[("state", "=", "CREATED")], detail=True)
        names = {job.job_id: job.submission_id or f"driver {job.job_id}" for job in jobs}
        for actor in actors:
            if actor.placement_group_id:
                continue  # its resources are the group's
            is_replica = actor.class_name.startswith(REPLICA)
            holder = f"endpoint {actor.class_name.split(':')[1]}" if is_replica else names.get(actor.job_id, "a job")
            held.append(Holding(holder, actor.node_id, _units(actor.required_resources)))
        for group in groups:
            holder = names.get(group.creator_job_id, "a job")
            held += [
                Holding(holder, b.get("node_id", ""), _units(b.get("unit_resources"))) for b in group.bundles or []
            ]
    return [holding for holding in held if holding.resources]


def describe_holdings(held: list[Holding]) -> str:
    """Return the resources of each holder, as in `endpoint zpoint 1 CPU, train-1129-101500-ab12 2 CPU`."""
    totals: dict[str, dict[str, float]] = {}
    for holding in held:
        total = totals.setdefault(holding.holder, {})
        for name, amount in holding.resources.items():
            total[name] = total.get(name, 0) + amount
    texts = [f"{holder} {_format(total)}" for holder, total in totals.items()]
    more = f" and {len(texts) - MAX_HOLDERS} more" if len(texts) > MAX_HOLDERS else ""
    return ", ".join(texts[:MAX_HOLDERS]) + more if texts else "nothing, so the nodes are too small or too few"


def _units(resources: dict[str, Any] | None) -> dict[str, float]:
    return {name: float(resources[name]) for name in UNITS if resources and resources.get(name)}


def _format(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount)


def node_resources(without: Collection[str] = ()) -> list[dict[str, float]]:
    """Return the resources, used or free, of each living node but those of `without`, less what endpoints hold."""
    import ray

    nodes = {n["NodeID"]: dict(n["Resources"]) for n in ray.nodes() if n["Alive"] and n["NodeID"] not in without}
    named_actors: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    if not any(actor["namespace"] == "serve" for actor in named_actors):
        return list(nodes.values())  # without an endpoint; the state API would delay each start
    for holding in holdings():
        if holding.of_endpoint and (node := nodes.get(holding.node_id)) is not None:
            for name, amount in holding.resources.items():
                node[name] = round(node.get(name, 0) - amount, 4)
    return list(nodes.values())
