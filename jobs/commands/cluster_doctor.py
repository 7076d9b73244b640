"""Check each node of a cluster by a task on it: versions, access to store and MLflow, cache disk, clock, network, GPUs.

From a machine that is no node, `zpoint doctor --cluster` submits itself to the cluster as a job.
"""

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from aecore.errors import one_line
from cluster.network import find_interface
from cluster.settings import apply_env, exported_env, settings
from cluster.storage import CLOCK_FIX, check_uri
from jobs.commands.doctor import FULL_BYTES, MIN_FREE_BYTES, MIN_SHARED_BYTES, Check, check_server

PROBE_TIMEOUT_S = 90
MAX_CLOCK_OFFSET_S = 5.0
MIN_CACHE_MB_PER_S = 50
CACHE_PROBE_BYTES, NETWORK_PROBE_BYTES = 32 << 20, 64 << 20
Report = dict[str, Any]


def doctor_cluster() -> list[Check]:
    """Return the checks of all nodes of the cluster at RAY_ADDRESS. Raises ValueError without one."""
    address = settings().ray_address
    if "://" in address:
        return _submit_doctor()
    if not address or address == "local":
        raise ValueError("doctor --cluster needs a cluster: set RAY_ADDRESS to http://head:8265 or host:6379")
    from cluster.ray_connection import connect

    connect()
    return [*check_reports(*_probe_nodes()), _check_bandwidth()]


def _submit_doctor() -> list[Check]:
    from jobs.commands.submit import CLUSTER_DOCTOR, submit

    result = submit([*CLUSTER_DOCTOR, "--json"], wait=True, show_log=False)
    if result["result"] is None:
        raise RuntimeError(f"the checks on the cluster ended without a result: {result['message']}")
    return [Check(**check) for check in result["result"]["checks"]]


def _probe_nodes() -> tuple[list[Report], list[str]]:
    """Return a report of each living node, and the addresses of nodes that gave none."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe: Any = ray.remote(probe_node)
    addresses: dict[Any, str] = {}
    for node in ray.nodes():
        if node["Alive"]:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ref = probe.options(num_cpus=0, scheduling_strategy=strategy).remote(exported_env(), time.time())
            addresses[ref] = node["NodeManagerAddress"]
    reports, pending, deadline = [], list(addresses), time.monotonic() + PROBE_TIMEOUT_S
    while pending and (done := ray.wait(pending, timeout=max(0, deadline - time.monotonic())))[0]:
        received, [ref] = time.time(), done[0]
        with suppress(Exception):  # the node has died, or has no such package
            report = ray.get(ref)
            report["clock_s"] = clock_offset(
                report.pop("sent"), report.pop("arrived"), report.pop("finished"), received
            )
            reports.append(report)
            del addresses[ref]
        pending = done[1]
    return sorted(reports, key=lambda report: report["host"]), list(addresses.values())


def clock_offset(sent: float, arrived: float, finished: float, received: float) -> float:
    """Return the seconds that a node's clock is ahead of the driver's at least, < 0 if it is behind, 0 if neither.

    `sent` and `received` are times of the driver's clock, `arrived` and `finished` of the node's between them.
    """
    return max(0.0, finished - received) + min(0.0, arrived - sent)


def probe_node(env: dict[str, str], sent: float) -> Report:
    """Return what this node has. `sent`: the driver's clock when it sent the task."""
    arrived = time.time()
    apply_env(env)
    import ray
    import torch

    interface = os.environ.get("GLOO_SOCKET_IFNAME") or find_interface(ray.util.get_node_ip_address())
    return {
        "host": socket.gethostname(),
        "versions": {
            "Python": platform.python_version(), "Ray": ray.__version__, "torch": torch.__version__,
            "CUDA": torch.version.cuda or "none", "zpoint": _version("zpoint"), "pyarrow": _version("pyarrow"),
        },
        "interface": interface,
        "shm_free_bytes": _attempt(lambda: shutil.disk_usage("/dev/shm").free),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "driver": _driver_version(),
        "store": _error_of(_use_store),
        "mlflow": _error_of(_use_mlflow),
        "cache": str(settings().cache),
        "cache_error": _error_of(lambda: settings().cache.mkdir(parents=True, exist_ok=True)),
        "cache_free_bytes": _attempt(lambda: shutil.disk_usage(settings().cache).free),
        "cache_mb_per_s": _attempt(_measure_cache),
        "sent": sent, "arrived": arrived, "finished": time.time(),
    }  # fmt: skip


def check_reports(reports: list[Report], silent: Sequence[str] = ()) -> list[Check]:
    """Return one check a subject of all nodes; its finding names the hosts that differ or fail."""
    text = f"{len(reports)} answered" + (f", not {', '.join(silent)}" if silent else "")
    fix = "read the raylet's log on these nodes, or restart them" if silent else ""
    checks = [Check("nodes", not silent, text, fix)]
    for name in reports[0]["versions"] if reports else ():
        versions = {report["host"]: report["versions"][name] for report in reports}
        same = len(set(versions.values())) == 1
        text = next(iter(versions.values())) if same else _by_value(versions)
        checks.append(
            Check(name.lower(), same, text, "" if same else "install the same version on all nodes: one image")
        )
    checks += [
        _check_errors(reports, "store", "sees ZPOINT_STORE", "give the host network access and the AWS_* variables"),
        _check_errors(reports, "mlflow", "sees MLflow", "give the host network access to MLFLOW_TRACKING_URI"),
        _check_caches(reports), _check_shared_memory(reports), _check_clocks(reports), _check_interfaces(reports),
        Check("gpus", True, _by_value({r["host"]: ", ".join(r["gpus"]) + f" {r['driver']}" for r in reports})),
    ]  # fmt: skip
    return checks


def _check_errors(reports: list[Report], key: str, text: str, fix: str) -> Check:
    failed = [f"{report['host']}: {report[key]}" for report in reports if report[key]]
    return Check(key, not failed, "; ".join(failed) or f"every node {text}", fix if failed else "")


def _check_caches(reports: list[Report]) -> Check:
    failed = [f"{report['host']}: {report['cache_error']}" for report in reports if report["cache_error"]]
    if failed:
        return Check("cache", False, "; ".join(failed), "set ZPOINT_CACHE to a writable folder of each node's own disk")
    text = "; ".join(
        f"{r['host']} {(r['cache_free_bytes'] or 0) / 1e9:.1f} GB free, {r['cache_mb_per_s'] or 0:.0f} MB/s"
        for r in reports
    )
    fix = "free space, or set ZPOINT_CACHE to a larger or faster local disk"
    if any(not r["cache_mb_per_s"] or r["cache_free_bytes"] < FULL_BYTES for r in reports):
        return Check("cache", False, text, fix)
    if any(r["cache_mb_per_s"] < MIN_CACHE_MB_PER_S or r["cache_free_bytes"] < MIN_FREE_BYTES for r in reports):
        return Check("cache", None, text, fix)
    return Check("cache", True, text)


def _check_shared_memory(reports: list[Report]) -> Check:
    """Ray's object store lies in /dev/shm; it uses slower files on a node with too little."""
    small = [r for r in reports if r["shm_free_bytes"] is not None and r["shm_free_bytes"] < MIN_SHARED_BYTES]
    text = ", ".join(f"{r['host']} {r['shm_free_bytes'] / 1e6:.0f} MB free in /dev/shm" for r in small)
    fix = "start the container with --shm-size=2g, or mount a larger tmpfs there" if small else ""
    return Check("shm", None if small else True, text or "every node has enough in /dev/shm", fix)


def _check_clocks(reports: list[Report]) -> Check:
    off = {r["host"]: r["clock_s"] for r in reports if abs(r["clock_s"]) > MAX_CLOCK_OFFSET_S}
    text = ", ".join(f"{host} {offset:+.0f} s" for host, offset in off.items())
    return Check("clocks", not off, text or "every node agrees with the driver's host", CLOCK_FIX if off else "")


def _check_interfaces(reports: list[Report]) -> Check:
    interfaces = {r["host"]: r["interface"] or "an unknown interface" for r in reports}
    all_known = all(r["interface"] for r in reports)
    text = f"on CPUs takes {_by_value(interfaces)}" if len(set(interfaces.values())) > 1 else ""
    text = text or f"on CPUs takes {' '.join(set(interfaces.values()))} of every node"
    return Check("ddp", all_known or None, text, "" if all_known else "set GLOO_SOCKET_IFNAME where Ray is started")


def _check_bandwidth() -> Check:
    """Send some bytes from the second node with resources to the first one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [
        n["NodeID"] for n in ray.nodes() if n["Alive"] and (n["Resources"].get("CPU") or n["Resources"].get("GPU"))
    ]
    if len(nodes) < 2:
        return Check("network", True, "not measured: fewer than two nodes have resources")
    near, far = (NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes[:2])
    seconds: Any
    sink_class: Any = ray.remote(_Sink)
    send: Any = ray.remote(_send)
    try:
        sink = sink_class.options(num_cpus=0, scheduling_strategy=near).remote()
        address = ray.get(sink.listen.remote(), timeout=PROBE_TIMEOUT_S)
        seconds = ray.get(
            send.options(num_cpus=0, scheduling_strategy=far).remote(address, NETWORK_PROBE_BYTES),
            timeout=PROBE_TIMEOUT_S,
        )
    except Exception as error:
        fix = "open all ports between the nodes: DDP takes any of them"
        return Check("network", False, f"no connection between two nodes: {one_line(error)}", fix)
    return Check("network", True, f"{NETWORK_PROBE_BYTES / seconds / 1e6:,.0f} MB/s between two nodes, to {address[0]}")


class _Sink:
    """Receives bytes of one connection on its node. Runs as an actor."""

    def listen(self) -> tuple[str, int]:
        import ray

        address = ray.util.get_node_ip_address()
        server = socket.create_server((address, 0))
        threading.Thread(target=self._receive, args=(server,), daemon=True).start()
        return address, server.getsockname()[1]

    def _receive(self, server: socket.socket) -> None:
        connection, _ = server.accept()
        with server, connection:
            while connection.recv(1 << 20):
                pass
            connection.sendall(b"!")


def _send(address: tuple[str, int], size: int) -> float:
    """Send `size` bytes to `address` and return the seconds until they have arrived."""
    with socket.create_connection(address, timeout=20) as connection:
        started = time.perf_counter()
        connection.sendall(bytes(size))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        return time.perf_counter() - started


def _use_store() -> None:
    check_uri(settings().store)


def _use_mlflow() -> None:
    from cluster.tracking import find_experiment

    if (uri := settings().tracking_uri).startswith("http"):
        check_server(uri)
    find_experiment()


def _measure_cache() -> float:
    """Return the MB per second that a synchronised write to the cache's disk reaches."""
    probe = settings().cache / f".doctor-{os.getpid()}"
    try:
        with open(probe, "wb", buffering=0) as file:
            started = time.perf_counter()
            file.write(bytes(CACHE_PROBE_BYTES))
            os.fsync(file.fileno())
            return CACHE_PROBE_BYTES / 1e6 / (time.perf_counter() - started)
    finally:
        probe.unlink(missing_ok=True)


def _version(package: str) -> str:
    return _attempt(lambda: importlib.metadata.version(package)) or "not installed"


def _driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    output = _attempt(lambda: subprocess.run(command, capture_output=True, text=True, timeout=20).stdout)
    return f"(driver {output.split()[0]})" if output and output.split() else "none"


def _attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception:
        return None


def _error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return one_line(error)
    return ""


def _by_value(values: dict[str, str]) -> str:
    """Return the hosts of each value, as in `2.14.0 on w1, w2; 2.13.0 on w3`."""
    hosts = {value: [host for host, text in values.items() if text == value] for value in values.values()}
    return "; ".join(f"{value.strip()} on {', '.join(names)}" for value, names in hosts.items())
