"""Join the Ray cluster at RAY_ADDRESS, or start a Ray on this machine.

A Ray that is started here lives as long as this process and listens on the loopback interface only. Its dashboard, at
http://127.0.0.1:8265 or the next free port, stays on: without it, stopped trials leak their placement groups.
"""

import logging
import os
import resource
import secrets
import shutil
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster import ray_compat
from cluster.lineage import code_commit
from cluster.network import accepts_connections, configure_libraries, is_loopback
from cluster.settings import exported_env, settings, split_secrets

log = logging.getLogger(__name__)
CONNECT_TIMEOUT_S = 8
SECRETS_FILE = ".secrets.sh"  # in the folder of a submitted job, until its driver or a worker has started
START_TIMEOUT_S = 180.0  # of a local Ray; Ray's own 30 s are too short on a busy machine
TOKEN_REFUSED = "refuses the token: set RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN"
MAX_STARTS = 3  # of a local Ray whose node process exits: it waits 15 s for its agent, a constant of Ray 2.60
OPEN_FILES, OPEN_FILES_PER_CPU = 200, 8  # of a local Ray; with fewer its processes hang
MIN_RAY_FREE_BYTES = 20e6  # free space for the logs and sockets of a local Ray
MAX_RAY_PATH_BYTES = 35  # a socket's path has at most 107; Ray appends a session's name and a socket's, 72
HEAD_RESOURCE = "node:__internal_head__"  # which Ray gives to the head node alone
PACKAGES = ("aecore", "cluster", "jobs", "serving")


def connect(*, niceness: int = 15) -> None:
    """Join the Ray cluster at RAY_ADDRESS, or start a local Ray; do nothing if this process is connected already.

    Workers of a local Ray run at `niceness`, 0 to 19; the default leaves the CPUs to the machine's other processes
    first. Raises ValueError if the address does not answer or is not one that `ray.init` takes.
    """
    configure_libraries()
    if is_connected():
        return
    if uses_local_ray():
        _start_local(niceness)
    else:
        _join(settings().ray_address)


def is_connected() -> bool:
    """Return True if this process is connected to a Ray; Ray is not imported for it."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def uses_local_ray() -> bool:
    """Return True if `connect` starts a Ray on this machine, which no other node ever joins."""
    return settings().ray_address in ("", "local")


def disconnect() -> None:
    """Leave the cluster. A local Ray ends, and its processes have exited on return."""
    import ray

    ray.shutdown(wait_for_processes=True)


def has_gpu() -> bool:
    """Return True if any node of the connected cluster has a GPU."""
    import ray

    return ray.cluster_resources().get("GPU", 0) > 0


def head_node() -> dict[str, Any]:
    """Return the head of the connected cluster, as `ray.nodes` describes a node."""
    import ray

    return next(node for node in ray.nodes() if node["Alive"] and HEAD_RESOURCE in node["Resources"])


def runtime_env() -> dict[str, Any]:
    """Return a Ray runtime environment with the source of our packages and the settings that workers need."""
    root = Path(__file__).resolve().parent.parent
    env_vars = exported_env() | ({"ZPOINT_COMMIT": commit} if (commit := code_commit()) else {})
    return {"py_modules": [str(root / name) for name in PACKAGES], "env_vars": env_vars}


def check_reachable(address: str) -> None:
    """Raise ValueError unless a gRPC server, as a Ray head is, answers at host:port.

    `ray.init` itself retries for two minutes, silently, also at a dashboard's port given by mistake.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"RAY_ADDRESS takes host:port, as in 127.0.0.1:6379, not '{address}'")
    import grpc

    unreachable = ValueError(f"no Ray answers at RAY_ADDRESS={address}; start one (`ray start --head`) or unset it")
    if _uses_tls():  # the health check would need Ray's certificates
        if not accepts_connections(host, int(port), CONNECT_TIMEOUT_S):
            raise unreachable
        return
    # As in Ray's own channels: a proxy of the environment is not for the cluster.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=CONNECT_TIMEOUT_S)
        except grpc.RpcError as error:
            # Any other status, such as UNAUTHENTICATED, is an answer; `ray.init` presents the token.
            silent = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            if isinstance(error, grpc.Call) and error.code() in silent:
                raise unreachable from error


def use_token(host: str) -> None:
    """Present Ray's token (~/.ray/auth_token) to a cluster on this machine; call it before Ray is imported.

    Ray 2.60 starts every local cluster with a token, and presents it by itself only to an address it finds itself.
    Other hosts get the token only if the user sets RAY_AUTH_MODE=token.
    """
    if is_loopback(host) and _token_file().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _start_local(niceness: int) -> None:
    raise_open_files_limit()
    folder = choose_ray_folder()
    _provide_token()
    ray_compat.use_loopback(True)
    ray_compat.ignore_uv_run()
    ray_compat.slow_down_metrics()
    ray_compat.log_ray_messages()
    os.environ["RAY_worker_niceness"] = str(niceness)  # noqa: SIM112  # read by the raylet
    import ray

    for attempt in range(1, MAX_STARTS + 1):
        try:
            with ray_compat.without_usage_stats(), ray_compat.wait_longer_for_start(START_TIMEOUT_S):
                ray.init(
                    address="local",  # never a cluster that another process left on this machine
                    num_cpus=settings().cpus,
                    include_dashboard=True,
                    dashboard_host="127.0.0.1",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            return
        except Exception as error:  # an OSError, for example, would look like one of the caller's own files
            cause = " ".join(str(error).split()) or type(error).__name__
            message = f"Ray did not start here: {cause}; its logs: {folder}/session_latest/logs"
            if attempt == MAX_STARTS or not isinstance(error, ChildProcessError):
                raise RuntimeError(message) from error
            log.warning("%s; starting it again", message)
            ray.shutdown()


def raise_open_files_limit() -> int:
    """Raise the limit of open files to what a local Ray needs, if it is lower; return the limit.

    Raises ValueError if the hard limit forbids it.
    """
    needed = OPEN_FILES + OPEN_FILES_PER_CPU * (settings().cpus or os.cpu_count() or 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        cpus = (hard - OPEN_FILES) // OPEN_FILES_PER_CPU
        fewer = f", or set ZPOINT_CPUS={cpus}" if cpus > 0 else ""
        raise ValueError(f"a local Ray needs {needed} open files, `ulimit -n` allows {hard}: raise it{fewer}")
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return needed


def choose_ray_folder() -> Path:
    """Return the folder of a local Ray's sessions: RAY_TMPDIR or TMPDIR if Ray can use it, else /tmp.

    Sockets and logs lie in it. Paths of sockets are short, so both variables are changed to /tmp if TMPDIR does not
    do. Raises ValueError if /tmp does not do either.
    """
    parent, default = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"), Path("/tmp/ray")
    folder = parent.absolute() / "ray"
    if (reason := _refuse_ray_folder(folder)) and folder != default:
        log.warning("%s is %s: Ray's folder is /tmp/ray", folder, reason)
        folder, reason = default, _refuse_ray_folder(default)
        os.environ["RAY_TMPDIR"] = os.environ["TMPDIR"] = "/tmp"
        tempfile.tempdir = None  # read TMPDIR anew
    if reason:
        raise ValueError(f"a local Ray has no folder for its logs: {folder} is {reason}; correct it or set RAY_TMPDIR")
    return folder


def _refuse_ray_folder(folder: Path) -> str:
    """Return why Ray cannot have `folder`, which it creates if it is missing; "" if it can."""
    if len(os.fsencode(folder)) > MAX_RAY_PATH_BYTES:
        return "too long for the path of a socket"
    existing = folder if os.path.exists(folder) else folder.parent  # Path.exists raises PermissionError
    if not _is_writable(existing):
        return "not writable"
    free_bytes = shutil.disk_usage(existing).free
    return "" if free_bytes > MIN_RAY_FREE_BYTES else f"full ({free_bytes / 1e6:.1f} MB free)"


def _join(address: str) -> None:
    if "://" in address:
        raise ValueError(
            f"RAY_ADDRESS={address} is for `zpoint submit`; to run here unset it, or give host:6379 on a node"
        )
    host, _, port = address.rpartition(":")
    use_token(host)
    if address != "auto":
        check_reachable(address)
        ray_compat.use_loopback(
            is_loopback(host) and not accepts_connections(_outward_ip(), int(port), CONNECT_TIMEOUT_S)
        )
    ray_compat.log_ray_messages()
    ray_compat.ignore_uv_run()
    import ray
    from ray.exceptions import AuthenticationError

    # Inside a job Ray has set the runtime environment already; `zpoint submit` leaves out the secrets.
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    try:
        ray.init(
            address=address,
            runtime_env=_secrets_hook(split_secrets(exported_env())[1]) if inside_job else _hide_secrets(runtime_env()),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except AuthenticationError as error:
        raise ValueError(f"the Ray at {address} {TOKEN_REFUSED}") from error
    except ConnectionError as error:
        if address == "auto" or _uses_tls():
            raise ValueError(f"no Ray answers at RAY_ADDRESS={address}: {error}") from error
        # It has answered `check_reachable`, which needs no token.
        raise ValueError(f"the Ray at {address} answers, but perhaps {TOKEN_REFUSED} ({error})") from error
    _check_addresses(address)


def _uses_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _check_addresses(address: str) -> None:
    """Leave the cluster and raise ValueError if a host has a loopback address, and another host has not.

    Ray takes them all, and calls between them then wait without end.
    """
    import ray

    hosts: dict[bool, set[str]] = {True: set(), False: set()}
    for node in ray.nodes():
        if node["Alive"]:
            hosts[is_loopback(node["NodeManagerAddress"])].add(node["NodeManagerHostname"])
    if hosts[False] and (unreachable := hosts[True] - hosts[False]):
        disconnect()
        raise ValueError(
            f"host {min(unreachable)} of the Ray at {address} has a loopback address, which the other nodes do not "
            "reach: start Ray there with --node-ip-address=ADDRESS"
        )


def _hide_secrets(environment: dict[str, Any]) -> dict[str, Any]:
    """Return the runtime environment with the secrets set by a hook in each worker instead of by `env_vars`.

    Ray shows `env_vars` in clear in its dashboard and logs, of a hook the name alone.
    """
    public, secrets = split_secrets(environment["env_vars"])
    return {**environment, "env_vars": public, **_secrets_hook(secrets)}


def _secrets_hook(secrets: dict[str, str]) -> dict[str, Any]:
    """Return the field of a runtime environment that sets `secrets` in each worker."""

    def set_secrets() -> None:
        os.environ.update(secrets)
        Path(SECRETS_FILE).unlink(missing_ok=True)

    return {"worker_process_setup_hook": set_secrets} if secrets else {}


def _token_file() -> Path:
    return Path.home() / ".ray" / "auth_token"


def _provide_token() -> None:
    """Create the token of a local Ray in the home folder, or set it if that is not writable.

    Its owner alone can read the file. Ray itself would create it for every user of the machine to read.
    """
    set_by_user = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if set_by_user or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    file, token = _token_file(), secrets.token_hex(32)
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            _create_file(file, token)
    except OSError:
        os.environ["RAY_AUTH_TOKEN"] = token
        return
    with suppress(OSError):  # another user's file, or a read-only one
        file.chmod(file.stat().st_mode & 0o700)


def _create_file(file: Path, text: str) -> None:
    """Write a file for its owner alone, all of `text` at once, unless another process has created it."""
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as draft:
        draft.write(text)
    try:
        os.link(draft.name, file)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(draft.name, file)
    finally:
        Path(draft.name).unlink(missing_ok=True)


def _is_writable(folder: Path) -> bool:
    """Return True if a file can be created in `folder`, which is created if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _outward_ip() -> str:
    """Return this machine's address on the interface of its default route, or 127.0.0.1; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation (RFC 5737): only the route counts
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
