"""Starting and stopping the endpoint on Ray Serve, with HAProxy in front.

HAProxy and Serve's fast route are switched on through the controller's own environment, which proxies and
replicas inherit: it does not matter how the Ray that serves was started. The caller joins it (cluster.ray_connection).
"""

import logging
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.ray_connection import is_loopback
from cluster.settings import settings
from serving.runtime import haproxy
from serving.runtime.registry import ModelVersion, find_model_version
from serving.runtime.replica import build_application

log = logging.getLogger(__name__)
APP = "zpoint"
START_SECONDS = 120.0  # to download, load and warm the model and to answer
STOP_SECONDS = 20.0
LOOK_SECONDS = 5.0
# What serving/serve.yaml sets as well.
SERVE_ENV = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # else the log shows a line once there are a thousand
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",  # see replica.py: it has no such port
    # What a replica that dies has not begun to answer goes to another one: every request only reads.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    # Long enough for HAProxy to forget a replica; the default of 30 s would also hold up every stop.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    # Else HAProxy writes a line for each request, and a Python process reads it: replicas count by themselves.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # A client that takes nothing of its answer for so long is let go: the answer waits in a replica's memory.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "120",
    # A proxy that is not ready three times as long is killed, which ends the start. The default of 5 s is too
    # short where the CPUs are busy; serve.start itself waits 60 s.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
}


@dataclass(frozen=True)
class Endpoint:
    """What `start_endpoint` gives: where the endpoint answers and what it serves."""

    url: str
    model: str
    version: str


def start_endpoint(
    alias: str = "champion", host: str = "127.0.0.1", port: int = 8000, *, replicas: tuple[int, int] = (1, 1),
    compiled: bool = True,
) -> Endpoint:  # fmt: skip
    """Serve the model that `alias` names at http://host:port, through HAProxy, on the Ray that is connected.

    Between `replicas` processes, by the number of requests that each has to answer; with `compiled` decoders, which
    take some seconds longer to start. Returns once the endpoint answers. Raises ValueError for an unknown alias, a
    host beyond loopback without ZPOINT_TOKEN, a taken port or a Ray that serves already; RuntimeError when the model
    does not load.
    """
    token = settings().token
    if not is_loopback(host) and not token:
        raise ValueError(f"serving at {host} wants a token: set ZPOINT_TOKEN, or serve at 127.0.0.1")
    champion = find_model_version(alias)
    _check_port(host, port)
    served = Endpoint(f"http://{_reachable(host)}:{port}", champion.name, champion.version)

    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if serve.status().proxies:
        raise ValueError("this Ray serves already: stop that endpoint first")
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
            controller_options={"runtime_env": {"env_vars": _controller_environment()}},
        )
        _run(champion, build_application(champion, token, replicas, compiled=compiled))
        _wait_until_ready(served.url)
    except BaseException:
        stop_endpoint()
        raise
    return served


def run_until_interrupted(look: Callable[[], None]) -> None:
    """Block until Ctrl-C, calling `look` each few seconds, then stop the endpoint."""
    try:
        while True:
            time.sleep(LOOK_SECONDS)
            look()
    except KeyboardInterrupt:
        log.info("stopping the endpoint")
    finally:
        stop_endpoint()


def stop_endpoint() -> None:
    """Stop what is served on the connected Ray, HAProxy included; nothing where nothing is."""
    import ray
    from ray import serve
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    if not ray.is_initialized():
        return
    try:
        # serve.shutdown() waits inside the controller that it ends, which Ray reports as a failed task.
        ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE).graceful_shutdown.remote(wait=False)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.1)
            ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
    except ValueError:  # there is no controller any more
        pass
    serve.shutdown()
    shutil.rmtree(_folder() / ray.get_runtime_context().get_node_id(), ignore_errors=True)


def _run(champion: ModelVersion, app: Any) -> None:
    from ray import serve

    try:
        serve.run(app, name=APP, route_prefix="/")
    except RuntimeError as error:
        # Serve tells why only in the deployment's status, below a traceback.
        told = [d.message for d in serve.status().applications[APP].deployments.values()]
        reason = "".join(told).strip().rpartition("\n")[2] or str(error)
        raise RuntimeError(f"{champion.name} version {champion.version} cannot be served: {reason}") from error


def _controller_environment() -> dict[str, str]:
    """What turns on HAProxy; on the head node also its files in a private folder, see haproxy.py."""
    import ray
    from ray.serve._private.haproxy import get_haproxy_binary

    wanted = SERVE_ENV | {"RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, max(1, (os.cpu_count() or 1) // 2)))}
    head = next(node for node in ray.nodes() if "node:__internal_head__" in node["Resources"])
    if head["NodeID"] != ray.get_runtime_context().get_node_id():
        return wanted
    folder = _folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ValueError(f"{folder} belongs to somebody else: remove it")
    files = {
        "CONFIG_FILE_LOC": folder / "haproxy.cfg",
        "SOCKET_PATH": folder / "admin.sock",
        "METRICS_SOCKET_PATH": folder / "metrics.sock",
        "SERVER_STATE_BASE": folder,
        "SERVER_STATE_FILE": folder / "server-state",
        "BINARY_PATH": haproxy.wrap(folder, get_haproxy_binary()),
    }
    ports = (
        "RAY_SERVE_HAPROXY_STATS_PORT",
        "RAY_SERVE_HAPROXY_METRICS_PORT",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    )
    return (
        wanted
        | {f"RAY_SERVE_HAPROXY_{name}": str(path) for name, path in files.items()}
        # Two endpoints on one machine must not meet; whoever wants fixed ports names them.
        | {name: os.environ.get(name) or str(free_port()) for name in ports}
    )


def _folder() -> Path:
    # Short: HAProxy's socket below it may have 107 characters, 70 of which Ray takes.
    return Path(f"/tmp/zpoint-{os.getuid()}")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _reachable(host: str) -> str:
    return "127.0.0.1" if host == "0.0.0.0" else host


def _check_port(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen at {host} port {port}: {error}") from None


def _wait_until_ready(url: str) -> None:
    import httpx2

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx2.get(f"{url}/healthz", timeout=5).is_success:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the endpoint at {url} did not answer within {START_SECONDS:.0f} s")
