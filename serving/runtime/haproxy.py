"""A wrapper that Ray Serve runs as its haproxy: it edits the configuration that Ray wrote, then runs haproxy itself.

The file that `write_wrapper` writes runs this module as a script; it imports only the standard library: 10 ms.

- Ray's statistics and metrics listen on every interface; the edited ones on loopback.
- Ray serves /-/healthz and /-/routes to everybody; the edited configuration answers 404 to all of /-/.
- Ray lets a client take an hour for its request line and headers; the edited configuration 10 s.
- Ray forwards a request before its body has arrived, and cannot send it to another replica when that one dies; the
  edited configuration waits for the body, or the first 16 kB of it.
- If no replica answers, Ray answers 500 in plain text; the edited configuration 503 with Retry-After, as the app does.
- While no replica is known, at the start, Ray answers 404, as its Python proxy does; the edited configuration 503.
- If HAProxy reaches no replica, Serve's Python proxy answers, at a fraction of the speed and without a word; the edited
  configuration says so in the response header FALLBACK_HEADER.
- After a SIGKILL of Ray its haproxy would run on and hold the port; the wrapped one ends with its parent.

It can go when Serve has options for these (Ray 2.60 has none: ray/serve/_private/haproxy_templates.py).
"""

import ctypes
import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
HIDE_SYSTEM_ROUTES = "    http-request return status 404 if { path_beg /-/ }"
FALLBACK_HEADER = "x-zpoint-fallback"
MARK_FALLBACK = f"    http-response set-header {FALLBACK_HEADER} python-proxy if {{ srv_name -m beg SERVE_PROXY }}"
# Every answer of the app has the header X-Zpoint-Model, its 404 too.
NOT_STARTED = (
    "    http-response return status 503 default-errorfiles if { status 404 } !{ res.hdr(x-zpoint-model) -m found }"
)
CLIENT_LIMITS = "    timeout http-request 10s\n    option http-buffer-request"


def write_wrapper(folder: Path, binary: str) -> Path:
    """Write an executable into `folder` that runs this module before `binary`; for RAY_SERVE_HAPROXY_BINARY_PATH."""
    folder.mkdir(exist_ok=True)
    script = folder / "haproxy"
    script.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-I", "-S", __file__, binary])} "$@"\n')
    script.chmod(0o700)
    return script


def edit_config(config: str, errors: Path) -> str:
    """Return Ray's haproxy configuration with the edits above; `errors` is the folder of `write_error_files`.

    Raises RuntimeError naming the pattern if the configuration does not contain what an edit replaces.
    """
    if HIDE_SYSTEM_ROUTES in config:  # edited before a reload
        return config
    config = listen_on_loopback(config)
    config = _substitute(r"^(\s+errorfile (\d+)) .*$", rf"\g<1> {errors}/\g<2>.http", config, count=3)
    config = _substitute(
        r"^(backend default_backend\n\s+http-request return) status 404 .*$",
        r"\g<1> status 503 default-errorfiles",
        config,
    )
    rules = f"{HIDE_SYSTEM_ROUTES}\n{NOT_STARTED}\n{MARK_FALLBACK}"
    config = _substitute(r"^(frontend http_frontend\n\s+bind .*)$", rf"\g<1>\n{rules}", config)
    return _substitute(r"^(defaults\n\s+mode http)$", rf"\g<1>\n{CLIENT_LIMITS}", config)


def listen_on_loopback(config: str) -> str:
    """Return an haproxy configuration with the listeners `prometheus` and `stats` on 127.0.0.1."""
    for section in ("frontend prometheus", "listen stats"):
        config = _substitute(rf"^({section}\n\s+bind )(?:\*|127\.0\.0\.1)?:", r"\g<1>127.0.0.1:", config)
    return config


def write_error_files(folder: Path) -> None:
    """Write 502.http, 503.http and 504.http into `folder`: haproxy's responses if no replica answers."""
    for status, title in (("502", "Bad Gateway"), ("503", "Service Unavailable"), ("504", "Gateway Timeout")):
        # The client sees 503 for all of them, since it had better retry.
        detail = f"no replica answers now: {title.lower()}"
        body = json.dumps({"status": 503, "title": "Service Unavailable", "detail": detail})
        head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 2"
        text = f"{head}\r\nCache-Control: no-store\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        (folder / f"{status}.http").write_bytes(text.encode())


def main(binary: str, *arguments: str) -> None:
    if "-f" in arguments:
        config = Path(arguments[arguments.index("-f") + 1])
        write_error_files(config.parent)
        config.write_text(edit_config(config.read_text(), config.parent))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, *arguments])


def _substitute(pattern: str, replacement: str, config: str, count: int = 1) -> str:
    edited, matches = re.subn(pattern, replacement, config, flags=re.MULTILINE)
    if matches != count:
        raise RuntimeError(
            f"Ray's haproxy configuration contains {pattern!r} {matches} times, not {count}: "
            "Ray has changed it, so zpoint cannot secure it; install the Ray version that zpoint pins"
        )
    return edited


if __name__ == "__main__":
    main(*sys.argv[1:])
