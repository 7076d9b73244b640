"""The serve command; jobs/commands/client.py has the commands that query its endpoint."""

import re
import sys
from typing import Any

from cluster.ray_connection import connect
from cluster.settings import settings
from jobs.train.stopping import interruptible


def serve(alias: str, host: str, port: int, replicas: str = "1") -> dict[str, Any]:
    """Serve the model version of `alias` until Ctrl-C, with a number of replicas as in "2" or a range as in "1-4".

    Raises ValueError as `serving.runtime.deployment` does.
    """
    from serving.client import Client
    from serving.runtime.deployment import run_until_interrupted, start_endpoint
    from serving.runtime.registry import find_model_version

    replica_range = _parse_replicas(replicas)
    find_model_version(alias)  # fails before Ray starts if there is no such alias
    connect(niceness=0)  # clients wait for these workers; at a higher niceness Ray's daemons would run first
    with interruptible():
        endpoint = start_endpoint(alias, host, port, replicas=replica_range)
        print(f"zpoint: serving {endpoint.model} version {endpoint.version} at {endpoint.url}", file=sys.stderr)
        print(f"zpoint: open it in a browser; its routes are at {endpoint.url}/docs", file=sys.stderr)
        print("zpoint: stop it with Ctrl-C", file=sys.stderr, flush=True)
        with Client(endpoint.url, settings().token) as client:
            run_until_interrupted(_ModelReporter(client, endpoint.version))
    return {"url": endpoint.url, "model": endpoint.model, "version": endpoint.version, "stopped": True}


class _ModelReporter:
    """Print to stderr each change of the served version, and each version that the endpoint refused."""

    def __init__(self, client: Any, version: str):
        self._client = client
        self._printed = self._previous = (version, None)  # served version; refused version and the reason

    def __call__(self) -> None:
        try:
            model = self._client.model()
        except ValueError:  # no response at the moment; the next call tries again
            return
        current = (model["version"], model["refused"])
        # Replicas swap one after the other: only two equal responses in a row are a change.
        if current == self._previous != self._printed:
            refused = model["refused"]
            suffix = f"; refused version {refused['version']}: {refused['reason']}" if refused else ""
            print(f"zpoint: serving version {model['version']}{suffix}", file=sys.stderr, flush=True)
            self._printed = current
        self._previous = current


def _parse_replicas(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    minimum, maximum = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= minimum <= maximum:
        raise ValueError(f"--replicas takes a number, or a minimum and a maximum as in 1-4, not '{text}'")
    return minimum, maximum
