"""The serve command; the commands that query what is served are in ask.py."""

import re
import sys
from typing import Any

from cluster.ray_connection import connect
from cluster.settings import settings
from jobs.train.stopping import interruptible


def serve(alias: str, host: str, port: int, replicas: str = "1") -> dict[str, Any]:
    """Serve the model that `alias` names until Ctrl-C, by `replicas` processes, as in "2" or "1-4".

    Raises ValueError as `serving.runtime.deployment` does.
    """
    from serving.client import Client
    from serving.runtime.deployment import run_until_interrupted, start_endpoint
    from serving.runtime.registry import find_model_version

    bounds = _replicas(replicas)
    find_model_version(alias)  # a missing alias is told before Ray starts
    connect(niceness=0)  # somebody waits for what these workers do; Ray's daemons would go before them
    with interruptible():
        served = start_endpoint(alias, host, port, replicas=bounds)
        print(f"zpoint: serving {served.model} version {served.version} at {served.url}", file=sys.stderr)
        print(f"zpoint: look at it there in a browser; routes at {served.url}/docs", file=sys.stderr)
        print("zpoint: stop with Ctrl-C", file=sys.stderr, flush=True)
        with Client(served.url, settings().token) as client:
            run_until_interrupted(_Teller(client, served.version))
    return {"url": served.url, "model": served.model, "version": served.version, "stopped": True}


class _Teller:
    """Tells on stderr when the endpoint has followed the alias, or has refused to."""

    def __init__(self, client: Any, version: str):
        self._client, self._told, self._seen = client, (version, None), (version, None)

    def __call__(self) -> None:
        try:
            model = self._client.model()
        except ValueError:  # it will answer again, or whoever asks it is told why not
            return
        now, refused = (model["version"], model["refused"]), ""
        # Twice, since replicas do not move in the same moment.
        if now == self._seen != self._told:
            if model["refused"]:
                refused = f"; refused version {model['refused']['version']}: {model['refused']['reason']}"
            print(f"zpoint: serving version {model['version']}{refused}", file=sys.stderr, flush=True)
            self._told = now
        self._seen = now


def _replicas(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise ValueError(f"--replicas takes a number, or the least and the most as in 1-4, not '{text}'")
    return least, most
