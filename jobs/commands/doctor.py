"""What is and is not in order on this machine, in plain words, and how to mend it."""

import platform
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from cluster.settings import disable_telemetry, settings

LITTLE_DISK = 10e9  # bytes; an installation takes 6e9, CelebA in 96x96 1e9


@dataclass(frozen=True)
class Check:
    """One thing looked at. `ok` is None where work can go on, but less well."""

    name: str
    ok: bool | None
    what: str
    mend: str = ""


def doctor() -> list[Check]:
    """Look at everything that the jobs need. Never raises, takes some 10 seconds, needs no internet."""
    disable_telemetry()
    looks: dict[str, tuple[Callable[[], Check], str]] = {
        "settings": (_settings, "correct the variable"),
        "python": (_python, "make a new environment with Python 3.11 or 3.12"),
        "torch": (
            _torch,
            "install torch and torchvision together, from the same index: `pip install zpoint`",
        ),
        "gpu": (_gpu, "`nvidia-smi` should list it; if not, mend the driver"),
        "disk": (_disk, "set ZPOINT_HOME to a folder that you may write to"),
        "cache": (_cache, "set ZPOINT_CACHE to a folder that you may write to"),
        "ray": (_ray, "unset RAY_ADDRESS to use this machine alone, or start the cluster"),
        "storage": (_storage, "check ZPOINT_STORE and the AWS_* variables"),
        "mlflow": (_mlflow, "check MLFLOW_TRACKING_URI, or unset it for a file under ZPOINT_HOME"),
    }
    checks = []
    for name, (look, mend) in looks.items():
        try:
            checks.append(look())
        except Exception as error:
            checks.append(Check(name, False, _plain(str(error)) or type(error).__name__, mend))
            if name == "settings":  # nothing else can be asked
                break
    return [*checks, Check("network", True, "none is needed: nothing here is reported to anybody")]


def render(checks: list[Check]) -> str:
    """The checks as lines, the mending under what needs it."""
    marks = {True: "ok", False: "BROKEN", None: "note"}
    lines = []
    for check in checks:
        lines.append(f"{marks[check.ok]:<7}{check.name:<9} {check.what}")
        if check.mend:
            lines.append(f"{'':<17}mend: {check.mend}")
    broken = sum(check.ok is False for check in checks)
    return "\n".join([*lines, f"{broken} broken" if broken else "all in order"])


def _settings() -> Check:
    now = settings()
    return Check("settings", True, f"home {now.home}, store {now.store}")


def _python() -> Check:
    what = f"Python {platform.python_version()} at {sys.executable}"
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Check("python", True, what)
    return Check("python", None, f"{what}; tested are 3.11 and 3.12", "make an environment with one of them")


def _torch() -> Check:
    import torch
    import torchvision

    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # loads its compiled part
    return Check("torch", True, f"torch {torch.__version__} with torchvision {torchvision.__version__}")


def _gpu() -> Check:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        names = ", ".join(sorted({torch.cuda.get_device_name(i) for i in range(count)}))
        return Check("gpu", True, f"{count}: {names}")
    if shutil.which("nvidia-smi"):
        return Check("gpu", None, "torch sees none, though nvidia-smi is here", "compare driver and torch's CUDA")
    return Check("gpu", True, "none, which is fine: everything runs on the processor, only slower")


def _disk() -> Check:
    home = settings().home
    _touch(home)
    free = shutil.disk_usage(home).free
    what = f"{free / 1e9:.0f} GB free at {home}"
    if free < LITTLE_DISK:
        return Check("disk", None, what, "make room, or set ZPOINT_HOME to a larger disk")
    return Check("disk", True, what)


def _cache() -> Check:
    cache = settings().cache
    _touch(cache)
    return Check("cache", True, f"{cache} can be written")


def _ray() -> Check:
    import ray

    from cluster.ray_connection import connect, disconnect

    began, joined_before = time.monotonic(), ray.is_initialized()
    connect()
    try:
        version = ray.get(ray.remote(num_cpus=0)(platform.python_version).remote(), timeout=60)
        nodes, cpus = len(ray.nodes()), int(ray.cluster_resources().get("CPU", 0))
    finally:
        if not joined_before:
            disconnect()
    where = f"joined {settings().ray_address}" if settings().ray_address else "started here and ended again"
    seconds = time.monotonic() - began
    what = f"Ray {ray.__version__} {where}: {nodes} node(s), {cpus} CPUs, a task in {seconds:.1f} s"
    if version != platform.python_version():
        return Check("ray", None, f"{what}, on Python {version}", f"use Python {version} here too")
    return Check("ray", True, what)


def _storage() -> Check:
    from cluster.storage import check_uri, open_uri

    store = settings().store
    check_uri(store)
    fs, path = open_uri(f"{store}/doctor-{uuid.uuid4().hex[:8]}")
    try:
        with fs.open_output_stream(path) as out:
            out.write(b"zpoint")
        with fs.open_input_stream(path) as back:
            if back.read() != b"zpoint":
                raise OSError(f"{store} gave back something else than was written")
    finally:
        fs.delete_file(path)
    return Check("storage", True, f"{store} takes, gives back and deletes an object")


def _mlflow() -> Check:
    uri = settings().tracking_uri
    if uri.startswith("http"):
        _answers(uri)
    import mlflow

    from cluster.tracking import client, experiment_id

    client().set_experiment_tag(experiment_id(), "doctor", time.strftime("%Y-%m-%d %H:%M:%S"))
    return Check("mlflow", True, f"MLflow {mlflow.__version__} writes to {_plain(uri)}")


def _answers(url: str) -> None:
    """Raise OSError unless a server answers at `url`; MLflow itself would try several times."""
    try:
        urlopen(url, timeout=5).close()
    except HTTPError:
        pass  # whatever it says, it is there
    except OSError as error:
        raise OSError(f"nothing answers at {url}: {getattr(error, 'reason', error)}") from error


def _plain(text: str) -> str:
    """One line without the user and the password of a URL."""
    return re.sub(r"//[^/@\s]*@", "//", " ".join(text.split()))[:300]


def _touch(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".doctor-{uuid.uuid4().hex[:8]}"
    probe.write_bytes(b"")
    probe.unlink()
