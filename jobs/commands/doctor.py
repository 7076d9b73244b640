"""Check this machine's installation, settings, cluster, storage and MLflow, and say how to fix what is broken."""

import os
import platform
import re
import resource
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from textwrap import fill
from urllib.error import HTTPError
from urllib.request import urlopen

from aecore.data.io import read_bytes, write_atomic
from aecore.errors import FREE_SPACE, one_line
from cluster.network import configure_libraries, describe_proxy_error, proxies
from cluster.settings import hide_credentials, settings
from cluster.tracking import describe_full_database

MIN_PROCESSES = 1024  # of this user; Ray's have some hundred threads
MIN_SHARED_BYTES = 200e6
MIN_FREE_BYTES = 10e9  # an installation takes 6e9, CelebA in 96x96 1e9
FULL_BYTES = 100e6  # free space with which no training ends
REINSTALL_TORCH = "in zpoint's folder: `pip install --force-reinstall -c constraints.txt torch torchvision`"


@dataclass(frozen=True)
class Check:
    """The result of one check. `ok` is None for a warning. Field names are the keys of `zpoint doctor --json`."""

    name: str
    ok: bool | None
    finding: str
    fix: str = ""


def doctor() -> list[Check]:
    """Run all checks: about 10 seconds, no internet. Raises nothing."""
    configure_libraries()
    checks: dict[str, tuple[Callable[[], Check], str]] = {
        "zpoint": (_check_zpoint, "install it: `make install`"),
        "settings": (_check_settings, "correct the variable"),
        "python": (_check_python, "make a new environment with Python 3.11 or 3.12"),
        "torch": (_check_torch, REINSTALL_TORCH),
        "gpu": (_check_gpu, "repair the driver until `nvidia-smi` lists the GPU"),
        "disk": (_check_disk, "set ZPOINT_HOME to a writable folder"),
        "cache": (_check_cache, "set ZPOINT_CACHE to a writable folder"),
        "limits": (_check_limits, "raise it in this shell; a hard limit is the administrator's"),
        "ray": (_check_ray, ""),
        "storage": (_check_storage, ""),
        "mlflow": (_check_mlflow, ""),
        "network": (_check_network, ""),
    }
    results = []
    for name, (check, fix) in checks.items():
        try:
            results.append(check())
        except Exception as error:
            finding = describe_full_database(error) or hide_credentials(one_line(error))
            finding, is_full, _ = finding.partition(f"; {FREE_SPACE}")
            results.append(Check(name, False, finding, FREE_SPACE if is_full else fix or _fix(name)))
            if name == "settings":  # the other checks read them
                return [*results, _check_network()]
    return results


def render(checks: list[Check]) -> str:
    """Return one line for each check, followed by its fix if it needs one."""
    labels = {True: "ok", False: "BROKEN", None: "note"}
    lines = []
    for check in checks:
        lines.append(_wrap(f"{labels[check.ok]:<7}{check.name:<9} {check.finding}"))
        if check.fix:
            lines.append(_wrap(f"{'':<17}fix: {check.fix}"))
    broken = sum(check.ok is False for check in checks)
    return "\n".join([*lines, f"{broken} broken" if broken else "all in order"])


def _wrap(line: str) -> str:
    return fill(line, 80, subsequent_indent=" " * 17, break_long_words=False, break_on_hyphens=False)


def _fix(name: str) -> str:
    """Return the fix of a failed check, which depends on the variables that are set."""
    current = settings()
    if name == "ray":
        if current.ray_address:
            return "unset RAY_ADDRESS to use this machine alone, or start the cluster"
        return "correct what `limits` names, else read Ray's logs"
    if name == "storage":
        if current.store.startswith("s3://"):
            return "check ZPOINT_STORE and the AWS_* variables"
        return f"set {'ZPOINT_STORE' if 'ZPOINT_STORE' in os.environ else 'ZPOINT_HOME'} to a writable folder"
    if "MLFLOW_TRACKING_URI" in os.environ:
        return "check MLFLOW_TRACKING_URI and its credentials, or unset it for a file under ZPOINT_HOME"
    return "set ZPOINT_HOME to a writable folder on a local disk, or MLFLOW_TRACKING_URI to a server"


def _check_zpoint() -> Check:
    return Check("zpoint", True, f"{version('zpoint')} at {Path(__file__).resolve().parents[2]}")


def _check_settings() -> Check:
    current = settings()
    return Check("settings", True, f"home {current.home}, store {current.store}")


def _check_python() -> Check:
    finding = f"Python {platform.python_version()} at {sys.executable}"
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Check("python", True, finding)
    return Check("python", None, f"{finding}; tested are 3.11 and 3.12", "make an environment with one of them")


def _check_torch() -> Check:
    import torch
    import torchvision

    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # loads the compiled extension
    return Check("torch", True, f"torch {torch.__version__} with torchvision {torchvision.__version__}")


def _check_gpu() -> Check:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        names = ", ".join(sorted({torch.cuda.get_device_name(i) for i in range(count)}))
        return Check("gpu", True, f"{count}: {names}")
    if shutil.which("nvidia-smi"):
        return Check("gpu", None, "torch finds none, though nvidia-smi is installed", "match driver and torch's CUDA")
    return Check("gpu", True, "none: everything runs on the CPU, only slower")


def _check_disk() -> Check:
    return _check_folder("disk", settings().home, "ZPOINT_HOME")


def _check_cache() -> Check:
    return _check_folder("cache", settings().cache, "ZPOINT_CACHE")


def _check_folder(name: str, folder: Path, variable: str) -> Check:
    """Check that `folder`, which `variable` names, can be written and has space. Raises OSError if it cannot."""
    _check_writable(folder)
    free_bytes = shutil.disk_usage(folder).free
    free = f"{free_bytes / 1e9:.0f} GB" if free_bytes > 1e9 else f"{free_bytes / 1e6:.0f} MB"
    finding = f"{free} free at {folder}"
    if free_bytes < MIN_FREE_BYTES:
        is_full = free_bytes < FULL_BYTES
        return Check(name, False if is_full else None, finding, f"free some space, or set {variable} to a larger disk")
    return Check(name, True, finding)


def _check_limits() -> Check:
    """Check what a local Ray needs of this machine: open files, processes, shared memory and a folder for sockets."""
    from cluster.ray_connection import choose_ray_folder, raise_open_files_limit, uses_local_ray

    if not uses_local_ray():
        return Check("limits", True, "not checked: they are the cluster's")
    finding = f"{raise_open_files_limit()} open files, Ray's folder {choose_ray_folder()}"
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if processes != resource.RLIM_INFINITY and processes < MIN_PROCESSES:
        return Check(
            "limits", None, f"{processes} processes (`ulimit -u`) are few for Ray", "raise it: `ulimit -u 4096`"
        )
    if Path("/dev/shm").is_dir() and (free_bytes := shutil.disk_usage("/dev/shm").free) < MIN_SHARED_BYTES:
        fix = "start the container with --shm-size=2g; Ray uses slower files until then"
        return Check("limits", None, f"{free_bytes / 1e6:.0f} MB free in /dev/shm", fix)
    return Check("limits", True, finding)


def _check_ray() -> Check:
    from cluster.dashboard import dashboard_url
    from cluster.ray_connection import connect, disconnect, is_connected

    if "://" in (address := settings().ray_address):
        return Check("ray", True, f"a dashboard answers at {dashboard_url(address)}: see `zpoint doctor --cluster`")
    start, was_connected = time.monotonic(), is_connected()
    connect()
    import ray

    try:
        python_version = ray.get(ray.remote(num_cpus=0)(platform.python_version).remote(), timeout=60)
        nodes, cpus = len(ray.nodes()), int(ray.cluster_resources().get("CPU", 0))
    finally:
        if not was_connected:
            disconnect()
    cluster = f"at {settings().ray_address} joined" if settings().ray_address else "started and stopped here"
    elapsed_s = time.monotonic() - start
    finding = f"Ray {ray.__version__} {cluster}: {nodes} node(s), {cpus} CPUs, a task in {elapsed_s:.1f} s"
    if python_version != platform.python_version():
        return Check("ray", None, f"{finding}, on Python {python_version}", f"use Python {python_version} here too")
    return Check("ray", True, finding)


def _check_storage() -> Check:
    from cluster.storage import check_uri, open_uri

    store = settings().store
    check_uri(store)
    fs, path = open_uri(f"{store}/doctor-{uuid.uuid4().hex[:8]}")
    try:
        write_atomic(fs, path, b"zpoint")
        if read_bytes(fs, path) != b"zpoint":
            raise OSError(f"{store} returned other bytes than were written")
    finally:
        with suppress(FileNotFoundError):
            fs.delete_file(path)
    return Check("storage", True, f"wrote, read and deleted an object in {store}")


def _check_mlflow() -> Check:
    from cluster.tracking import check_tracking_uri

    uri = settings().tracking_uri
    check_tracking_uri()
    if uri.startswith("http"):
        check_server(uri)
    import mlflow

    from cluster.tracking import client, experiment_id, find_experiment

    experiment = find_experiment()
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        finding = f"the experiment '{experiment.name}' is deleted in MLflow at {hide_credentials(uri)}"
        return Check("mlflow", None, finding, "nothing: the next training restores it, with the runs in it")
    client().set_experiment_tag(experiment_id(), "doctor", time.strftime("%Y-%m-%d %H:%M:%S"))
    return Check("mlflow", True, f"MLflow {mlflow.__version__} writes to {hide_credentials(uri)}")


def _check_network() -> Check:
    values = hide_credentials(", ".join(f"{name}={value}" for name, value in proxies().items()))
    if not values:
        return Check("network", True, "not needed: zpoint sends no telemetry")
    if error := describe_proxy_error():
        return Check("network", None, f"unusable proxy: {error}", "correct or unset the variable")
    return Check("network", True, f"{values}: not for loopback, nor for hosts in NO_PROXY")


def check_server(url: str) -> None:
    """Raise OSError unless a server answers at `url`; MLflow itself would retry."""
    try:
        urlopen(re.sub("//.*@", "//", url), timeout=5).close()  # urllib takes no credentials in a URL
    except HTTPError:
        pass  # an error status is an answer too
    except OSError as error:
        raise OSError(f"no server answers at {url}: {getattr(error, 'reason', error)}") from error


def _check_writable(folder: Path) -> None:
    """Create `folder` and a file in it. Raises OSError if either fails."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".doctor-{uuid.uuid4().hex[:8]}"
    probe.write_bytes(b"")
    probe.unlink()
