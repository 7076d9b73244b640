"""Measure the seconds from the command `zpoint train` to its first optimizer step, by phase.

    python tests/benchmarks/startup.py [--rounds 5] [--workers 0 1 2]

Ray runs already, with two CPUs on loopback, and the node cache is filled. Beside each training stands a bare
TorchTrainer with as many workers: one Adam step of a linear layer in each. Each process loads
`stamps/sitecustomize.py` at its start, which writes the time stamps; a phase ends when its last process is through.
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
# The name of a phase, and the function whose begin or end ends it. A training that does not call the function has no
# such phase: its time belongs to the next one.
PHASES = [
    ("command: Python, recipe, dataset", "train", "begin"),
    ("Ray is joined", "connect", "end"),
    ("ray.train is imported", "DataParallelTrainer.fit", "begin"),
    ("controller: process, imports", "TrainController.__init__", "begin"),
    ("placement group", "DefaultPlacementGroupHandle.wait", "end"),
    ("workers: processes, ray.train", "RayTrainWorker.__init__", "begin"),
    ("torch is imported", "init_process_group", "begin"),
    ("process group", "init_process_group", "end"),
    ("Ray Train's settings", "RayTrainWorker.run_train_fn", "begin"),
    ("imports, cache is opened", "open_loaders", "end"),
    ("model", "build_model", "end"),
    ("optimizer, DDP, first batch and step", "Adam.step", "end"),
]
INGEST = ["--limit", "128", "--size", "64"]
RECIPE = ["faces-vae", "optim.epochs=1", "--fresh"]


def bare(workers: int) -> None:
    """Run a bare TorchTrainer; called in a process of its own."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def train_loop_per_worker() -> None:
        import torch
        from ray.train.torch import prepare_model

        model = prepare_model(torch.nn.Linear(1, 1))
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
    run = RunConfig(storage_path=os.environ["ZPOINT_HOME"])
    TorchTrainer(train_loop_per_worker, scaling_config=ScalingConfig(num_workers=workers), run_config=run).fit()


@contextmanager
def head(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Run `ray start --head` with its own ports and folder; gives its address."""
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


def time_phases(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Return the seconds of each phase of one start."""
    stamps = Path(environment["STAMPS"])
    stamps.write_text("")
    phase_start = start = time.time()
    process = subprocess.run(command, env=environment, cwd=REPO, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(process.stderr)
    first_stamps: dict[tuple[str, str], dict[int, float]] = {}  # by function and edge, then process
    for seconds, _, pid, function, edge in map(json.loads, stamps.read_text().splitlines()):
        first_stamps.setdefault((function, edge), {}).setdefault(pid, seconds)
    phases = {}
    for phase, function, edge in PHASES:
        if stamps_by_pid := first_stamps.get((function, edge)):
            phase_end = max(stamps_by_pid.values())
            phases[phase], phase_start = phase_end - phase_start, phase_end
    return phases | {"first step": phase_start - start}


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
        starts[f"zpoint, {n}"] = [*zpoint, "train", *RECIPE, data, f"scale.workers={n}"]
        if n:
            starts[f"TorchTrainer, {n}"] = [sys.executable, __file__, "--bare", str(n)]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in starts}
    try:
        ingest = [*zpoint, "ingest", "generated", "--to", folder / "faces", *INGEST]
        subprocess.run(ingest, env=environment, cwd=REPO, check=True, capture_output=True)
        with head(folder / "ray", environment) as environment["RAY_ADDRESS"]:
            for warm in range(args.rounds + 1):  # the first round fills the caches of images and of files
                for name, command in starts.items():
                    phases = time_phases(command, environment)
                    if warm:
                        results[name].append(phases)
        print(table(results))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Return a table of the medians over the rounds, in seconds; of the total also minimum and maximum."""
    lines = ["| phase, seconds | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    for phase, *_ in PHASES:
        cells = [f"{median(r[phase] for r in rounds):.2f}" if phase in rounds[0] else "" for rounds in results.values()]
        lines.append(f"| {phase} | " + " | ".join(cells) + " |")
    totals = [[r["first step"] for r in rounds] for rounds in results.values()]
    cells = [f"**{median(t):.1f}** ({min(t):.1f}-{max(t):.1f})" for t in totals]
    return "\n".join([*lines, "| **command to first step** | " + " | ".join(cells) + " |"])


if __name__ == "__main__":
    main()
