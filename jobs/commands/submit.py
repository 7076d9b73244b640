"""Jobs on a cluster through Ray Jobs: `zpoint submit JOB ARGS`, `jobs`, `logs` and `stop`.

The code travels with the job, so the cluster runs the submitter's version; what it imports from others must
be installed there. Recipes given as YAML files travel too. On a cluster of this machine a job starts in the
folder from which it was submitted, so that relative paths mean the same; elsewhere paths are the cluster's.
"""

import asyncio
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from cluster.ray_connection import dashboard_url, is_loopback, ray_api_address, runtime_env, use_token
from cluster.settings import quiet_environment, settings

JOBS = ("ingest", "train", "tune", "study", "claims", "promote")
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ANSWER_SECONDS = 5
STOP_SECONDS = 15  # for a stopped job to save where it is; Ray would kill it after 3
OVER = ("SUCCEEDED", "FAILED", "STOPPED")


def submit(argv: list[str], address: str | None = None, wait: bool = False) -> dict[str, Any]:
    """Send `zpoint` with `argv` to the cluster; with `wait`, follow its log on stderr to the job's end.

    Gives id, address, command, status and, after waiting, the exit_status too. Raises ValueError for what is
    no job, for a recipe file that is not there, and for an address where no Ray answers.
    """
    if not argv or argv[0] not in JOBS:
        raise ValueError(f"submit takes {', '.join(JOBS)}, not '{argv[0] if argv else ''}'")
    missing = [word for word in argv[1:] if _is_yaml(word) and not Path(word).is_file()]
    if missing:
        raise ValueError(f"no recipe at {missing[0]}")
    client, url = _client(address)
    here = is_loopback(urlsplit(url).hostname or "")
    job = f"{argv[0]}-{datetime.now():%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    with tempfile.TemporaryDirectory() as luggage:
        entrypoint = _pack(argv, Path(luggage), here)
        client.submit_job(
            entrypoint=entrypoint,
            submission_id=job,
            runtime_env={**_environment(here), "working_dir": luggage},
            metadata={"command": shlex.join(["zpoint", *argv])},
        )
    result = {"id": job, "address": url, "command": shlex.join(["zpoint", *argv]), "status": "PENDING"}
    return result | _wait(client, job) if wait else result


def list_jobs(address: str | None = None) -> list[dict[str, Any]]:
    """The cluster's submitted jobs, newest first: id, status, started, seconds, entrypoint, message."""
    client, _ = _client(address)
    found = [info for info in client.list_jobs() if info.submission_id]
    return [_row(info) for info in sorted(found, key=lambda info: info.start_time or 0, reverse=True)]


def job_logs(job: str, address: str | None = None, follow: bool = False) -> str:
    """A job's log; with `follow`, shown on stderr as it grows until the job is over."""
    client, url = _client(address)
    with _known(job, url):
        client.get_job_info(job)
        return "".join(_follow(client, job)) if follow else client.get_job_logs(job)


def stop_job(job: str, address: str | None = None) -> dict[str, Any]:
    """Ask a job to end (SIGTERM, then SIGKILL) and wait for that a while; gives its id and status."""
    client, url = _client(address)
    with _known(job, url):
        client.stop_job(job)
        until = time.monotonic() + STOP_SECONDS + 5
        while (status := client.get_job_status(job).value) not in OVER and time.monotonic() < until:
            time.sleep(0.3)
    return {"id": job, "status": status}


def _client(address: str | None) -> tuple[Any, str]:
    """A Ray Jobs client and the URL that it speaks to, which is known to answer."""
    quiet_environment()
    address = address or settings().ray_address
    if address in ("", "auto", "local"):
        address = DEFAULT_ADDRESS
    elif "://" not in address:
        address = dashboard_url(address)
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"the address takes http://host:8265 or host:6379, not '{address}'")
    try:
        urlopen(f"{address.rstrip('/')}/api/version", timeout=ANSWER_SECONDS).close()
    except HTTPError as error:
        if error.code not in (401, 403):
            raise ValueError(f"what answers at {address} is no Ray dashboard (HTTP {error.code})") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ValueError(f"no Ray dashboard answers at {address}: {reason}") from error
    use_token(parts.hostname)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for noisy in (
        "dashboard.modules.job.sdk",
        "dashboard.modules.dashboard_sdk",
        "_private.runtime_env.packaging",
    ):
        logging.getLogger(f"ray.{noisy}").setLevel(logging.WARNING)
    with ray_api_address(address):
        try:
            return JobSubmissionClient(address), address
        except AuthenticationError as error:
            raise ValueError(
                f"the cluster at {address} refuses the token: set RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN"
            ) from error


@contextmanager
def _known(job: str, url: str) -> Iterator[None]:
    """Say plainly that there is no such job, where Ray raises a RuntimeError with a trace."""
    try:
        yield
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            raise ValueError(f"no job '{job}' at {url}; `zpoint jobs` lists them") from error
        raise


def _pack(argv: list[str], luggage: Path, here: bool) -> str:
    """The job's shell command. Recipe files are copied to `luggage`, the folder where Ray starts the job."""
    words = []
    for word in argv:
        if _is_yaml(word):
            shutil.copy(word, luggage)
            words.append(f'"$luggage"/{shlex.quote(Path(word).name)}')
        else:
            words.append(shlex.quote(word))
    enter = f"luggage=$PWD; cd {shlex.quote(os.getcwd())} && " if here else "luggage=$PWD; "
    # -P: the code that travelled, not a folder `jobs` that lies there by chance.
    return f"{enter}exec {shlex.quote(sys.executable) if here else 'python'} -P -m jobs.cli {' '.join(words)}"


def _environment(here: bool) -> dict[str, Any]:
    made = runtime_env()
    made["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] = str(STOP_SECONDS)
    if not here and "ZPOINT_HOME" not in os.environ:
        del made["env_vars"]["ZPOINT_HOME"]  # this machine's folder means nothing there
        if "ZPOINT_STORE" not in os.environ:
            print(
                "zpoint: neither ZPOINT_HOME nor ZPOINT_STORE is set: results stay in the job's folder there",
                file=sys.stderr,
            )
    return made


def _is_yaml(word: str) -> bool:
    return word.endswith((".yaml", ".yml")) and "=" not in word


def _wait(client: Any, job: str) -> dict[str, Any]:
    try:
        for _ in _follow(client, job):
            pass
    except KeyboardInterrupt:
        print(f"zpoint: the job goes on: `zpoint logs {job}`, `zpoint stop {job}`", file=sys.stderr)
        raise
    info = client.get_job_info(job)
    while info.status.value not in OVER:  # the log may end a moment earlier
        time.sleep(0.3)
        info = client.get_job_info(job)
    succeeded = info.status.value == "SUCCEEDED"
    return {**_row(info), "exit_status": 0 if succeeded else 2 if info.driver_exit_code == 2 else 1}


def _follow(client: Any, job: str) -> Iterator[str]:
    """The pieces of a job's log as they come, also shown on stderr."""
    loop = asyncio.new_event_loop()
    pieces = client.tail_job_logs(job)
    try:
        while True:
            piece = loop.run_until_complete(anext(pieces))
            print(piece, end="", file=sys.stderr, flush=True)
            yield piece
    except StopAsyncIteration:
        pass
    finally:
        loop.run_until_complete(pieces.aclose())
        loop.close()


def _row(info: Any) -> dict[str, Any]:
    began, ended = info.start_time, info.end_time
    return {
        "id": info.submission_id,
        "status": info.status.value,
        "started": datetime.fromtimestamp(began / 1000).isoformat(" ", "seconds") if began else "",
        "seconds": round((ended or time.time() * 1000) / 1000 - began / 1000, 1) if began else None,
        "entrypoint": (info.metadata or {}).get("command", info.entrypoint),
        "message": (info.message or "").strip().rpartition("\n")[2],
    }
