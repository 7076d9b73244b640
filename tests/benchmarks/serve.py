"""Measure the endpoint against the bare decoder and other servers, side by side on one machine, over loopback.

    python tests/benchmarks/serve.py --folder /tmp/bench [--only goals ceiling zpoint-1 zpoint-2 fastapi litserve ...]

Install LitServe and BentoML into a folder of their own (`pip install --target FOLDER litserve bentoml`) and pass it as
--peers FOLDER. Every server gets the same random model (z_dim 200, 96x96, default channels), the same requests and the
same load generator (load.py, in its own process). The results are written into --folder as JSON, one file for each
name of --only; the last output is a table of all results there: requests/s, p50 and p99 in ms.

`goals` alternates between the bare decoder and two replicas, ROUNDS times, since the load of the machine varies. Each
round gives the endpoint's throughput divided by the bare decoder's, and p99 / p50 at half load. For comparison with
the latter: p99 / p50 of the bare decoder in two processes at the same rate in even steps, and the fraction of the
cores' time that the hypervisor took away meanwhile (steal time in Linux).

`aliases` compares one replica that serves one alias with one that serves two, in turn.

`start` gives the seconds from the command to the first decoded z-point, ROUNDS times for each server in turn. The first
start of each reads files for the first time; the later ones are those of a warm machine.

`variables` compares the endpoint as it is with each of CHANGES of Serve's variables, in turn: requests/s at 32
connections, the latency of a single connection, p99 / p50 at half load, and the seconds until it answers and has
stopped. --changes names others: each is a list, with commas, of NAME to leave out and NAME=VALUE to set.
"""

import argparse
import http.client
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from serving.runtime.replica import MALLOC_ENV

HERE = Path(__file__).parent
Z_DIM, SIZE = 200, 96
NPY, PNG = "application/x-npy", "image/png"
CONNECTIONS = (1, 8, 32, 128)
REQUEST_KINDS = {"1 z, raw": (1, NPY), "1 z, PNG": (1, PNG), "64 z, raw": (64, NPY)}
RESULT_NAMES = (
    "ceiling", "goals", "aliases", "start", "variables", "zpoint-1", "zpoint-2", "fastapi", "litserve", "bentoml",
)  # fmt: skip
# Of Serve's controller; the others of serving/serve.yaml matter to faults alone.
CHANGES = (
    "RAY_SERVE_ENABLE_HA_PROXY",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED",
    # One of the variables that THROUGHPUT_OPTIMIZED sets, without it and the two that undo others of them.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED,RAY_SERVE_USE_GRPC_BY_DEFAULT,RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE,"
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD=0",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED",
    "RAY_SERVE_HAPROXY_NBTHREAD",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
)
# Starts `zpoint` with the variables of Serve's controller changed: those in the first argument, null to leave one out.
CHANGED_ENV = """
import json, sys
from serving.runtime import deployment
changes, controller_env = json.loads(sys.argv.pop(1)), deployment._controller_env
deployment._controller_env = lambda: {k: v for k, v in (controller_env() | changes).items() if v is not None}
from jobs.cli import main
main()
"""


def save_random(source: str, seed: int) -> None:
    """Save a model with random weights in the folder at the URI `source`."""
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
    """Register a model under ZPOINT_HOME = folder as the champion, once; return the URI of its folder."""
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
    source: str, seconds: float, batch_sizes: Sequence[int] = (1, 8, 32, 64), threads: Sequence[int] = (1, 2)
) -> dict[str, float]:
    """Return z-points/s of the bare decoder called in a loop, for each batch size and number of threads."""
    code = f"""
import json, sys, time
sys.path[:0] = [{str(HERE)!r}]
from serve_peers import open_decoder
import numpy as np, torch
decode, _ = open_decoder({source!r})
rates = {{}}
for threads in {tuple(threads)!r}:
    torch.set_num_threads(threads)
    for n in {tuple(batch_sizes)!r}:
        z = np.random.default_rng(0).standard_normal((n, {Z_DIM})).astype(np.float32)
        for _ in range(10):
            decode(z)
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < {seconds}:
            decode(z)
            calls += 1
        rates[f"{{n}} z, {{threads}} threads"] = calls * n / (time.perf_counter() - start)
print(json.dumps(rates))
"""
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def paced_p99_ratio(source: str, rate: float, seconds: float, processes: int = 2) -> float:
    """Return p99 / p50 of the bare decoder's latency from the due time, at `rate` z-points/s split over processes."""
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
latencies, due = [], time.perf_counter()
end = due + {seconds}
while due < end:
    time.sleep(max(0.0, due - time.perf_counter()))
    decode(z)
    latencies.append(time.perf_counter() - due)
    due += {processes / rate}
print(json.dumps(latencies))
"""
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    decoders = [subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0) for _ in range(processes)]
    pipes: list[tuple[Any, Any]] = [(decoder.stdin, decoder.stdout) for decoder in decoders]
    assert all(stdout.readline() == b"ready\n" for _, stdout in pipes)
    for stdin, _ in pipes:
        stdin.write(b"\n")
    latencies = [latency for decoder in decoders for latency in json.loads(decoder.communicate()[0])]
    return float(np.percentile(latencies, 99) / np.percentile(latencies, 50))


def steal_seconds() -> float:
    """Return the steal time of all cores since boot: what the hypervisor gave to other machines; 0 without one."""
    with open("/proc/stat") as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(
    name: str, source: str, port: int, peers: str, aliases: Sequence[str] = ("champion",),
    changes: Mapping[str, str | None] | None = None,
) -> Iterator[subprocess.Popen]:  # fmt: skip
    """Run the server `name` at 127.0.0.1:port inside the block, which starts once it answers.

    `changes`: variables of Serve's controller to set, None to leave one out.
    """
    if name.startswith("zpoint-"):
        arguments = ["-c", CHANGED_ENV, json.dumps(changes)] if changes else ["-m", "jobs.cli"]
        arguments += ["serve", "--port", str(port), "--replicas", name.partition("-")[2]]
        arguments += [f"--alias={alias}" for alias in aliases]
    else:
        arguments = [str(HERE / "serve_peers.py"), name, source, str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    folders = [str(HERE.parents[1]), *([peers] if name in ("litserve", "bentoml") else [])]
    environment["PYTHONPATH"] = os.pathsep.join(folders)
    process = subprocess.Popen([sys.executable, *arguments], env=environment, start_new_session=True)
    try:
        wait_until_decoding(port, process)
        yield process
    finally:
        process.terminate()  # alone: zpoint stops its endpoint in order while its Ray runs
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_until_decoding(port: int, process: subprocess.Popen, timeout_s: float = 150) -> None:
    deadline, body = time.monotonic() + timeout_s, io.BytesIO()
    np.save(body, np.zeros((1, Z_DIM), np.float32))
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with closing(connection), suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/v1/decode", body.getvalue(), {"Content-Type": NPY, "Accept": NPY})
            if connection.getresponse().status == 200:
                return
        assert process.poll() is None, "the server has ended"
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.05)


def measure(
    port: int, points: int, accept: str, connections: int, seconds: float, rate: float = 0, warm: float = 0.5,
    paths: Sequence[str] = ("/v1/decode",),
) -> dict[str, Any]:  # fmt: skip
    """Run load.py in its own process and return its result. Raises RuntimeError with its error if it fails."""
    options = {"port": port, "points": points, "accept": accept, "connections": connections, "seconds": seconds}
    flags = [f"--{key}={value}" for key, value in (options | {"rate": rate, "warm": warm, "z-dim": Z_DIM}).items()]
    command = [sys.executable, str(HERE / "load.py"), *flags, "--paths", *paths]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"load.py: {process.stderr.strip().splitlines()[-1]}")
    return json.loads(process.stdout.splitlines()[-1])


def measure_all(port: int, seconds: float) -> dict[str, Any]:
    """Measure each kind of request at each number of connections; one z also at half the rate of 32 connections."""
    measure(port, 1, NPY, 64, 2.0)  # warm up batches of all sizes
    results = {
        f"{kind} x {connections}": measure(port, points, accept, connections, seconds)
        for kind, (points, accept) in REQUEST_KINDS.items()
        for connections in CONNECTIONS
    }
    half_rate = results["1 z, raw x 32"]["requests_per_second"] / 2
    return results | {"half load": measure(port, 1, NPY, 32, 2 * seconds, rate=half_rate)}


def measure_goals(source: str, port: int, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Return for each round the throughput relative to the bare decoder on both cores, and p99 / p50 at half load."""
    measure(port, 1, NPY, 64, 2.0)  # warm up batches of all sizes
    names = (
        "1 z x 32", "64 z x 8", "half load, p99 / p50", "the same of the bare decoder", "stolen at half load",
        "half load, requests/s", "half load, p50 in ms", "half load, p99 in ms",
    )  # fmt: skip
    results: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        bare = ceiling(source, seconds, (1, 64), (2,))
        one, many = measure(port, 1, NPY, 32, seconds), measure(port, 64, NPY, 8, seconds)
        rate, steal_before, start = one["requests_per_second"] / 2, steal_seconds(), time.monotonic()
        half = measure(port, 1, NPY, 32, 2 * seconds, rate=rate)
        steal_fraction = (steal_seconds() - steal_before) / (time.monotonic() - start) / (os.cpu_count() or 1)
        values = (
            one["requests_per_second"] / bare["1 z, 2 threads"],
            64 * many["requests_per_second"] / bare["64 z, 2 threads"],
            half["p99_ms"] / half["p50_ms"],
            paced_p99_ratio(source, rate, 2 * seconds),
            steal_fraction,
            half["requests_per_second"],
            half["p50_ms"],
            half["p99_ms"],
        )
        for name, value in zip(names, values, strict=True):
            results[name].append(value)
    return results


def register_second(folder: Path) -> None:
    """Point the alias near-ae to a second version with other weights."""
    from cluster import tracking

    registry = tracking.client()
    if len(registry.search_model_versions(f"name = '{tracking.MODEL_NAME}'")) < 2:
        save_random(f"file://{folder}/second", seed=1)
        registry.create_model_version(tracking.MODEL_NAME, f"file://{folder}/second")
    registry.set_registered_model_alias(tracking.MODEL_NAME, "near-ae", "2")


def measure_aliases(source: str, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Return for each round the requests/s of one z at 32 connections, and the memory of one replica."""
    results: dict[str, list[float]] = {}
    for _ in range(rounds):
        for aliases in (["champion"], ["champion", "near-ae"]):
            port = free_port()
            with server("zpoint-1", source, port, "", aliases) as process:
                for used in (aliases[:1], aliases) if len(aliases) > 1 else (aliases,):
                    paths = [f"/v1/models/{alias}/decode" for alias in used]
                    rate = measure(port, 1, NPY, 32, seconds, warm=3, paths=paths)["requests_per_second"]
                    name = f"requests/s of {len(used)} of {len(aliases)} aliases"
                    results.setdefault(name, []).append(rate)
                results.setdefault(f"MB of a replica with {len(aliases)} aliases", []).append(replica_mb(process.pid))
    return results


def measure_starts(source: str, peers: str, rounds: int) -> dict[str, list[float]]:
    """Return for each server the seconds from its command to the first decoded z-point, in `rounds` starts."""
    names = ["zpoint-1", "fastapi", *(["litserve", "bentoml"] if peers else [])]
    results: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name in names:
            start = time.monotonic()
            with server(name, source, free_port(), peers):
                results.setdefault(f"seconds to the first answer, {name}", []).append(time.monotonic() - start)
    return results


def measure_variables(source: str, seconds: float, rounds: int, changes: Sequence[str]) -> dict[str, list[float]]:
    """Return by round the metrics of the endpoint as it is, and with each of `changes` as --changes takes them."""
    results: dict[str, list[float]] = {}
    for _ in range(rounds):
        for change in ("", *changes):
            pairs = [variable.partition("=") for variable in change.split(",") if variable]
            changed_env = {name: value if equals else None for name, equals, value in pairs}
            port, started = free_port(), time.monotonic()
            with server("zpoint-1", source, port, "", changes=changed_env):
                ready = time.monotonic()
                measure(port, 1, NPY, 64, 2.0)  # warm up batches of all sizes
                many, one = measure(port, 1, NPY, 32, seconds), measure(port, 1, NPY, 1, seconds)
                half = measure(port, 1, NPY, 32, seconds, rate=many["requests_per_second"] / 2)
                stopping = time.monotonic()
            values = {
                "requests/s x 32": many["requests_per_second"],
                "p50 in ms x 1": one["p50_ms"],
                "half load, p99 / p50": half["p99_ms"] / half["p50_ms"],
                "seconds to start": ready - started,
                "seconds to stop": time.monotonic() - stopping,
            }
            for kind, value in values.items():
                results.setdefault(f"{kind}, {change or 'as zpoint serve sets them'}", []).append(value)
    return results


def replica_mb(pid: int) -> float:
    """Return the resident memory of the replica below the process `pid` in MB."""
    from tests.sockets import command_line, descendants

    [replica] = [child for child in descendants(pid) if command_line(child).startswith("ray::ServeReplica")]
    return int(Path(f"/proc/{replica}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def table(folder: Path) -> str:
    """Return Markdown tables of all results in `folder`."""
    results = {
        name: json.loads(path.read_text()) for name in RESULT_NAMES if (path := folder / f"{name}.json").exists()
    }
    lines = []
    in_rounds = [results.pop(kind, {}) for kind in ("goals", "aliases", "start", "variables")]
    for name, values in [item for result in in_rounds for item in result.items()]:
        lines.append(
            f"{name}: median {statistics.median(values):.2f} of {', '.join(f'{value:.2f}' for value in values)}"
        )
    if bare := results.pop("ceiling", None):
        lines += ["| the bare compiled decoder | z-points/s |", "|---|---|"]
        lines += [f"| {name} | {rate:,.0f} |" for name, rate in bare.items()] + [""]
    lines += [f"| request x connections | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    for load in [f"{kind} x {c}" for kind in REQUEST_KINDS for c in CONNECTIONS] + ["half load"]:
        cells = [_cell(server_results[load]) for server_results in results.values()]
        lines.append(f"| {load} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(result: dict[str, Any]) -> str:
    failed = sum(count for status, count in result["statuses"].items() if status != "200") + result["failures"]
    text = f"{result['requests_per_second']:,.0f}/s, {result['p50_ms']:.1f}, {result['p99_ms']:.1f}"
    return f"{text} ({failed} failed)" if failed else text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the model and the results")
    parser.add_argument("--only", nargs="*", choices=RESULT_NAMES, default=RESULT_NAMES)
    parser.add_argument("--peers", default="", help="folder with LitServe and BentoML")
    parser.add_argument("--seconds", type=float, default=4.0, help="duration of each load")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of `goals`, `aliases`, `start`, `variables`")
    parser.add_argument("--changes", nargs="*", default=CHANGES, metavar="NAME[=VALUE],...", help="of `variables`")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that no server is left running
    args.folder.mkdir(parents=True, exist_ok=True)
    os.environ["ZPOINT_HOME"] = str(args.folder.absolute())
    os.environ.update(MALLOC_ENV)  # for the bare decoder and the other servers too
    source = make_model(args.folder.absolute())
    for name in args.only:
        if name == "ceiling":
            result = ceiling(source, args.seconds)
        elif name == "aliases":
            register_second(args.folder.absolute())
            result = measure_aliases(source, args.seconds, args.rounds)
        elif name == "start":
            result = measure_starts(source, args.peers, args.rounds)
        elif name == "variables":
            result = measure_variables(source, args.seconds, args.rounds, args.changes)
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
