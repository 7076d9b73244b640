"""Seconds from the command `zpoint train` to its first optimizer step, and where they go.

    python tests/benchmarks/startup.py [--rounds 5] [--workers 0 1 2]

Ray runs already, with two CPUs on loopback, and the node cache is filled. Beside each training the least that Ray's
TorchTrainer can do, with as many workers: one Adam step of a linear layer in each. The stamps come from
`stamps/sitecustomize.py`, which each process loads at its start; a part ends when the last of its processes is there.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from urllib.request import urlopen

REPO = Path(__file__).resolve().parents[2]
STAMPS = Path(__file__).with_name("stamps")
# What a part is called, and the function at whose begin or end it is over. A training without the function has no
# such part: its time belongs to the next one.
PARTS = [
    ("command: Python, recipe, dataset", "train", "begin"),
    ("Ray is joined", "connect", "end"),
    ("ray.train is imported", "DataParallelTrainer.fit", "begin"),
    ("controller: process, imports", "TrainController.__init__", "begin"),
    ("placement group", "DefaultPlacementGroupHandle.wait", "end"),
    ("workers: processes, ray.train", "RayTrainWorker.__init__", "begin"),
    ("workers: Ray Train's settings", "RayTrainWorker.run_train_fn", "begin"),
    ("torch is imported", "init_process_group", "begin"),
    ("process group", "init_process_group", "end"),
    ("imports, cache is opened", "open_loaders", "end"),
    ("model", "build_model", "end"),
    ("optimizer, DDP, first batch and step", "Adam.step", "end"),
]
# The controller of a TorchTrainer joins the workers' process group before it launches them.
BARE_PARTS = [part for part in PARTS if part[1] != "RayTrainWorker.run_train_fn"]
INGEST = ["--limit", "128", "--size", "64"]
RECIPE = ["faces-vae", "optim.epochs=1", "--fresh"]


def bare(workers: int) -> None:
    """The least that a TorchTrainer does; run in a process of its own."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop() -> None:
        import torch
        from ray.train.torch import prepare_model

        model = prepare_model(torch.nn.Linear(1, 1))
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
    run = RunConfig(storage_path=os.environ["ZPOINT_HOME"])
    TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=workers), run_config=run).fit()


@contextmanager
def head(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """A `ray start --head` with its own ports and folder; gives its address."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(5)]
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port",
             "dashboard-agent-grpc-port")  # fmt: skip
    options = {name: probe.getsockname()[1] for name, probe in zip(names, probes, strict=True)} | {
        "dashboard-host": "127.0.0.1", "num-cpus": 2, "temp-dir": folder, "object-store-memory": 200_000_000,
    }  # fmt: skip
    for probe in probes:
        probe.close()
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += [f"--{name}={value}" for name, value in options.items()]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    try:
        for _ in range(300):
            with suppress(OSError):
                urlopen(f"http://127.0.0.1:{options['dashboard-port']}/api/version", timeout=2).close()
                break
            time.sleep(0.2)
        yield f"127.0.0.1:{options['port']}"
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):  # `ray start` now and then waits 30 s for a process that has ended
            process.wait(5)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def timed(command: list[str], parts: list[tuple[str, str, str]], environment: dict[str, str]) -> dict[str, float]:
    """Seconds of each part of one start, by its name."""
    stamps = Path(environment["STAMPS"])
    stamps.write_text("")
    last = began = time.time()
    done = subprocess.run(command, env=environment, cwd=REPO, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    first: dict[tuple[str, str], dict[int, float]] = {}  # of each process
    for at, _, process, what, edge in map(json.loads, stamps.read_text().splitlines()):
        first.setdefault((what, edge), {}).setdefault(process, at)
    seconds = {}
    for name, what, edge in parts:
        if found := first.get((what, edge)):
            now = max(found.values())
            seconds[name], last = now - last, now
    return seconds | {"first step": last - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bare", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        return bare(args.bare)
    folder = Path(tempfile.mkdtemp(prefix="zst", dir="/tmp"))  # short: the paths of sockets have a limit
    environment = {
        **os.environ, "PYTHONPATH": f"{STAMPS}{os.pathsep}{REPO}", "STAMPS": str(folder / "stamps"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0",
        "ZPOINT_HOME": str(folder / "home"), "ZPOINT_CPUS": "2",
    }  # fmt: skip
    for name in ("RAY_ADDRESS", "ZPOINT_STORE", "ZPOINT_CACHE", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    zpoint, data = [sys.executable, "-m", "jobs.cli"], f"data.uri={folder / 'faces'}"
    starts = {}
    for n in args.workers:
        starts[f"zpoint, {n}"] = [*zpoint, "train", *RECIPE, data, f"scale.workers={n}"], PARTS
        if n:
            starts[f"TorchTrainer, {n}"] = [sys.executable, __file__, "--bare", str(n)], BARE_PARTS
    results: dict[str, list[dict[str, float]]] = {name: [] for name in starts}
    try:
        ingest = [*zpoint, "ingest", "generated", "--to", folder / "faces", *INGEST]
        subprocess.run(ingest, env=environment, cwd=REPO, check=True, capture_output=True)
        with head(folder / "ray", environment) as environment["RAY_ADDRESS"]:
            for number in range(args.rounds + 1):  # the first one fills caches, of images and of files
                for name, (command, parts) in starts.items():
                    seconds = timed(command, parts, environment)
                    if number:
                        results[name].append(seconds)
        print(table(results))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Medians over the rounds, in seconds; of the whole also the least and the most."""
    lines = ["| part, seconds | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    for part, *_ in PARTS:
        cells = [f"{median(r[part] for r in rounds):.2f}" if part in rounds[0] else "" for rounds in results.values()]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    wholes = [[r["first step"] for r in rounds] for rounds in results.values()]
    cells = [f"**{median(w):.1f}** ({min(w):.1f}-{max(w):.1f})" for w in wholes]
    return "\n".join([*lines, "| **command to first step** | " + " | ".join(cells) + " |"])


if __name__ == "__main__":
    main()
