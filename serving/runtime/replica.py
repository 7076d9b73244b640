"""The deployment: replicas that hold the model, and how many of them. Also what a Serve config file names.

serve run serving/serve.yaml        # on a cluster; see there
"""

import json
import os
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from cluster.settings import settings
from serving.runtime.registry import ModelVersion, find_model_version

GPU_SHARE = 0.1  # a decoder needs little of a GPU; trainings on the same cluster need the rest
ONGOING = 64  # requests that a replica answers at once before another one is started
KNOWN = b"zpoint-served"


class Replica:
    """One process that holds the model; Ray Serve mounts the app that `__serve_build_asgi_app__` gives."""

    def __init__(self, champion: dict[str, str], token: str, compiled: bool = True):
        from ray import serve

        from serving.runtime.metrics import EndpointMetrics
        from serving.runtime.model_loading import load_version
        from serving.runtime.model_reload import first_that_loads, follow

        _close_side_door()
        # After each kernel the thread in the model wants the interpreter back, which the one that talks HTTP would
        # otherwise keep for 5 ms.
        sys.setswitchinterval(0.0005)
        given, self._token = ModelVersion(**champion), token
        os.environ["MLFLOW_TRACKING_URI"] = given.tracking_uri
        self._metrics = metrics = EndpointMetrics(serve.get_replica_context().replica_id.unique_id)

        def bring(found: ModelVersion) -> Any:
            return load_version(found, compiled=compiled, metrics=metrics)

        candidates = _candidates(given)
        self._slot = first_that_loads(candidates, bring)
        facts = self._slot.current.info
        if self._slot.refused is None:  # so the first one loaded
            _remember(candidates[0])
        metrics.set_served_version(facts.name, facts.version, swap=False)
        threading.Thread(
            target=follow, args=(self._slot, given.alias, bring, _remember, metrics), name="alias", daemon=True
        ).start()

    def __serve_build_asgi_app__(self) -> Any:
        from serving.http.api import create_app

        return create_app(self._slot, token=self._token, metrics=self._metrics)


def build_application(
    champion: ModelVersion, token: str, replicas: tuple[int, int] = (1, 1), *, compiled: bool = True
) -> Any:
    """The Serve application; between `replicas` processes, by the number of requests that each has to answer."""
    from ray import serve

    from cluster.ray_connection import has_gpu

    least, most = replicas
    scale: dict[str, Any] = {"num_replicas": least}
    if most > least:
        bounds = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": ONGOING}
        scale = {"autoscaling_config": bounds}
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="decoder",
        # The replica refuses by itself what would wait too long; these only bound what it holds in memory.
        max_ongoing_requests=2048,
        max_queued_requests=2048,
        backpressure_config={"status_code": 503, "retry_after_s": 1},
        # No line for each request: /metrics counts them, and a line costs a tenth of what else Python does for one.
        logging_config={"enable_access_log": False},
        ray_actor_options={
            "num_cpus": 1,
            "num_gpus": GPU_SHARE if has_gpu() else 0,
            "runtime_env": _runtime_env(),
        },
        **scale,
    )
    return deployment.bind(asdict(champion), token, compiled)


def app(args: dict[str, Any]) -> Any:
    """The builder that a Serve config file names; `args`: alias, min_replicas, max_replicas. See serving/serve.yaml.

    Raises ValueError for another argument, an unknown alias, or without ZPOINT_TOKEN: a cluster is not loopback.
    """
    args = dict(args)
    alias, least = args.pop("alias", "champion"), args.pop("min_replicas", 1)
    most = args.pop("max_replicas", least)
    if args:
        raise ValueError(f"args take alias, min_replicas and max_replicas, not {', '.join(args)}")
    if not settings().token:
        raise ValueError("serving on a cluster wants a token: set ZPOINT_TOKEN in the runtime environment")
    return build_application(find_model_version(alias), settings().token, (least, most))


def _runtime_env() -> dict[str, Any]:
    """This job's, which Serve takes only where none is given, and two heaps.

    Of the eight that malloc makes for each core every one would keep rests of the versions served before.
    """
    import ray

    job = ray.get_runtime_context().runtime_env.to_dict()
    return {**job, "env_vars": {**job.get("env_vars", {}), "MALLOC_ARENA_MAX": "2"}}


def _close_side_door() -> None:
    """Keep Serve from opening a port on every interface at which a replica unpickles what anybody sends.

    It is for calls between deployments; the endpoint has one, and what calls it comes over HTTP.
    """
    import ray.serve._private.replica as theirs

    assert hasattr(theirs, "add_port_to_grpc_server")
    theirs.add_port_to_grpc_server = lambda server, address: 0  # pyright: ignore[reportPrivateImportUsage]


def _candidates(given: ModelVersion) -> list[ModelVersion]:
    """What a starting replica tries in turn: what the alias names now, what was served last, what was served first."""
    found = []
    with suppress(Exception):  # where MLflow does not answer, or the alias is gone: serve on
        found.append(find_model_version(given.alias))
    if known := _recall(given):
        found.append(known)
    return list(dict.fromkeys([*found, given]))


def _remember(served: ModelVersion) -> None:
    """Note in the cluster what is served, for replicas that start when the alias names what does not load."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(_key(served), json.dumps(asdict(served)).encode(), overwrite=True, namespace=KNOWN)


def _recall(given: ModelVersion) -> ModelVersion | None:
    from ray.experimental.internal_kv import _internal_kv_get

    told = _internal_kv_get(_key(given), namespace=KNOWN)
    return ModelVersion(**json.loads(told)) if told else None


def _key(champion: ModelVersion) -> bytes:
    return f"{champion.tracking_uri} {champion.alias}".encode()
