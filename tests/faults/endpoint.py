"""Load the endpoint for minutes while its model is swapped each minute and a replica is killed; run by hand.

    python tests/faults/endpoint.py --folder /tmp/faults --minutes 10 --share 0.8

Two replicas serve two aliases, of random models of the default recipe whose weights differ. First the script
measures their throughput at 32 connections. Then tests/benchmarks/load.py, in its own process and without retries,
sends the fraction `--share` of it, beside a client with retries. The first alias moves to the other version each
minute, and one replica is killed half way. The client compares each image with those of the version that the response
names.

It exits with status 1 if a request without retries failed that was not on the killed replica (at another time, or more
requests than connections), if a request of the client failed or its image is of another version, or if a process of
the endpoint ends with more than 1.1 times the memory of its second minute.
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

import numpy as np
import torch
from serve import NPY, Z_DIM, free_port, make_model, measure, register_second

from cluster import tracking
from serving.client import Client
from serving.runtime.registry import read_model

REPO = Path(__file__).parents[2]
CONNECTIONS, KILL_S = 32, 3.0  # after the kill; the requests that it broke fail within these
LARGE_REQUEST = 70  # z-points; the model decodes them in two batches
ENDPOINT_PROCESSES = ("ray::Serve", "ray::HAProxy", "ray::Proxy", "ray::LastServed", "haproxy")
REPLICA = "ray::ServeReplica"


class RetryingClient(threading.Thread):
    """Send one request after the other with retries; `expected`: the images of `z` by version."""

    def __init__(self, url: str, z: np.ndarray, expected: dict[str, np.ndarray]):
        super().__init__(daemon=True)
        self.url, self.z, self.expected, self.stopping = url, z, expected, threading.Event()
        self.answers, self.mixed, self.failures = Counter[str](), 0, list[str]()

    def run(self) -> None:
        with Client(self.url) as client:
            while not self.stopping.wait(0.05):
                z = self.z if self.answers.total() % 10 == 0 else self.z[:1]
                try:
                    images = client.decode(z)
                except ValueError as error:
                    self.failures.append(str(error))
                    continue
                self.answers[images.model] += 1
                self.mixed += not images_close(images, self.expected[images.model][: len(z)])


def images_close(images: np.ndarray, expected: np.ndarray) -> bool:
    """Return true if no pixel differs by more than 2: batches sum in another order."""
    return bool(np.abs(images.astype(int) - expected).max() <= 2)


def expected_images(sources: dict[str, str], z: np.ndarray) -> dict[str, np.ndarray]:
    """Return the images of `z` by version label; no image of one version is close to the other's."""
    models = {label: read_model(source, "").model for label, source in sources.items()}
    images = {label: model.decode(torch.from_numpy(z)).numpy() for label, model in models.items()}
    first, second = images.values()
    assert not any(images_close(*pair) for pair in zip(first, second, strict=True))
    return images


def processes() -> dict[int, str]:
    """Return the names of the endpoint's processes below this one, by pid."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
            command = (folder / "cmdline").read_text().split("\0")[0]
        except OSError:  # it has ended
            continue
        # Ray appends the running method behind a dot, which changes.
        names[int(folder.name)] = Path(command).name if command.startswith("/") else command.partition(".")[0]

    def descends(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and descends(parents[pid]))

    return {pid: name for pid, name in sorted(names.items()) if name.startswith(ENDPOINT_PROCESSES) and descends(pid)}


def memory() -> dict[str, int]:
    """Return the resident memory in MB of each process of the endpoint, by name and pid."""
    megabytes = {}
    for pid, name in processes().items():
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        megabytes[f"{name} {pid}"] = pages * os.sysconf("SC_PAGE_SIZE") // 2**20
    return megabytes


def disturb(minutes: int, load: subprocess.Popen[str]) -> tuple[list[dict[str, int]], float]:
    """Swap the model and record the memory each minute, and kill a replica half way. Return memories and kill time."""
    start, memories, kill_time = time.monotonic(), [], 0.0
    for minute in range(minutes):
        tracking.client().set_registered_model_alias(tracking.MODEL_NAME, "champion", str(2 - minute % 2))
        if minute == minutes // 2:
            time.sleep(20)  # not in the middle of a swap
            os.kill(next(pid for pid, name in processes().items() if name.startswith(REPLICA)), signal.SIGKILL)
            kill_time = time.monotonic() - start
        while time.monotonic() < start + 60 * (minute + 1) and load.poll() is None:
            time.sleep(0.5)
        memories.append(memory())
        print(f"minute {minute + 1}: MB {memories[-1]}", file=sys.stderr, flush=True)
    return memories, kill_time


def growth(memories: list[dict[str, int]]) -> dict[str, float]:
    """Return the last memory divided by that of the second minute, for each process that runs at the end."""
    by_process = {name: [minute[name] for minute in memories if name in minute] for name in memories[-1]}
    return {name: round(sizes[-1] / sizes[min(1, len(sizes) - 1)], 3) for name, sizes in by_process.items()}


def run(url: str, minutes: int, fraction: float, client: RetryingClient) -> dict[str, Any]:
    port = int(url.rpartition(":")[2])
    full_rate = measure(port, 1, NPY, CONNECTIONS, 10.0, warm=5)["requests_per_second"]
    options = {
        "port": port,
        "connections": CONNECTIONS,
        "seconds": 60 * minutes,
        "rate": fraction * full_rate,
        "z-dim": Z_DIM,
    }
    flags = [f"--{key}={value}" for key, value in (options | {"warm": 0}).items()]
    client.start()
    command = [sys.executable, str(REPO / "tests" / "benchmarks" / "load.py"), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        memories, kill_time = disturb(minutes, process)
        assert process.stdout is not None
        load = json.loads(process.stdout.read().splitlines()[-1])
    client.stopping.set()
    client.join(30)
    memory_growth = growth(memories)
    # The load's clock starts up to a second after ours.
    unexplained = [t for t in load["trouble_seconds"] if not -2 <= t - kill_time <= KILL_S]
    passed = {
        "load": not unexplained and len(load["trouble_seconds"]) <= CONNECTIONS,
        "client": not client.failures and not client.mixed,
        "memory": max(memory_growth.values()) < 1.1,
    }
    retrying = {"answers": dict(client.answers), "mixed": client.mixed, "failures": client.failures}
    return {"full_requests_per_second": full_rate, "load": load, "killed_at_second": round(kill_time, 1),
            "memory": memories, "growth": memory_growth, "retrying_client": retrying, "passed": passed}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the models")
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.8, help="fraction of the measured throughput that is sent")
    args = parser.parse_args()
    folder = args.folder.absolute()
    os.environ["ZPOINT_HOME"] = str(folder)
    first, second = make_model(folder), f"file://{folder}/second"
    register_second(folder)
    tracking.client().set_registered_model_alias(tracking.MODEL_NAME, "champion", "1")
    z = np.random.default_rng(0).standard_normal((LARGE_REQUEST, Z_DIM)).astype(np.float32)
    expected = expected_images({f"{tracking.MODEL_NAME}/1": first, f"{tracking.MODEL_NAME}/2": second}, z)

    from cluster.ray_connection import connect, disconnect
    from serving.runtime.deployment import start_endpoint, stop_endpoint

    connect(niceness=0)  # as `zpoint serve` does
    try:
        url = start_endpoint(("champion", "near-ae"), port=free_port(), replicas=(2, 2)).url
        result = run(url, args.minutes, args.share, RetryingClient(url, z, expected))
    finally:
        stop_endpoint()
        disconnect()
    print(json.dumps(result, indent=1))
    sys.exit(not all(result["passed"].values()))


if __name__ == "__main__":
    main()
