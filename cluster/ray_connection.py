"""Joining the Ray at RAY_ADDRESS, or starting one on this machine.

A Ray started here lives as long as this process and listens on the loopback interface only. Its dashboard, at
http://127.0.0.1:8265 or the next free port, stays on: without it, stopped trials leak their placement groups.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.settings import KEYS, exported_env, quiet_environment, settings

log = logging.getLogger(__name__)
ANSWER_SECONDS = 8  # how long a cluster may take to say that it is there
TOKEN_HINT = "the Ray at {} refuses the token: set RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN"
_ENVIRONMENT = threading.Lock()
PACKAGES = ("aecore", "cluster", "jobs", "serving")


def connect(*, niceness: int = 15) -> None:
    """Join the Ray at RAY_ADDRESS, else start one here; nothing where this process has a Ray already.

    Workers of a Ray that is started here run at `niceness`, 0 to 19: by default behind what else the machine does.
    Raises ValueError for an address that does not answer or that Ray's libraries cannot work through.
    """
    quiet_environment()
    here = uses_local_ray()
    if here:
        _local_environment()
    import ray
    from ray._private import ray_constants

    if ray.is_initialized():
        return
    if here:
        ray_constants.ENABLE_RAY_CLUSTER = False  # as _local_environment says; ray may be imported since long
        ray.init(
            address="local",  # never a cluster that somebody else left on this machine
            num_cpus=settings().cpus,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
            _system_config={"worker_niceness": niceness},
        )
    else:
        _join(settings().ray_address)


def uses_local_ray() -> bool:
    """Whether the Ray to work with is one that `connect` starts on this machine, which no node ever joins."""
    return settings().ray_address in ("", "local")


def disconnect() -> None:
    """Leave the cluster; a Ray that `connect` started ends, and its processes have ended on return."""
    import ray

    ray.shutdown(wait_for_processes=True)


def has_gpu() -> bool:
    """Whether any node of the connected cluster has a GPU."""
    import ray

    return ray.cluster_resources().get("GPU", 0) > 0


def runtime_env() -> dict[str, Any]:
    """A Ray runtime environment with this version of our packages and the settings that workers need."""
    root = Path(__file__).resolve().parent.parent
    return {"py_modules": [str(root / name) for name in PACKAGES], "env_vars": exported_env()}


def _with_keys_unseen(made: dict[str, Any]) -> dict[str, Any]:
    """The same runtime environment, with the keys of S3 set by a hook in each worker.

    Ray tells a runtime environment's variables in clear in its dashboard and its logs, of a hook the name alone.
    """
    keys = {name: made["env_vars"].pop(name) for name in KEYS if name in made["env_vars"]}

    def set_keys() -> None:
        os.environ.update(keys)

    return {**made, "worker_process_setup_hook": set_keys} if keys else made


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine's loopback interface."""
    return host in ("localhost", "127.0.0.1", "::1", "[::1]")


def use_token(host: str) -> None:
    """Show Ray's token (~/.ray/auth_token) to a cluster on this machine, which asks for it since Ray 2.60.

    To other hosts it goes only where the user has set RAY_AUTH_MODE=token.
    """
    mine = is_loopback(host) and (Path.home() / ".ray" / "auth_token").exists()
    if mine and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        if "ray" in sys.modules:  # which has read the environment already
            from ray._raylet import Config  # pyright: ignore[reportAttributeAccessIssue]

            Config.initialize("")


def _local_environment() -> None:
    """The environment of a Ray that is started here; read by Ray when it is imported."""
    # The one switch by which Ray takes 127.0.0.1 as the node's address, and so binds nothing else.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning on machines without GPU
    # Every 10 s each process sends Ray's own metrics, for a Prometheus that nobody has set up here: a tenth of a second
    # in which the endpoint answers late. Its /metrics is not theirs.
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    # Every 5 s the dashboard measures its own processes, for the same, and its agent those of all workers: 80 and 20 ms
    # in which the endpoint answers late as well. So the former no more, and the latter once a minute.
    os.environ.setdefault("METRICS_RECORD_INTERVAL_S", "86400")
    os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")
    # A process beside each training that asks whether a node will be taken away: here there is one, which stays.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def _join(address: str) -> None:
    if "://" in address:
        raise ValueError(
            f"RAY_ADDRESS={address} is for `zpoint submit`; to run here unset it, or give host:6379 on a node"
        )
    use_token(address.rpartition(":")[0])
    import ray
    from ray._private import ray_constants
    from ray._private import worker as ray_worker
    from ray.exceptions import AuthenticationError

    if address != "auto":
        check_reachable(address)
        ray_constants.ENABLE_RAY_CLUSTER = not _loopback_only(address)
    # Of a lost node Ray prints the log, on stdout, which is for results alone.
    ray_worker.print_to_stdstream = lambda said, **how: log.debug("Ray says: %s", said["lines"])
    # Inside a job Ray has set the runtime environment already, and refuses a second one.
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    try:
        ray.init(
            address=address,
            runtime_env=None if inside_job else _with_keys_unseen(runtime_env()),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except AuthenticationError as error:
        raise ValueError(TOKEN_HINT.format(address)) from error
    except ConnectionError as error:
        raise ValueError(f"no Ray answers at RAY_ADDRESS={address}: {error}") from error


def _loopback_only(address: str) -> bool:
    """Whether the Ray at `address` listens on 127.0.0.1 only, as those do that `connect` starts.

    Ray puts this machine's outward address in the place of 127.0.0.1, and would not find such a one.
    """
    from ray._raylet import node_ip_address_from_perspective  # pyright: ignore[reportAttributeAccessIssue]

    host, _, port = address.rpartition(":")
    if not is_loopback(host):
        return False
    try:
        check_reachable(f"{node_ip_address_from_perspective()}:{port}")
    except ValueError:
        return True
    return False


def dashboard_url(address: str) -> str:
    """The URL of the dashboard, where jobs are taken, of the Ray whose head is at host:port."""
    use_token(address.rpartition(":")[0])
    check_reachable(address)
    from ray._private import ray_constants as names
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]

    where = GcsClient(address=address).internal_kv_get(names.DASHBOARD_ADDRESS.encode(), names.KV_NAMESPACE_DASHBOARD)
    if where is None:
        raise ValueError(f"the Ray at {address} has no dashboard, and so takes no jobs")
    return f"http://{where.decode()}"


@contextmanager
def ray_api_address(address: str) -> Iterator[None]:
    """Inside, Ray's clients take the Ray at `address`, a URL or host:port.

    Else they take the environment's rather than the one that they are given, and where it names none, one of those
    that they find on this machine. One thread at a time: another one waits.
    """
    name = "RAY_API_SERVER_ADDRESS"
    with _ENVIRONMENT:  # else a thread that came second would leave the first one's address behind
        before = os.environ.get(name)
        os.environ[name] = address
        try:
            yield
        finally:
            os.environ.pop(name, None)
            if before is not None:
                os.environ[name] = before


def check_reachable(address: str) -> None:
    """Raise ValueError unless a Ray head answers at host:port; ray.init itself would try for two minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"RAY_ADDRESS takes host:port, as in 127.0.0.1:6379, not '{address}'")
    import grpc
    from ray._private.gcs_utils import create_gcs_channel
    from ray.core.generated import gcs_service_pb2
    from ray.core.generated import gcs_service_pb2_grpc as services

    channel = create_gcs_channel(address)
    try:
        request = vars(gcs_service_pb2)["GetClusterIdRequest"]()  # made at import: no checker sees it
        services.NodeInfoGcsServiceStub(channel).GetClusterId(request, timeout=ANSWER_SECONDS)
    except grpc.RpcError as error:
        if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise ValueError(TOKEN_HINT.format(address)) from error
        raise ValueError(
            f"no Ray answers at RAY_ADDRESS={address}; start one (`ray start --head`) or unset it"
        ) from error
    finally:
        channel.close()
