"""Minutes of load on the endpoint with a swap of the model each minute and a killed replica; started by hand.

    python tests/faults/endpoint.py --folder /tmp/faults --minutes 10 --share 0.8

Two replicas serve random models of the default recipe, two versions with other weights. First it is measured what
they give at 32 connections; then `share` of that is asked for (tests/benchmarks/load.py, without retries, a process of
its own), beside a client with retries, while the alias moves from one version to the other each minute and one
replica is killed half way. The client sees by each image whether the version that the answer names has made it.

It ends with status 1 when a request failed without retries that was not on the killed replica (at another time, or
more than there are connections), when one of the client's failed or was answered by another version than named, or
when a process of the endpoint has more than 1.1 times the memory at the end that it had after its second minute.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import httpx2
import numpy as np
import torch
from serve import NPY, Z_DIM, free_port, make_model, measure, save_random

from cluster import tracking
from serving.client import Client
from serving.client.client import Request, parse_npy, to_npy
from serving.runtime.registry import read_model

REPO = Path(__file__).parents[2]
CONNECTIONS, KILL_SECONDS = 32, 3.0  # how long after the kill what it broke may come to light
MANY = 70  # z-points of a request that goes through the model in two pieces
OURS = ("ray::Serve", "ray::HAProxy", "ray::Proxy", "haproxy")  # what zpoint has started on Ray
REPLICA = "ray::ServeReplica"


class Patient(threading.Thread):
    """A client with retries, one request after the other; `wanted`: the images of `z` by version."""

    def __init__(self, url: str, z: np.ndarray, wanted: dict[str, np.ndarray]):
        super().__init__(daemon=True)
        self.url, self.z, self.wanted, self.over = url, z, wanted, threading.Event()
        self.answers, self.mixed, self.failures = Counter[str](), 0, list[str]()

    def run(self) -> None:
        with Client(self.url) as client:
            while not self.over.wait(0.05):
                z = self.z if self.answers.total() % 10 == 0 else self.z[:1]
                try:
                    label, images = client._send(Request("/v1/decode", NPY, version_and_images, NPY, to_npy(z)))
                except ValueError as error:
                    self.failures.append(str(error))
                    continue
                self.answers[label] += 1
                self.mixed += not alike(images, self.wanted[label][: len(z)])


def version_and_images(answer: httpx2.Response) -> tuple[str, np.ndarray]:
    return answer.headers["x-zpoint-model"], parse_npy(answer)


def alike(images: np.ndarray, wanted: np.ndarray) -> bool:
    """Equal but for what another order of sums makes of a pixel."""
    return bool(np.abs(images.astype(int) - wanted).max() <= 2)


def expected(sources: dict[str, str], z: np.ndarray) -> dict[str, np.ndarray]:
    """The images of `z` by the label of each version, and no image alike for any two."""
    models = {label: read_model(source, "").model for label, source in sources.items()}
    found = {label: model.decode(torch.from_numpy(z)).numpy() for label, model in models.items()}
    first, second = found.values()
    assert not any(alike(one, other) for one, other in zip(first, second, strict=True))
    return found


def processes() -> dict[int, str]:
    """Names by pid of what this process and those below it have started for the endpoint."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
            command = (folder / "cmdline").read_text().split("\0")[0]
        except OSError:  # it has ended meanwhile
            continue
        # Ray's processes name the method that they are in behind a dot: another one in each minute.
        names[int(folder.name)] = Path(command).name if command.startswith("/") else command.partition(".")[0]

    def is_below(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_below(parents[pid]))

    return {pid: name for pid, name in sorted(names.items()) if name.startswith(OURS) and is_below(pid)}


def memory() -> dict[str, int]:
    """MB of resident memory of each process of the endpoint, by name and pid."""
    found = {}
    for pid, name in processes().items():
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        found[f"{name} {pid}"] = pages * os.sysconf("SC_PAGE_SIZE") // 2**20
    return found


def rounds(minutes: int, load: subprocess.Popen[str]) -> tuple[list[dict[str, int]], float]:
    """Each minute a swap, then the memories; half way a kill. Gives the memories and the kill's second."""
    began, seen, killed = time.monotonic(), [], 0.0
    for minute in range(minutes):
        tracking.client().set_registered_model_alias(tracking.MODEL_NAME, "champion", str(2 - minute % 2))
        if minute == minutes // 2:
            time.sleep(20)  # not in the middle of a swap
            os.kill(next(pid for pid, name in processes().items() if name.startswith(REPLICA)), signal.SIGKILL)
            killed = time.monotonic() - began
        while time.monotonic() < began + 60 * (minute + 1) and load.poll() is None:
            time.sleep(0.5)
        seen.append(memory())
        print(f"minute {minute + 1}: MB {seen[-1]}", file=sys.stderr, flush=True)
    return seen, killed


def growth(seen: list[dict[str, int]]) -> dict[str, float]:
    """How many times its memory of the second minute each process has that is there at the end."""
    lives = {name: [each[name] for each in seen if name in each] for name in seen[-1]}
    return {name: round(life[-1] / life[min(1, len(life) - 1)], 3) for name, life in lives.items()}


def run(url: str, minutes: int, share: float, patient: Patient) -> dict[str, Any]:
    port = int(url.rpartition(":")[2])
    full = measure(port, 1, NPY, CONNECTIONS, 10.0, warm=5)["requests_per_second"]
    options = {"port": port, "connections": CONNECTIONS, "seconds": 60 * minutes, "rate": share * full, "z-dim": Z_DIM}
    words = [f"--{key}={value}" for key, value in (options | {"warm": 0}).items()]
    patient.start()
    load = [sys.executable, str(REPO / "tests" / "benchmarks" / "load.py"), *words]
    with subprocess.Popen(load, stdout=subprocess.PIPE, text=True) as process:
        seen, killed = rounds(minutes, process)
        assert process.stdout is not None
        told = json.loads(process.stdout.read().splitlines()[-1])
    patient.over.set()
    patient.join(30)
    grown = growth(seen)
    # The load's clock starts up to a second after ours.
    elsewhere = [second for second in told["trouble_seconds"] if not -2 <= second - killed <= KILL_SECONDS]
    fine = {
        "load": not elsewhere and len(told["trouble_seconds"]) <= CONNECTIONS,
        "client": not patient.failures and not patient.mixed,
        "memory": max(grown.values()) < 1.1,
    }
    client = {"answers": dict(patient.answers), "mixed": patient.mixed, "failures": patient.failures}
    return {"full_requests_per_second": full, "load": told, "killed_at_second": round(killed, 1),
            "memory": seen, "growth": grown, "retrying_client": client, "fine": fine}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the models are kept")
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.8, help="of what the endpoint can do")
    args = parser.parse_args()
    folder = args.folder.absolute()
    os.environ["ZPOINT_HOME"] = str(folder)
    first, second = make_model(folder), f"file://{folder}/second"
    registry = tracking.client()
    if len(registry.search_model_versions(f"name = '{tracking.MODEL_NAME}'")) < 2:
        save_random(second, seed=1)
        registry.create_model_version(tracking.MODEL_NAME, second)
    registry.set_registered_model_alias(tracking.MODEL_NAME, "champion", "1")
    z = np.random.default_rng(0).standard_normal((MANY, Z_DIM)).astype(np.float32)
    wanted = expected({f"{tracking.MODEL_NAME}/1": first, f"{tracking.MODEL_NAME}/2": second}, z)

    from cluster.ray_connection import connect, disconnect
    from serving.runtime.deployment import start_endpoint, stop_endpoint

    connect(niceness=0)  # as `zpoint serve` does
    try:
        url = start_endpoint(port=free_port(), replicas=(2, 2)).url
        result = run(url, args.minutes, args.share, Patient(url, z, wanted))
    finally:
        stop_endpoint()
        disconnect()
    print(json.dumps(result, indent=1))
    sys.exit(not all(result["fine"].values()))


if __name__ == "__main__":
    main()
