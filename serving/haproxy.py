"""What Ray Serve is told to run as its haproxy: haproxy itself, with two faults of that set-up mended.

Run as a script by the file that `wrap` writes; imports nothing but the standard library, and costs 10 ms.

- Ray's configuration has statistics and metrics listen on every interface: here on loopback only.
- An haproxy whose Ray died by SIGKILL would stay for ever and hold the port: here it ends with its parent.
"""

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def wrap(folder: Path, binary: str) -> Path:
    """An executable in `folder` that runs this file before `binary`; for RAY_SERVE_HAPROXY_BINARY_PATH."""
    script = folder / "haproxy"
    script.write_text(f"#!/bin/sh\nexec '{sys.executable}' -I -S '{__file__}' '{binary}' \"$@\"\n")
    script.chmod(0o700)
    return script


def on_loopback(config: str) -> str:
    """An haproxy configuration of Ray's with the listeners `prometheus` and `stats` on 127.0.0.1."""
    return re.sub(r"(?m)^((?:frontend prometheus|listen stats)\n\s+bind )\*?:", r"\g<1>127.0.0.1:", config)


def main(binary: str, *arguments: str) -> None:
    if "-f" in arguments:
        config = Path(arguments[arguments.index("-f") + 1])
        config.write_text(on_loopback(config.read_text()))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
