"""The lock of a run: one owner, lost with its process, on a disk and on S3."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from cluster import lock
from cluster.lock import LockedError, hold_lock, is_locked

HOLD = """
import sys
from cluster.lock import hold_lock
with hold_lock(sys.argv[1], "run 'x' is being trained", "give another name=..."):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def start_owner() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a process that holds the lock at a URI until its stdin is closed."""
    processes: list[subprocess.Popen[str]] = []

    def start(uri: str) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes.append(process := subprocess.Popen([sys.executable, "-c", HOLD, uri], **pipes))
        assert process.stdout
        assert process.stdout.readline() == "locked\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(params=["disk", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URI of a lock on a disk and on S3."""
    return f"{tmp_path if request.param == 'disk' else request.getfixturevalue('s3')}/locks/run-x"


def hold(uri: str):
    return hold_lock(uri, "run 'x' is being trained", "give another name=...")


class Clock:
    """Stands for `time` in cluster.lock: `sleep` takes no time and calls `sleeping`."""

    time_ns = staticmethod(time.time_ns)

    def __init__(self) -> None:
        self.seconds, self.sleeping = 1000.0, lambda: None

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.sleeping()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(lock, "time", clock := Clock())
    return clock


@pytest.fixture
def no_waiting(clock: Clock) -> None:
    """Fail if a lease is awaited."""
    clock.sleeping = lambda: pytest.fail("a lease is awaited")


def put_owner(uri: str, **changes: object) -> None:
    """Write the lease of a process as this one, with `changes`."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=json.dumps(lock._this_process() | changes).encode())


def read_owner(uri: str) -> dict:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return json.loads(boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read())


@pytest.mark.usefixtures("no_waiting")
def test_second_process_is_refused_by_the_name_of_the_first(uri: str, start_owner):
    owner = start_owner(uri)
    with pytest.raises(LockedError) as error, hold(uri):
        pass
    assert re.sub(r"since \d\d:\d\d:", "since HH:MM:", str(error.value)) == (
        f"run 'x' is being trained by pid {owner.pid} on host {socket.gethostname()} since HH:MM: wait for it, "
        f"stop it with `kill {owner.pid}`, or give another name=..."
    )
    owner.communicate()  # closes its stdin: it ends as it should
    with hold(uri):
        pass


@pytest.mark.parametrize("reaped", [True, False])
@pytest.mark.usefixtures("no_waiting")
def test_killed_process_loses_the_lock_at_once(uri: str, start_owner, reaped: bool):
    """Also if its parent has not reaped it: a zombie writes nothing."""
    owner = start_owner(uri)
    owner.kill()
    os.waitid(os.P_PID, owner.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
    with hold(uri):
        pass


def test_the_lock_is_seen_while_its_owner_lives(uri: str, start_owner):
    assert not is_locked(uri)
    owner = start_owner(uri)
    assert is_locked(uri)
    owner.kill()
    owner.wait()
    assert not is_locked(uri)
    with hold(uri):
        assert is_locked(uri)
    assert not is_locked(uri)


@pytest.mark.usefixtures("no_waiting")
def test_lease_of_a_process_whose_pid_another_has_is_free(s3: str):
    put_owner(uri := f"{s3}/locks/run-x", started="1")  # this process, which runs, started at another time
    with hold(uri):
        pass


def test_threads_of_one_process_exclude_each_other(uri: str):
    with hold(uri):
        with pytest.raises(LockedError, match=f"by pid {os.getpid()} "), hold(uri):
            pass
        with pytest.raises(LockedError), hold(uri):
            pass  # the refused one has not freed it
    with hold(uri):
        pass


def test_of_many_at_once_one_gets_the_lock(uri: str):
    results, barrier, done = [], threading.Barrier(6), threading.Event()

    def take() -> None:
        barrier.wait()
        try:
            with hold(uri):
                results.append("held")
                done.wait(120)
        except LockedError:
            results.append("refused")

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    while len(results) < 6:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held"] + ["refused"] * 5


def test_nothing_is_left_behind(uri: str, tmp_path: Path, request: pytest.FixtureRequest):
    with hold(uri):
        pass
    assert list(tmp_path.iterdir()) == []
    if uri.startswith("s3"):
        assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket=uri.split("/")[2])


def test_file_system_without_locks_is_used_with_a_warning(tmp_path: Path, monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise OSError(lock.NO_LOCKS[0], "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with hold(f"{tmp_path}/locks/run-x"):
        assert "the file system has no locks: start no second process on it" in caplog.text


def test_full_disk_is_named_by_the_lock(tmp_path: Path):
    """RLIMIT_FSIZE of 0 refuses each byte, as a full disk does."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))" + HOLD
    command = [sys.executable, "-c", code, str(tmp_path / "locks" / "run-x")]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.stderr.rstrip().endswith(f"OSError: [Errno 27] File too large: '{tmp_path}/locks/run-x'")
    assert list(tmp_path.iterdir()) == []


def test_lease_of_a_process_that_died_elsewhere_runs_out(s3: str, clock: Clock, caplog):
    put_owner(uri := f"{s3}/locks/run-x", machine="another", pid=77)
    started = clock.seconds
    with hold(uri):
        assert 60 < clock.seconds - started <= 62
    assert "is being trained by pid 77 on host" in caplog.text
    assert "waiting up to 60 s until it renews its lease" in caplog.text


def test_the_lock_of_a_process_elsewhere_is_seen_until_its_lease_has_run_out(s3: str, monkeypatch: pytest.MonkeyPatch):
    put_owner(uri := f"{s3}/locks/run-x", machine="another")
    assert is_locked(uri)
    monkeypatch.setattr(lock, "LEASE_S", -1.0)
    assert not is_locked(uri)


def test_a_lock_that_cannot_be_read_counts_as_held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert is_locked(f"{tmp_path}/file/locks/run-x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert is_locked("s3://bucket/locks/run-x")


def test_lease_that_is_renewed_elsewhere_is_refused(s3: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, wait_until):
    uri = f"{s3}/locks/run-x"
    monkeypatch.setattr(lock, "RENEW_S", 0.01)
    with hold(uri):
        monkeypatch.setattr(lock, "_machine", lambda: "another")

        def wait_for_a_renewal() -> None:
            renewed = read_owner(uri)["renewed"]
            wait_until(lambda: read_owner(uri)["renewed"] != renewed)

        clock.sleeping = wait_for_a_renewal
        with pytest.raises(LockedError), hold(uri):
            pass


def test_lease_that_is_renewed_while_the_waiting_process_sleeps_long_is_refused(s3: str, clock: Clock):
    """As a laptop does that waits for a lease: on its clock, the lease has run out."""
    put_owner(uri := f"{s3}/locks/run-x", machine="another")

    def sleep_long() -> None:
        clock.seconds += 1000
        put_owner(uri, machine="another", renewed=clock.seconds)

    clock.sleeping = sleep_long
    with pytest.raises(LockedError), hold(uri):
        pass


def test_lease_that_another_process_has_taken_over_is_left_to_it(s3: str):
    with hold(uri := f"{s3}/locks/run-x"):
        put_owner(uri, machine="another", pid=77)
    assert read_owner(uri)["pid"] == 77


@pytest.mark.usefixtures("no_waiting")
def test_lease_whose_first_response_was_lost_is_its_writers(s3: str, monkeypatch: pytest.MonkeyPatch):
    write, lost = lock._Lease.write, []

    def lose_the_first_response(lease: lock._Lease, etag: str) -> bool:
        written = write(lease, etag)
        if not lost:
            lost.append(lease)
            return False  # botocore has sent the request again, which got a 412
        return written

    monkeypatch.setattr(lock._Lease, "write", lose_the_first_response)
    with hold(uri := f"{s3}/locks/run-x"):
        with pytest.raises(LockedError), hold(uri):
            pass
        assert read_owner(uri)["id"] == lost[0].owner["id"]


def test_lease_that_is_not_renewed_for_long_is_logged_once(s3: str, monkeypatch, caplog, wait_until):
    monkeypatch.setattr(lock, "RENEW_S", 0.01)
    monkeypatch.setattr(lock, "LEASE_S", 0.1)
    failed: list[str] = []

    def fail(_: lock._Lease, etag: str) -> bool:
        failed.append(etag)
        raise PermissionError("ExpiredToken")

    with hold(f"{s3}/locks/run-x"):
        monkeypatch.setattr(lock._Lease, "write", fail)
        wait_until(lambda: "run-x has not been renewed for" in caplog.text)
        count = len(failed)
        wait_until(lambda: len(failed) > count + 2)
    assert caplog.text.count("has not been renewed") == 1
    assert "another process may take it: ExpiredToken" in caplog.text


@pytest.mark.usefixtures("clock")
def test_owner_that_was_taken_for_dead_stops(s3: str, monkeypatch: pytest.MonkeyPatch, caplog):
    """As a process does that was suspended longer than its lease."""
    uri, stopped = f"{s3}/locks/run-x", threading.Event()
    monkeypatch.setattr("os._exit", lambda status: stopped.set())
    monkeypatch.setattr(lock, "RENEW_S", 0.01)
    write, written = lock._Lease.write, []

    def write_once(lease: lock._Lease, etag: str) -> bool:  # a suspended process does not renew its lease
        if lease in written:
            return True
        written.append(lease)
        return write(lease, etag)

    monkeypatch.setattr(lock._Lease, "write", write_once)
    with hold(uri):
        monkeypatch.setattr(lock, "_machine", lambda: "a third")
        with hold(uri):
            assert stopped.wait(60)
        assert "run-x was taken over by pid" in caplog.text


@pytest.fixture
def s3_put_fails(s3: str) -> Iterator[Callable[[str, int], None]]:
    """Return a function that lets each PUT to S3 fail with an error code and an HTTP status."""
    from botocore.exceptions import ClientError

    boto3.setup_default_session()
    assert boto3.DEFAULT_SESSION

    def fail(code: str, status: int) -> None:
        def refuse(**_: object) -> None:
            response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise ClientError(response, "PutObject")  # pyright: ignore[reportArgumentType]

        boto3.DEFAULT_SESSION.events.register("before-parameter-build.s3.PutObject", refuse)

    yield fail
    boto3.setup_default_session()


def test_server_without_conditional_writes_is_used_with_a_warning(s3: str, s3_put_fails, caplog):
    s3_put_fails("NotImplemented", 501)
    with hold(f"{s3}/locks/run-x"):
        assert "the S3 server has no conditional writes (HTTP 501)" in caplog.text


def test_lock_that_may_not_be_written_is_named(s3: str, s3_put_fails):
    s3_put_fails("AccessDenied", 403)
    with (
        pytest.raises(PermissionError, match=f"cannot lock {s3}/locks/run-x: .*AccessDenied"),
        hold(f"{s3}/locks/run-x"),
    ):
        pass
