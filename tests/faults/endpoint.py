"""Minutes of load on the endpoint with a swap of the model each minute and a killed replica; started by hand.

    python tests/faults/endpoint.py --folder /tmp/faults --minutes 10 --share 0.8

Two replicas serve a random model of the default recipe. First it is measured what they give at 32 connections; then
`share` of that is asked for (tests/benchmarks/load.py, without retries, a process of its own), beside a client with
retries, while the alias moves between two versions each minute and one replica is killed in the middle. It ends with
status 1 when a request failed beyond those in flight on the killed replica, or one of the client's at all, or when
the replicas' memory has grown by more than a tenth between the second minute's start and the end.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import numpy as np
from serve import NPY, Z_DIM, free_port, make_model, measure

from cluster import tracking
from serving.client import Client

REPO = Path(__file__).parents[2]
CONNECTIONS = 32


class Patient(threading.Thread):
    """A client with retries, one request after the other."""

    def __init__(self, url: str):
        super().__init__(daemon=True)
        self.url, self.answers, self.failures, self.over = url, 0, [], threading.Event()

    def run(self) -> None:
        z = np.zeros((1, Z_DIM), np.float32)
        with Client(self.url) as client:
            while not self.over.wait(0.05):
                try:
                    client.decode(z)
                    self.answers += 1
                except ValueError as error:
                    self.failures.append(str(error))


def replicas() -> list[int]:
    from ray.util.state import list_actors

    actors = list_actors(filters=[("class_name", "=", "ServeReplica:zpoint:decoder"), ("state", "=", "ALIVE")])
    return sorted(actor.pid for actor in actors)


def megabytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


def rounds(minutes: int, process: subprocess.Popen[str]) -> tuple[list[dict[int, int]], int]:
    """Each minute the memory of each replica, and a swap; half way a kill. Gives the memories and who was killed."""
    seen, killed = [], 0
    for minute in range(minutes):
        began = time.monotonic()
        tracking.client().set_registered_model_alias(tracking.MODEL_NAME, "champion", str(1 + minute % 2))
        if minute == minutes // 2:
            killed = replicas()[0]
            os.kill(killed, signal.SIGKILL)
        while time.monotonic() < began + 60 and process.poll() is None:
            time.sleep(0.5)
        seen.append({pid: megabytes(pid) for pid in replicas()})
        print(f"minute {minute + 1}: MB by replica {seen[-1]}", file=sys.stderr, flush=True)
    return seen, killed


def run(url: str, minutes: int, share: float) -> dict[str, Any]:
    port = int(url.rpartition(":")[2])
    full = measure(port, 1, NPY, CONNECTIONS, 10.0, warm=5)["requests_per_second"]
    options = {"port": port, "connections": CONNECTIONS, "seconds": 60 * minutes, "rate": share * full, "z-dim": Z_DIM}
    words = [f"--{key}={value}" for key, value in options.items()]
    patient = Patient(url)
    patient.start()
    load = [sys.executable, str(REPO / "tests" / "benchmarks" / "load.py"), *words]
    with subprocess.Popen(load, stdout=subprocess.PIPE, text=True) as process:
        seen, killed = rounds(minutes, process)
        assert process.stdout is not None
        told = json.loads(process.stdout.read().splitlines()[-1])
    patient.over.set()
    patient.join(30)
    stayed = set(seen[0]) & set(seen[-1]) - {killed}
    growth = {pid: seen[-1][pid] / seen[min(1, len(seen) - 1)][pid] for pid in stayed}
    bad = {status: count for status, count in told["statuses"].items() if status != "200"}
    fine = (
        not bad and told["failures"] <= CONNECTIONS and not patient.failures and max(growth.values(), default=1) < 1.1
    )
    return {"full_requests_per_second": full, "load": told, "memory": seen, "growth": growth,
            "retrying_client": {"answers": patient.answers, "failures": patient.failures}, "fine": fine}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the model is kept")
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.8, help="of what the endpoint can do")
    args = parser.parse_args()
    os.environ["ZPOINT_HOME"] = str(args.folder.absolute())
    source = make_model(args.folder.absolute())
    registry = tracking.client()
    if len(registry.search_model_versions(f"name = '{tracking.MODEL_NAME}'")) < 2:
        registry.create_model_version(tracking.MODEL_NAME, source)

    from cluster.local import connect, disconnect
    from serving.deployment import serve_champion, stop

    connect()
    try:
        result = run(serve_champion(port=free_port(), replicas=(2, 2)).url, args.minutes, args.share)
    finally:
        stop()
        disconnect()
    print(json.dumps(result, indent=1))
    sys.exit(not result["fine"])


if __name__ == "__main__":
    main()
