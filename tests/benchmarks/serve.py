"""The endpoint against the bare decoder and against other servers, side by side on one machine, over loopback.

    python tests/benchmarks/serve.py --folder /tmp/bench [--only goals ceiling zpoint-1 zpoint-2 fastapi litserve ...]

LitServe and BentoML come from a folder of their own (`pip install --target FOLDER litserve bentoml`, then --peers
FOLDER), whose packages nothing else sees. Each is given the same random model (z_dim 200, 96x96, default channels),
the same requests and the same load generator (load.py, a process of its own). Results of each part are kept as
JSON in the folder, and the last thing printed is a table of all that are there: requests/s, p50 and p99 in ms.

`goals` is the bare decoder and two replicas in turn, ROUNDS times, since what else the machine does comes and goes:
of each round the endpoint's share of what the decoder gave in it, and the p99 at half load as a multiple of the p50.
Beside the latter the same of the bare decoder in two processes that are asked for as many z-points a second in even
steps, and the share of the cores' time that the machine under this one took away meanwhile (Linux counts it as steal).
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
HERE = Path(__file__).parent
Z_DIM, SIZE = 200, 96
NPY, PNG = "application/x-npy", "image/png"
CONNECTIONS = (1, 8, 32, 128)
KINDS = {"1 z, raw": (1, NPY), "1 z, PNG": (1, PNG), "64 z, raw": (64, NPY)}
PARTS = ("ceiling", "goals", "zpoint-1", "zpoint-2", "fastapi", "litserve", "bentoml")


def save_random(source: str, seed: int) -> None:
    """A model of random weights in the folder that the URI `source` names."""
    import torch

    from aecore.config import Recipe
    from aecore.latent.samplers import fit_latent_stats
    from aecore.model.autoencoder import ImageShape, build_model
    from aecore.training.checkpoint import save_model
    from cluster.storage import open_uri

    recipe = Recipe.model_validate({"model": {"z_dim": Z_DIM}, "optim": {"seed": seed}})
    model = build_model(recipe, ImageShape(SIZE, 3)).eval()
    save_model(*open_uri(source), model, recipe, fit_latent_stats(torch.randn(1000, Z_DIM), n_components=0), {})


def make_model(folder: Path) -> str:
    """A registered model under ZPOINT_HOME = folder, the champion; gives its folder."""
    from cluster import tracking

    source = f"file://{folder}/model"
    if not (folder / "model" / "config.json").exists():
        save_random(source, seed=0)
        registry = tracking.client()
        registry.create_registered_model(tracking.MODEL_NAME)
        version = registry.create_model_version(tracking.MODEL_NAME, source).version
        registry.set_registered_model_alias(tracking.MODEL_NAME, "champion", version)
    return source


def ceiling(
    source: str, seconds: float, sizes: Sequence[int] = (1, 8, 32, 64), threads: Sequence[int] = (1, 2)
) -> dict[str, float]:
    """z-points a second of the bare compiled decoder called in a loop, for so many z a call, on so many threads."""
    code = f"""
import json, sys, time
sys.path[:0] = [{str(HERE)!r}]
from serve_peers import open_decoder
import numpy as np, torch
decode, _ = open_decoder({source!r})
found = {{}}
for threads in {tuple(threads)!r}:
    torch.set_num_threads(threads)
    for n in {tuple(sizes)!r}:
        z = np.random.default_rng(0).standard_normal((n, {Z_DIM})).astype(np.float32)
        for _ in range(10):
            decode(z)
        began, calls = time.perf_counter(), 0
        while time.perf_counter() - began < {seconds}:
            decode(z)
            calls += 1
        found[f"{{n}} z, {{threads}} threads"] = calls * n / (time.perf_counter() - began)
print(json.dumps(found))
"""
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def paced(source: str, rate: float, seconds: float, processes: int = 2) -> float:
    """p99 / p50 of one z-point's time from when it was due, where each process makes its share of `rate` a second."""
    code = f"""
import json, sys, time
sys.path[:0] = [{str(HERE)!r}]
from serve_peers import open_decoder
import numpy as np
decode, _ = open_decoder({source!r})
z = np.random.default_rng(0).standard_normal((1, {Z_DIM})).astype(np.float32)
for _ in range(100):
    decode(z)
print("ready", flush=True)
input()
taken, due = [], time.perf_counter()
end = due + {seconds}
while due < end:
    time.sleep(max(0.0, due - time.perf_counter()))
    decode(z)
    taken.append(time.perf_counter() - due)
    due += {processes / rate}
print(json.dumps(taken))
"""
    words, pipe = [sys.executable, "-c", code], subprocess.PIPE
    running = [subprocess.Popen(words, stdin=pipe, stdout=pipe, bufsize=0) for _ in range(processes)]
    ends: list[tuple[Any, Any]] = [(each.stdin, each.stdout) for each in running]
    assert all(told.readline() == b"ready\n" for _, told in ends)
    for start, _ in ends:
        start.write(b"\n")
    taken = [value for each in running for value in json.loads(each.communicate()[0])]
    return float(np.percentile(taken, 99) / np.percentile(taken, 50))


def stolen() -> float:
    """Seconds, of all cores, that the machine under this one took away since it began; 0 where there is none."""
    with open("/proc/stat") as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(name: str, source: str, port: int, peers: str) -> Iterator[None]:
    """A server of that name at 127.0.0.1:port, once it answers."""
    if name.startswith("zpoint-"):
        words = ["-m", "jobs.cli", "serve", "--port", str(port), "--replicas", name.partition("-")[2]]
    else:
        words = [str(HERE / "serve_peers.py"), name, source, str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    folders = [str(HERE.parents[1]), *([peers] if name in ("litserve", "bentoml") else [])]
    environment["PYTHONPATH"] = os.pathsep.join(folders)
    process = subprocess.Popen([sys.executable, *words], env=environment, start_new_session=True)
    try:
        wait_until_decoding(port, process)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(40)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_until_decoding(port: int, process: subprocess.Popen, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(subprocess.CalledProcessError, json.JSONDecodeError):
            if measure(port, 1, NPY, 1, 0.2, warm=0)["statuses"].get("200"):
                return
        assert process.poll() is None, "the server has ended"
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.5)


def measure(
    port: int, points: int, accept: str, connections: int, seconds: float, rate: float = 0, warm: float = 0.5
) -> dict[str, Any]:
    """What load.py, a process of its own, says of one load."""
    options = {"port": port, "points": points, "accept": accept, "connections": connections, "seconds": seconds}
    words = [f"--{key}={value}" for key, value in (options | {"rate": rate, "warm": warm, "z-dim": Z_DIM}).items()]
    done = subprocess.run([sys.executable, str(HERE / "load.py"), *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_all(port: int, seconds: float) -> dict[str, Any]:
    """Each kind of request at each number of connections; one z also at half of what 32 connections gave."""
    measure(port, 1, NPY, 64, 2.0)  # batches of all sizes, seen once
    found = {
        f"{kind} x {connections}": measure(port, points, accept, connections, seconds)
        for kind, (points, accept) in KINDS.items()
        for connections in CONNECTIONS
    }
    half = found["1 z, raw x 32"]["requests_per_second"] / 2
    return found | {"half load": measure(port, 1, NPY, 32, 2 * seconds, rate=half)}


def measure_goals(source: str, port: int, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Of each round the shares of the bare decoder on both cores, p99 / p50 at half load, and what they are made of."""
    measure(port, 1, NPY, 64, 2.0)  # batches of all sizes, seen once
    names = (
        "1 z x 32", "64 z x 8", "half load, p99 / p50", "the same of the bare decoder", "stolen at half load",
        "half load, requests/s", "half load, p50 in ms", "half load, p99 in ms",
    )  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        bare = ceiling(source, seconds, (1, 64), (2,))
        one, many = measure(port, 1, NPY, 32, seconds), measure(port, 64, NPY, 8, seconds)
        rate, before, began = one["requests_per_second"] / 2, stolen(), time.monotonic()
        half = measure(port, 1, NPY, 32, 2 * seconds, rate=rate)
        taken = (stolen() - before) / (time.monotonic() - began) / (os.cpu_count() or 1)
        values = (
            one["requests_per_second"] / bare["1 z, 2 threads"],
            64 * many["requests_per_second"] / bare["64 z, 2 threads"],
            half["p99_ms"] / half["p50_ms"],
            paced(source, rate, 2 * seconds),
            taken,
            half["requests_per_second"],
            half["p50_ms"],
            half["p99_ms"],
        )
        for name, value in zip(names, values, strict=True):
            found[name].append(value)
    return found


def table(folder: Path) -> str:
    """Markdown of all results in `folder`."""
    found = {name: json.loads(path.read_text()) for name in PARTS if (path := folder / f"{name}.json").exists()}
    lines = []
    for name, values in found.pop("goals", {}).items():
        lines.append(f"{name}: median {statistics.median(values):.2f} of {', '.join(f'{each:.2f}' for each in values)}")
    if bare := found.pop("ceiling", None):
        lines += ["| the bare compiled decoder | z-points/s |", "|---|---|"]
        lines += [f"| {name} | {rate:,.0f} |" for name, rate in bare.items()] + [""]
    lines += [f"| request x connections | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for load in [f"{kind} x {c}" for kind in KINDS for c in CONNECTIONS] + ["half load"]:
        cells = [_cell(results[load]) for results in found.values()]
        lines.append(f"| {load} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(result: dict[str, Any]) -> str:
    bad = sum(count for status, count in result["statuses"].items() if status != "200") + result["failures"]
    text = f"{result['requests_per_second']:,.0f}/s, {result['p50_ms']:.1f}, {result['p99_ms']:.1f}"
    return f"{text} ({bad} failed)" if bad else text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the model and the results are kept")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--peers", default="", help="folder of LitServe and BentoML")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=5, help="of the goals")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and no server is left behind
    args.folder.mkdir(parents=True, exist_ok=True)
    os.environ["ZPOINT_HOME"] = str(args.folder.absolute())
    source = make_model(args.folder.absolute())
    for name in args.only:
        if name == "ceiling":
            result = ceiling(source, args.seconds)
        else:
            port = free_port()
            with server("zpoint-2" if name == "goals" else name, source, port, args.peers):
                if name == "goals":
                    result = measure_goals(source, port, args.seconds, args.rounds)
                else:
                    result = measure_all(port, args.seconds)
        (args.folder / f"{name}.json").write_text(json.dumps(result, indent=1))
    print(table(args.folder))


if __name__ == "__main__":
    main()
