"""What Ray Serve is told to run as its haproxy: haproxy itself, with some faults of that set-up mended.

Run as a script by the file that `wrap` writes; imports nothing but the standard library, and costs 10 ms.

- Ray's configuration has statistics and metrics listen on every interface: here on loopback only.
- It serves /-/healthz and /-/routes to everybody: here only what the app itself serves.
- It lets a client take an hour for its request line and headers: here 10 seconds.
- It sends a request on before its body is there, and can then not give it to another replica when that one dies: here
  it waits for the body, or the first 16 kB of it.
- Where no replica answers it says 500 in plain text: here a 503 that says when to try again, as the app does.
- An haproxy whose Ray died by SIGKILL would stay for ever and hold the port: here it ends with its parent.
"""

import ctypes
import json
import os
import re
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
HIDDEN = "    http-request return status 404 if { path_beg /-/ }"
DEFAULTS = "    timeout http-request 10s\n    option http-buffer-request"


def wrap(folder: Path, binary: str) -> Path:
    """An executable in `folder` that runs this file before `binary`; for RAY_SERVE_HAPROXY_BINARY_PATH."""
    script = folder / "haproxy"
    script.write_text(f"#!/bin/sh\nexec '{sys.executable}' -I -S '{__file__}' '{binary}' \"$@\"\n")
    script.chmod(0o700)
    return script


def mend(config: str, errors: Path) -> str:
    """An haproxy configuration of Ray's without the faults above; `errors` is the folder of `write_errors`."""
    if HIDDEN in config:  # by this very function, before a reload
        return config
    config = on_loopback(config)
    config = re.sub(r"(?m)^(\s+errorfile (\d+)) .*$", rf"\g<1> {errors}/\g<2>.http", config)
    config = re.sub(r"(?m)^(frontend http_frontend\n\s+bind .*)$", rf"\g<1>\n{HIDDEN}", config)
    return re.sub(r"(?m)^(defaults\n\s+mode http)$", rf"\g<1>\n{DEFAULTS}", config)


def write_errors(folder: Path) -> None:
    """The files 502.http, 503.http and 504.http in `folder`: what haproxy answers where no replica does."""
    for status, title in (("502", "Bad Gateway"), ("503", "Service Unavailable"), ("504", "Gateway Timeout")):
        # All of them are 503 to a client, which had better try again.
        detail = f"no replica answers now: {title.lower()}"
        body = json.dumps({"status": 503, "title": "Service Unavailable", "detail": detail})
        head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 2"
        text = f"{head}\r\nCache-Control: no-store\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        (folder / f"{status}.http").write_bytes(text.encode())


def on_loopback(config: str) -> str:
    """An haproxy configuration of Ray's with the listeners `prometheus` and `stats` on 127.0.0.1."""
    return re.sub(r"(?m)^((?:frontend prometheus|listen stats)\n\s+bind )\*?:", r"\g<1>127.0.0.1:", config)


def main(binary: str, *arguments: str) -> None:
    if "-f" in arguments:
        config = Path(arguments[arguments.index("-f") + 1])
        write_errors(config.parent)
        config.write_text(mend(config.read_text(), config.parent))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
