"""Jobs on a cluster through Ray Jobs: `zpoint submit JOB ARGS`, `jobs`, `logs` and `stop`.

The job's runtime environment holds the submitter's code, so the cluster runs the same version; third-party packages
must be installed there. Recipes given as YAML files are uploaded too. On a cluster of this machine a job starts in the
folder from which it was submitted, so that relative paths mean the same; elsewhere paths are the cluster's.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from textwrap import fill
from typing import Any
from urllib.parse import urlsplit

from cluster.dashboard import check_answers, connect_dashboard
from cluster.network import has_unix_socket, is_loopback
from cluster.ray_compat import fetch_actors, fetch_session_name
from cluster.ray_connection import SECRETS_FILE, runtime_env
from cluster.settings import EXPORTED_VARIABLES, expand_user, hide_credentials, split_secrets

JOBS = ("ingest", "train", "tune", "study", "claims", "promote")
CLUSTER_DOCTOR = ["doctor", "--cluster"]  # submits itself
STOP_TIMEOUT_S = 15  # for a stopped job to save its state; Ray's default kills it after 3
POLL_INTERVAL_S = 0.3
CHECK_INTERVAL_S = 15.0  # without a line of the log, before the connection is checked: a cut one stays silent
RECONNECT_TIMEOUT_S = 900.0  # for a cluster that does not answer
MAX_RESUBMITS = 3
FINAL_STATUSES = ("SUCCEEDED", "FAILED", "STOPPED")


class LostJobError(RuntimeError):
    """The job's driver was lost with its node; the message says how."""


def print_log(text: str) -> None:
    """Print a part of a job's log to stderr."""
    print(text, end="", file=sys.stderr, flush=True)


def submit(
    argv: list[str], address: str | None = None, wait: bool = False, *, cpus: float = 0, gpus: float = 0,
    variables: Sequence[str] = (), show_log: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Run `zpoint` with `argv` on the cluster; with `wait`, until the job ends; with `show_log`, its log on stderr.

    While it waits, a job whose driver was lost with its node is submitted again, `MAX_RESUBMITS` times: it goes on from
    its last checkpoint. `cpus` and `gpus` are reserved for the driver, which then may run on a worker node.
    `variables`: NAME=VALUE, or the NAME of a variable of this process, for the job's environment.
    Returns id, address, command and status; after waiting also exit_status, what `_describe` returns, and `result`: the
    object that the job printed as its last line, as it does with `--json`, else None.
    Raises ValueError for an unknown job, a missing recipe file, an unset variable, and an address where no Ray
    dashboard answers, RuntimeError if the cluster does not answer any more.
    """
    if argv[:2] != CLUSTER_DOCTOR and (not argv or argv[0] not in JOBS):
        raise ValueError(f"submit takes {', '.join(JOBS)}, not '{argv[0] if argv else ''}'")
    argv = [expand_user(argument) if _is_recipe_file(argument) else argument for argument in argv]
    missing = [argument for argument in argv[1:] if _is_recipe_file(argument) and not Path(argument).is_file()]
    if missing:
        raise ValueError(f"no recipe at {missing[0]}")
    client, url = _connect(address)
    on_this_machine = _runs_on_this_machine(client, url)
    command = shlex.join(["zpoint", *argv])
    environment = _job_runtime_env(on_this_machine)
    named = _parse_variables(variables)
    environment["env_vars"], secrets = split_secrets(environment["env_vars"] | named)
    _print_forwarded(environment["env_vars"], secrets, named)

    def send() -> str:
        job_id = f"{argv[0]}-{datetime.now():%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
        with tempfile.TemporaryDirectory() as working_dir:
            (Path(working_dir) / "id").write_text(job_id)  # Ray keeps one copy of folders with the same content
            client.submit_job(
                entrypoint=_make_entrypoint(argv, Path(working_dir), on_this_machine, secrets),
                submission_id=job_id,
                runtime_env={**environment, "working_dir": working_dir},
                metadata={"command": command},
                entrypoint_num_cpus=cpus or None,
                entrypoint_num_gpus=gpus or None,
            )
        return job_id

    job_id = send()
    result = {"address": url, "command": command}
    if not wait:
        return {"id": job_id, **result, "status": "PENDING"}
    for remaining in reversed(range(MAX_RESUBMITS + 1)):
        try:
            return result | _wait(client, url, job_id, show_log)
        except LostJobError as error:
            if not remaining:
                raise
            lost_id, job_id = job_id, send()
            print(f"zpoint: {error}; submitted again: {lost_id} goes on as {job_id}", file=sys.stderr, flush=True)
    raise AssertionError("unreachable")


def list_jobs(address: str | None = None) -> list[dict[str, Any]]:
    """Return the cluster's submitted jobs, newest first, each as `_describe` returns it."""
    client, _ = _connect(address)
    submitted = [info for info in client.list_jobs() if info.submission_id]
    actors = fetch_actors(client)
    return [_describe(info, actors) for info in sorted(submitted, key=lambda info: info.start_time or 0, reverse=True)]


def job_logs(
    job_id: str, address: str | None = None, follow: bool = False, show: Callable[[str], None] = print_log
) -> str:
    """Return a job's log; with `follow`, wait until the job ends and pass the log to `show` as it grows."""
    client, url = _connect(address)
    with _unknown_job_as_value_error(job_id, url):
        client.get_job_info(job_id)
        return _follow(client, url, job_id, show) if follow else client.get_job_logs(job_id)


def stop_job(job_id: str, address: str | None = None) -> dict[str, Any]:
    """Stop a job (SIGTERM, then SIGKILL), wait up to 20 s for its end, and return its id and status.

    The `exit_status` is 1 if it has not ended, as a job that waits for resources: Ray stops it once its driver starts.
    """
    client, url = _connect(address)
    with _unknown_job_as_value_error(job_id, url):
        client.stop_job(job_id)
        deadline = time.monotonic() + STOP_TIMEOUT_S + 5
        while (status := client.get_job_status(job_id).value) not in FINAL_STATUSES and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)
    if status in FINAL_STATUSES:
        return {"id": job_id, "status": status}
    waiting = "it waits for resources, and is stopped as soon as a node takes it"
    hint = waiting if status == "PENDING" else f"call `zpoint stop {job_id}` again"
    print(f"zpoint: job '{job_id}' has not ended: {hint}", file=sys.stderr)
    return {"id": job_id, "status": status, "exit_status": 1}


def _connect(address: str | None) -> tuple[Any, str]:
    """Return a Ray Jobs client and the URL of its dashboard, which has answered."""

    def make_client(url: str) -> Any:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(url)

    return connect_dashboard(make_client, address)


def _runs_on_this_machine(client: Any, url: str) -> bool:
    """Return True if the Ray at `url` runs here; a loopback URL may be a tunnel to another machine's dashboard."""
    return is_loopback(urlsplit(url).hostname or "") and has_unix_socket(f"/{fetch_session_name(client)}/")


@contextmanager
def _unknown_job_as_value_error(job_id: str, url: str) -> Iterator[None]:
    """Raise ValueError for a job that the cluster does not have; Ray raises RuntimeError with the server's trace."""
    try:
        yield
    except RuntimeError as error:
        if _is_unknown_job(error):
            raise ValueError(f"no job '{job_id}' at {url}; `zpoint jobs` lists them") from error
        raise


def _is_unknown_job(error: Exception) -> bool:
    """Return if Ray's client got HTTP 404; the text of another status may be a trace with any number in it."""
    return str(error).startswith("Request failed with status code 404")


def _parse_variables(variables: Sequence[str]) -> dict[str, str]:
    """Return the variables that --env names, by name. Raises ValueError for a wrong name and an unset variable."""
    named = {}
    for text in variables:
        name, equals, value = text.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"--env takes NAME=VALUE, or the NAME of a variable that is set here, not '{text}'")
        if not equals and name not in os.environ:
            raise ValueError(f"--env {name}: the variable is not set here; set it, or give --env {name}=VALUE")
        named[name] = value if equals else os.environ[name]
    return named


def _print_forwarded(public: dict[str, str], secrets: dict[str, str], named: Iterable[str] = ()) -> None:
    """Print which variables the job gets, not their values, 80 columns wide."""
    names = ", ".join(sorted(public.keys() & {*EXPORTED_VARIABLES, *named}))
    hidden = f"; hidden from Ray's dashboard: {', '.join(sorted(secrets))}" if secrets else ""
    text = f"zpoint: the job gets {names or 'no variables'}{hidden}"
    print(fill(text, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False), file=sys.stderr)


def _make_entrypoint(argv: list[str], working_dir: Path, on_this_machine: bool, secrets: dict[str, str]) -> str:
    """Return the job's shell command; copy recipe files to `working_dir`, the folder in which Ray starts the job.

    The secrets go there too, in a file that the command reads and deletes: Ray shows a job's environment and command.
    """
    words = []
    if secrets:
        variables = secrets | {"ZPOINT_SECRETS": " ".join(secrets)}  # the names, for the job's workers
        lines = [f"export {name}={shlex.quote(text)}\n" for name, text in variables.items()]
        path = working_dir / SECRETS_FILE
        path.touch(0o600, exist_ok=False)  # before it has content; Ray keeps the mode on the node
        path.write_text("".join(lines))
    for argument in argv:
        if _is_recipe_file(argument):
            shutil.copy(argument, working_dir)
            words.append(f'"$uploaded"/{shlex.quote(Path(argument).name)}')
        else:
            words.append(shlex.quote(argument))
    change_folder = f"cd {shlex.quote(os.getcwd())} && " if on_this_machine else ""
    python = shlex.quote(sys.executable) if on_this_machine else "python"
    # -P: import the uploaded code, not a folder `jobs` of the current directory.
    read_secrets = f". ./{SECRETS_FILE}; rm -f {SECRETS_FILE}; " if secrets else ""
    return f"uploaded=$PWD; {read_secrets}{change_folder}exec {python} -P -m jobs.cli {' '.join(words)}"


def _job_runtime_env(on_this_machine: bool) -> dict[str, Any]:
    environment = runtime_env()
    environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] = str(STOP_TIMEOUT_S)
    if not on_this_machine and "ZPOINT_HOME" not in os.environ:
        del environment["env_vars"]["ZPOINT_HOME"]  # its default is a folder of this machine
        if "ZPOINT_STORE" not in os.environ:
            print(
                "zpoint: neither ZPOINT_HOME nor ZPOINT_STORE is set: results stay in the job's folder on the cluster",
                file=sys.stderr,
            )
    return environment


def _is_recipe_file(argument: str) -> bool:
    return argument.endswith((".yaml", ".yml")) and "=" not in argument


def _wait(client: Any, url: str, job_id: str, show_log: bool = True) -> dict[str, Any]:
    """Wait until the job ends, by default with its log on stderr; return its row of `zpoint jobs` with its exit status.

    Raises LostJobError if its driver was lost with its node, RuntimeError if the cluster does not answer any more.
    """
    try:
        log = _follow(client, url, job_id, print_log if show_log else None)
    except KeyboardInterrupt:
        print(f"zpoint: the job goes on: `zpoint logs {job_id}`, `zpoint stop {job_id}`", file=sys.stderr)
        raise
    info = _job_info(client, url, job_id)
    if info.status.value == "FAILED" and info.error_type == "JOB_SUPERVISOR_ACTOR_DIED":
        raise LostJobError(f"the driver of job '{job_id}' was lost with its node or killed there")
    exit_status = 0 if info.status.value == "SUCCEEDED" else 2 if info.driver_exit_code == 2 else 1
    return {**_describe(info, fetch_actors(client)), "result": _parse_result(log), "exit_status": exit_status}


def _parse_result(log: str) -> dict[str, Any] | None:
    last_line = log.rstrip().rpartition("\n")[2]
    with suppress(ValueError):
        return json.loads(last_line) if last_line.startswith("{") else None
    return None


def _follow(client: Any, url: str, job_id: str, show: Callable[[str], None] | None) -> str:
    """Return a job's log once the job has ended; pass it to `show` as it grows, without credentials.

    Connects again when the connection breaks or stays silent while the dashboard does not answer. Raises as `_wait`.
    """
    log = ""
    while True:
        skipped = 0  # characters of the log that the new connection sends from its start
        with suppress(Exception):  # of Ray's client: the connection broke, or the job is unknown
            for chunk in _tail(client, url, job_id):
                fresh = chunk[max(0, len(log) - skipped) :]
                skipped += len(chunk)
                log += fresh
                if show is not None:
                    show(hide_credentials(fresh))
        if _job_info(client, url, job_id).status.value in FINAL_STATUSES:
            return log
        time.sleep(POLL_INTERVAL_S if skipped else 1)  # the log may end a moment before the job


def _tail(client: Any, url: str, job_id: str) -> Iterator[str]:
    """Yield the chunks of a job's log from its start. Raises OSError if none comes and the dashboard is silent too."""
    chunks = client.tail_job_logs(job_id)
    with asyncio.Runner() as runner:  # its end cancels what still waits for a broken connection
        while (text := runner.run(_next_chunk(chunks, url))) is not None:
            yield text


async def _next_chunk(chunks: AsyncIterator[str], url: str) -> str | None:
    chunk = asyncio.ensure_future(anext(chunks, None))
    while not (await asyncio.wait([chunk], timeout=CHECK_INTERVAL_S))[0]:
        check_answers(url)
    return chunk.result()


def _job_info(client: Any, url: str, job_id: str) -> Any:
    """Return Ray's JobDetails of the job; wait up to RECONNECT_TIMEOUT_S for a dashboard that does not answer.

    Raises LostJobError if the cluster does not know the job, as after a restart of its head.
    """
    deadline, broken = time.monotonic() + RECONNECT_TIMEOUT_S, False
    while True:
        try:
            check_answers(url)  # within seconds; Ray's own client would wait for minutes
            info = client.get_job_info(job_id)
        except (OSError, RuntimeError) as error:
            if _is_unknown_job(error):
                raise LostJobError(
                    f"the cluster at {url} does not know job '{job_id}': its head was restarted"
                ) from error
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"no answer from {url} for {RECONNECT_TIMEOUT_S:.0f} s: the job '{job_id}' goes on if the cluster "
                    f"does; `zpoint logs {job_id} --follow` once it answers"
                ) from error
            if not broken:
                broken = True
                reason = getattr(error, "reason", error)
                print(
                    f"zpoint: lost the connection to {url} ({reason}); the job goes on if the cluster does; trying "
                    f"again for {RECONNECT_TIMEOUT_S / 60:.0f} minutes", file=sys.stderr, flush=True,
                )  # fmt: skip
            time.sleep(1)
            continue
        if broken:
            print(f"zpoint: connected again; job '{job_id}' is {info.status.value}", file=sys.stderr, flush=True)
        return info


def _describe(info: Any, actors: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return Ray's JobDetails, whose times are in ms, as a row of `zpoint jobs`; `actors` are those of all jobs."""
    start_ms, end_ms = info.start_time, info.end_time
    return {
        "id": info.submission_id,
        "status": info.status.value,
        "started": datetime.fromtimestamp(start_ms / 1000).isoformat(" ", "seconds") if start_ms else "",
        "seconds": round((end_ms or time.time() * 1000) / 1000 - start_ms / 1000, 1) if start_ms else None,
        "gpu_hours": _hours(info.job_id, actors, "GPU"),
        "core_hours": _hours(info.job_id, actors, "CPU"),
        "entrypoint": (info.metadata or {}).get("command", info.entrypoint),
        "message": (info.message or "").strip().rpartition("\n")[2],
    }


def _hours(job_id: str | None, actors: Iterable[dict[str, Any]], unit: str) -> float:
    """Return for how many hours the actors of a job have held a CPU or GPU, whether busy or not."""
    now_ms = time.time() * 1000
    held_ms = [
        actor["requiredResources"].get(unit, 0) * ((actor["endTime"] or now_ms) - actor["startTime"])
        for actor in actors
        if job_id and actor.get("jobId") == job_id and actor["startTime"]
    ]
    return round(sum(held_ms) / 3_600_000, 6)
