"""The serve command; jobs/commands/client.py has the commands that query its endpoint."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.ray_connection import connect
from cluster.settings import settings
from cluster.signals import interruptible


def serve(
    aliases: Sequence[str], host: str, port: int, replicas: str = "1", *,
    cors_origins: Sequence[str] = (), access_log: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Serve the model versions of `aliases` until Ctrl-C, with a number of replicas as in "2" or a range as in "1-4".

    Raises ValueError as `serving.runtime.deployment` does, and OSError if `access_log` cannot be written.
    """
    from serving.client import Client
    from serving.runtime.deployment import check_address, exporter_urls, run_until_interrupted, start_endpoint
    from serving.runtime.registry import find_model_versions
    from serving.runtime.replica import ReplicaOptions

    if access_log:
        access_log = os.path.abspath(access_log)  # replicas have another working directory
        open(access_log, "a").close()
    options = ReplicaOptions(tuple(cors_origins), access_log)
    replica_range = parse_replicas(replicas)
    check_address(host, port)  # before the seconds that Ray takes
    with ThreadPoolExecutor(1) as pool:  # the import of MLflow and the start of Ray take seconds each
        versions = pool.submit(find_model_versions, aliases)
        connect(niceness=0)  # clients wait for these workers; at a higher niceness Ray's daemons would run first
        versions.result()  # raises for an unknown alias
    with interruptible():
        endpoint = start_endpoint(aliases, host, port, replicas=replica_range, options=options)
        models = ", ".join(f"{v.name} version {v.version} ({v.alias})" for v in endpoint.versions)
        print(f"zpoint: serving {models} at {endpoint.url}", file=sys.stderr)
        print(f"zpoint: open it in a browser; its routes are at {endpoint.url}/docs", file=sys.stderr)
        if replica_range[1] > 1:
            targets = " ".join(exporter_urls()) or "exported with RAY_enable_metrics_collection=1"
            print(f"zpoint: /metrics is of the replica that answers; of all: {targets}", file=sys.stderr)
        print("zpoint: stop it with Ctrl-C", file=sys.stderr, flush=True)
        with Client(endpoint.url, settings().token) as client:
            run_until_interrupted(_ModelReporter(client, {v.alias: v.version for v in endpoint.versions}))
    first = endpoint.versions[0]
    return {"url": endpoint.url, "model": first.name, "version": first.version, "stopped": True}


class _ModelReporter:
    """Print to stderr each change of an alias' served version, and each version that the endpoint refused."""

    def __init__(self, client: Any, versions: Mapping[str, str]):
        self._client = client
        # Of each alias the served version, and the refused one with the reason.
        self._printed = self._previous = {alias: (version, None) for alias, version in versions.items()}

    def __call__(self) -> None:
        try:
            models = self._client.models()
        except ValueError:  # no response at the moment; the next call tries again
            return
        current = {model["alias"]: (model["version"], model["refused"]) for model in models}
        for alias, state in current.items():
            # Replicas swap one after the other: only two equal responses in a row are a change.
            if state == self._previous[alias] != self._printed[alias]:
                version, refused = state
                suffix = f"; refused version {refused['version']}: {refused['reason']}" if refused else ""
                print(f"zpoint: serving version {version} ({alias}){suffix}", file=sys.stderr, flush=True)
                self._printed[alias] = state
        self._previous = current


def parse_replicas(text: str) -> tuple[int, int]:
    """Return the (min, max) replicas of "2" or "1-4". Raises ValueError for another text."""
    match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    minimum, maximum = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= minimum <= maximum:
        raise ValueError(f"--replicas takes a number, or a minimum and a maximum as in 1-4, not '{text}'")
    return minimum, maximum
