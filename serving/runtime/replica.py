"""The Serve deployment: replicas that hold the models, and their number. A Serve config file imports `app` from here.

serve run serving/serve.yaml        # on a cluster; see there
"""

import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.ray_connection import HEAD_RESOURCE
from cluster.settings import hide_credentials, settings
from serving.runtime import last_served
from serving.runtime.registry import (
    ModelVersion,
    find_model_version,
    find_model_versions,
    wait_for_model_versions,
)

if TYPE_CHECKING:  # only a replica loads torch
    from serving.runtime.metrics import EndpointMetrics
    from serving.runtime.model_reload import LoadFn
    from serving.runtime.model_slot import ModelSlot

log = logging.getLogger(__name__)
GPUS_PER_REPLICA = 0.1  # a decoder needs little of a GPU; trainings on the same cluster need the rest
TARGET_ONGOING_REQUESTS = 64  # requests in progress at one replica before autoscaling starts another one
ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?")  # as browsers send it
# glibc's malloc. Each of its eight arenas a core would keep fragments of the versions served before. Below these sizes
# it keeps the memory of activations for the next batch; if it returned it, a tenth fewer requests/s would be answered.
MALLOC_ENV = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(128 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
MAX_ONGOING_REQUESTS = 2048  # bounds the memory of a replica; its batchers refuse requests long before


@dataclass(frozen=True)
class ReplicaOptions:
    """The options of `zpoint serve` that concern each replica.

    `cors_origins`: origins, as in https://example.org, whose web pages may use the endpoint. `access_log`: the path of
    a file for a line of JSON a request. Raises ValueError for another origin.
    """

    cors_origins: tuple[str, ...] = ()
    access_log: str = ""

    def __post_init__(self) -> None:
        for origin in self.cors_origins:
            if not ORIGIN.fullmatch(origin):  # such as `*` and `null`, which would admit every web page
                raise ValueError(f"a CORS origin is http(s)://host[:port] in small letters, not '{origin}'")


class Replica:
    """A process that holds the model of each alias. Ray Serve mounts the app that `__serve_build_asgi_app__` returns.

    `versions` are the aliases' versions at the deployment, as dicts, of one tracking server.
    """

    def __init__(self, versions: list[dict[str, str]], token: str, options: ReplicaOptions):
        from ray import serve

        from cluster.ray_compat import close_replica_grpc_port
        from serving.runtime.metrics import EndpointMetrics, RayExporter
        from serving.runtime.model_loading import load_version

        close_replica_grpc_port()
        # After each kernel the model's thread needs the GIL, which the HTTP thread would otherwise keep for 5 ms.
        sys.setswitchinterval(0.0005)
        self._token, self._options = token, options
        self._metrics = EndpointMetrics(serve.get_replica_context().replica_id.unique_id)
        load = partial(load_version, metrics=self._metrics)
        self._slots = [_serve_alias(ModelVersion(**version), load, self._metrics) for version in versions]
        threading.Thread(target=RayExporter(self._metrics).run, name="export-metrics", daemon=True).start()

    def __serve_build_asgi_app__(self) -> Any:
        from serving.http.access_log import AccessLog
        from serving.http.api import create_app

        access_log = AccessLog(self._options.access_log) if self._options.access_log else None
        return create_app(
            *self._slots, token=self._token, metrics=self._metrics, cors_origins=self._options.cors_origins,
            access_log=access_log,
        )  # fmt: skip


def _serve_alias(deployed: ModelVersion, load: "LoadFn", metrics: "EndpointMetrics") -> "ModelSlot":
    """Return a slot with the alias' model, and start the thread that follows the alias."""
    from serving.runtime.model_reload import follow_alias, load_first_loadable

    os.environ["MLFLOW_TRACKING_URI"] = deployed.tracking_uri
    version, slot = load_first_loadable(_candidates(deployed), load)
    if slot.refused is None:  # so it is the one to serve
        last_served.save(version)
    info = slot.current.info
    metrics.set_served_version(info.alias, info.name, info.version, swap=False)
    arguments = (slot, deployed.alias, load, last_served.save, metrics)
    threading.Thread(target=follow_alias, args=arguments, name=f"follow-{deployed.alias}", daemon=True).start()
    return slot


def build_application(
    versions: Sequence[ModelVersion], token: str, replicas: tuple[int, int], options: ReplicaOptions, *,
    on_head: bool = False,
) -> Any:  # fmt: skip
    """Return the Serve application of one version for each alias.

    `replicas`: (min, max) processes, by the number of requests in progress; with `on_head` all on the head node.
    """
    from ray import serve

    from cluster.ray_connection import has_gpu, head_node

    on_gpu = "GPU" in head_node()["Resources"] if on_head else has_gpu()
    min_replicas, max_replicas = replicas
    scaling: dict[str, Any] = {"num_replicas": min_replicas}
    if max_replicas > min_replicas:
        bounds = {"min_replicas": min_replicas, "max_replicas": max_replicas}
        scaling = {"autoscaling_config": bounds | {"target_ongoing_requests": TARGET_ONGOING_REQUESTS}}
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="decoder",
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_queued_requests=MAX_ONGOING_REQUESTS,
        backpressure_config={"status_code": 503, "retry_after_s": 1},
        # A changed deployment starts new replicas, a quarter of them at a time, before it stops old ones; Serve's
        # default stops first, which leaves an endpoint of one replica without any.
        max_surge_percent=25,
        # /metrics counts the requests; a log line each costs a tenth of the rest that Python does for a request.
        logging_config={"enable_access_log": False},
        ray_actor_options={
            "num_cpus": 1,
            "num_gpus": GPUS_PER_REPLICA if on_gpu else 0,
            "resources": {HEAD_RESOURCE: 0.001} if on_head else {},
            "runtime_env": _replica_runtime_env(),
        },
        **scaling,
    )
    return deployment.bind([asdict(version) for version in versions], token, options)


def app(args: dict[str, Any]) -> Any:
    """Build the application for a Serve config file; `args` are those of serving/serve.yaml.

    `alias` and `cors_origins` are a string or a list of them. With `wait_for_alias` an alias that does not exist yet is
    waited for: Ray Serve never builds an application again that failed. Raises ValueError for another argument, an
    unknown alias, or without ZPOINT_TOKEN: a cluster is not loopback.
    """
    args = dict(args)
    origins = tuple(_as_list(args.pop("cors_origins", [])))
    options = ReplicaOptions(origins, args.pop("access_log", ""))
    aliases, min_replicas = _as_list(args.pop("alias", "champion")), args.pop("min_replicas", 1)
    max_replicas = args.pop("max_replicas", min_replicas)
    find_versions = wait_for_model_versions if args.pop("wait_for_alias", False) else find_model_versions
    if args:
        raise ValueError(
            "args take alias, wait_for_alias, min_replicas, max_replicas, cors_origins and access_log, "
            f"not {', '.join(args)}"
        )
    if not settings().token:
        raise ValueError("serving on a cluster needs a token: set ZPOINT_TOKEN where Ray is started on each node")
    return build_application(find_versions(aliases), settings().token, (min_replicas, max_replicas), options)


def _as_list(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names


def _replica_runtime_env() -> dict[str, Any]:
    """Return the job's runtime environment, which Serve drops if a deployment names its own, and MALLOC_ENV."""
    import ray

    job_env = ray.get_runtime_context().runtime_env.to_dict()
    return {**job_env, "env_vars": {**job_env.get("env_vars", {}), **MALLOC_ENV}}


def _candidates(deployed: ModelVersion) -> Iterator[ModelVersion]:
    """Yield the versions that a new replica tries in turn: the alias' version, the last served, the deployed one.

    If MLflow does not answer, the alias is gone or the actor is away, that version is left out: the rest can serve. The
    first replica tries the deployed version first, which the alias named a moment ago: MLflow's import takes 2 s.
    """
    served, is_first = None, False
    try:
        served = last_served.load(deployed.tracking_uri, deployed.alias)
        is_first = served is None
    except Exception as error:
        log.warning("cannot read the last served version: %s", error)
    if is_first:
        yield deployed
    aliased = None
    try:
        aliased = find_model_version(deployed.alias)
    except Exception as error:
        log.warning("cannot resolve alias '%s': %s", deployed.alias, hide_credentials(str(error)))
    for version in dict.fromkeys([aliased, served, deployed]):
        if version and not (is_first and version == deployed):
            yield version
