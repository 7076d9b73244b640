"""Start and stop the endpoint on Ray Serve, with HAProxy in front.

HAProxy and Serve's fast path are switched on in the environment of the Serve controller, which proxies and replicas
inherit, so it does not matter how Ray was started. The caller connects to Ray first (cluster.ray_connection).
"""

import errno
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.network import bypass_proxies, is_loopback
from cluster.ray_compat import haproxy_binary, shut_down_serve
from cluster.ray_connection import head_node
from cluster.settings import settings
from serving.runtime import haproxy, last_served
from serving.runtime.registry import ModelVersion, find_model_versions
from serving.runtime.replica import ReplicaOptions, build_application

log = logging.getLogger(__name__)
APP_NAME = "zpoint"
START_TIMEOUT_S = 120.0  # to download, load and warm up the model and to answer
STOP_TIMEOUT_S = 20.0
POLL_S = 5.0
SERVE_FILE = Path(__file__).parents[1] / "serve.yaml"


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint: its URL, and the version of each alias at the start."""

    url: str
    versions: tuple[ModelVersion, ...]


def start_endpoint(
    aliases: Sequence[str] = ("champion",), host: str = "127.0.0.1", port: int = 8000, *,
    replicas: tuple[int, int] = (1, 1), options: ReplicaOptions | None = None,
) -> Endpoint:  # fmt: skip
    """Serve the models that `aliases` name at http://host:port, through HAProxy, on the connected Ray.

    `replicas`: (min, max) processes, by the number of requests in progress. Returns once a replica answers through
    HAProxy. Raises ValueError for an unknown alias, a host beyond loopback without ZPOINT_TOKEN, a port in use, a Ray
    that serves already, a process that is not on its head node, or replicas that HAProxy would not reach; RuntimeError
    if the model does not load.
    """
    check_address(host, port)
    token, versions = settings().token, find_model_versions(aliases)
    on_head = _pin_to_head(host, replicas[0])
    url_host = "127.0.0.1" if host == "0.0.0.0" else host
    bypass_proxies(url_host)
    endpoint = Endpoint(f"http://{url_host}:{port}", tuple(versions))

    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if serve.status().proxies:
        raise ValueError("this Ray serves already: stop that endpoint first")
    application = build_application(versions, token, replicas, options or ReplicaOptions(), on_head=on_head)
    try:
        # serve.start waits seconds for the proxies; replicas can start meanwhile, as soon as the controller is there.
        with ThreadPoolExecutor(1, "serve-start") as pool:
            started = pool.submit(
                serve.start,
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port},
                logging_config={"log_level": "WARNING", "enable_access_log": False},
                controller_options={"runtime_env": {"env_vars": _controller_env()}},
            )
            while not serve.status().proxies:
                if started.done():
                    started.result()  # raises the reason if Serve did not start
                time.sleep(0.05)
            _run_application(versions, application)
            started.result()
        _wait_until_ready(endpoint.url)
    except BaseException:
        stop_endpoint()
        raise
    return endpoint


def check_address(host: str, port: int) -> None:
    """Raise ValueError for a host beyond loopback without ZPOINT_TOKEN, or if nothing can listen at the port."""
    if not is_loopback(host) and not settings().token:
        raise ValueError(f"serving at {host} needs a token: set ZPOINT_TOKEN, or serve at 127.0.0.1")
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "it is in use; stop what listens there, or give another --port" if in_use else error
        raise ValueError(f"cannot listen at {host} port {port}: {reason}") from None


def exporter_urls() -> list[str]:
    """Return the URL of Ray's metrics exporter on each node, which has the metrics of all replicas there.

    A Ray that zpoint starts has none, unless RAY_enable_metrics_collection=1 is set.
    """
    import ray

    addresses = [(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in ray.nodes() if node["Alive"]]
    return [f"http://{host}:{port}/metrics" for host, port in addresses if port > 0]


def run_until_interrupted(poll: Callable[[], None]) -> None:
    """Block until Ctrl-C, calling `poll` every few seconds; then stop the endpoint."""
    try:
        while True:
            time.sleep(POLL_S)
            poll()
    except KeyboardInterrupt:
        log.info("stopping the endpoint")
    finally:
        stop_endpoint()


def stop_endpoint() -> None:
    """Stop Serve on the connected Ray, HAProxy included; do nothing if none is connected."""
    import ray

    if not ray.is_initialized():
        return
    shut_down_serve(STOP_TIMEOUT_S)
    last_served.forget_all()
    shutil.rmtree(_node_folder(_haproxy_folder()), ignore_errors=True)


def _run_application(versions: Sequence[ModelVersion], application: Any) -> None:
    from ray import serve

    try:
        serve.run(application, name=APP_NAME, route_prefix="/")
    except RuntimeError as error:
        # Serve gives the cause only in the deployment's status, as the last line of a traceback.
        messages = [deployment.message for deployment in serve.status().applications[APP_NAME].deployments.values()]
        cause = "".join(messages).strip().rpartition("\n")[2] or str(error)
        models = " and ".join(f"{version.name} version {version.version}" for version in versions)
        raise RuntimeError(f"{models} cannot be served: {cause}") from error


def _pin_to_head(host: str, num_replicas: int) -> bool:
    """Return True if the replicas have to run on the head node, where HAProxy is: they listen at `host` too.

    Raises ValueError if this process is on another node, or if the head has too few CPUs for `num_replicas`.
    """
    import ray

    head = head_node()
    if head["NodeID"] != ray.get_runtime_context().get_node_id():
        raise ValueError(
            "this is not the head node of the cluster, where HAProxy listens: run `zpoint serve` there, or "
            "`zpoint deploy` from anywhere"
        )
    if host == "0.0.0.0":
        return False
    if (cpus := int(head["Resources"].get("CPU", 0))) < num_replicas:
        raise ValueError(
            f"{num_replicas} replica(s) that listen at {host} have to run on the head node, where HAProxy reaches "
            f"them, and it has {cpus} CPUs: set ZPOINT_TOKEN and --host 0.0.0.0 to use all nodes"
        )
    return True


def read_serve_config() -> dict[str, Any]:
    """Return serving/serve.yaml, a configuration of Ray Serve's REST API."""
    return yaml.safe_load(SERVE_FILE.read_text())


def _controller_env() -> dict[str, str]:
    """Return the variables that switch on HAProxy, those of serve.yaml, and keep its files in a private folder."""
    env = read_serve_config()["controller_options"]["runtime_env"]["env_vars"]
    # HAProxy's default of 4 threads would compete with the replicas for the cores of a small machine.
    env["RAY_SERVE_HAPROXY_NBTHREAD"] = str(min(4, max(1, (os.cpu_count() or 1) // 2)))
    folder = _haproxy_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ValueError(f"{folder} belongs to another user: remove it")
    files = {
        "CONFIG_FILE_LOC": folder / "haproxy.cfg",
        "SOCKET_PATH": folder / "admin.sock",
        "METRICS_SOCKET_PATH": folder / "metrics.sock",
        "SERVER_STATE_BASE": folder,
        "SERVER_STATE_FILE": folder / "server-state",
        # Beside the files of this Ray alone: another endpoint's wrapper runs the code of another checkout.
        "BINARY_PATH": haproxy.write_wrapper(_node_folder(folder), haproxy_binary()),
    }
    ports = (
        "RAY_SERVE_HAPROXY_STATS_PORT",
        "RAY_SERVE_HAPROXY_METRICS_PORT",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    )
    return (
        env
        | {f"RAY_SERVE_HAPROXY_{name}": str(path) for name, path in files.items()}
        # Free ports, so that two endpoints on one machine do not collide; a user may set fixed ones.
        | {name: os.environ.get(name) or str(free_port()) for name in ports}
    )


def _haproxy_folder() -> Path:
    # A short path: HAProxy's socket below it may have 107 characters, and Ray appends 70.
    return Path(f"/tmp/zpoint-{os.getuid()}")


def _node_folder(folder: Path) -> Path:
    """Return the folder below `folder` in which Ray keeps the files of this node's HAProxy."""
    import ray

    return folder / ray.get_runtime_context().get_node_id()


def free_port() -> int:
    """Return a port of 127.0.0.1 that is not in use now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready(url: str) -> None:
    """Wait until a replica answers through HAProxy. Raises RuntimeError if none does within START_TIMEOUT_S."""
    import httpx2

    deadline, fallback = time.monotonic() + START_TIMEOUT_S, False
    while time.monotonic() < deadline:
        try:
            response = httpx2.get(f"{url}/healthz", timeout=5, trust_env=False)  # not through a proxy
            fallback = haproxy.FALLBACK_HEADER in response.headers
            if response.is_success and not fallback:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.1)
    if fallback:
        raise RuntimeError(
            f"HAProxy at {url} reaches no replica within {START_TIMEOUT_S:.0f} s: open ports 30000 to 31000 between "
            "the nodes of the cluster"
        )
    raise RuntimeError(f"the endpoint at {url} did not answer within {START_TIMEOUT_S:.0f} s")
