"""A lock that one process holds while it writes a run, a campaign or a dataset, and that a dead process loses.

On a disk it is the kernel's `flock` on a file: the kernel frees it when its process dies, also by `kill -9`, so no
lease has to run out and no clock is compared. S3 has no such lock. There it is a lease: an object that is created if
absent (`If-None-Match: *`), renewed by a thread and replaced only as it was read (`If-Match`). The process that waits
measures on its own clock how long an object has not changed. A dead owner on the same machine is known at once.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import pyarrow.fs as pafs

from cluster.lineage import submitted_job
from cluster.settings import settings
from cluster.storage import open_uri, s3_region

log = logging.getLogger(__name__)
LEASE_S = 60.0  # on S3: without a renewal for so long, the owner is dead
RENEW_S = 15.0
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system without flock


class LockedError(ValueError):
    """Another process holds the lock; the message names it."""


@contextmanager
def hold_lock(uri: str, activity: str, fix: str) -> Iterator[None]:
    """Hold the lock file at `uri` inside the block.

    Raises LockedError if another process holds it: "ACTIVITY by pid 12 on host h since 12:03: wait for it, stop it with
    `kill 12`, or FIX". An owner on S3 that may be dead is awaited, LEASE_S at most. Storage without locks is
    used without, with a warning.
    """
    fs, path = open_uri(uri)

    def refuse(owner: dict[str, Any]) -> LockedError:
        return LockedError(f"{activity} {_describe(owner)}, or {fix}")

    release = (_take_file if isinstance(fs, pafs.LocalFileSystem) else _take_lease)(path, refuse)
    try:
        yield
    finally:
        release()


def is_locked(uri: str) -> bool:
    """Return True if a living process holds the lock at `uri`, or if the storage does not say.

    The owner of a lease on S3 counts as alive for LEASE_S after its last renewal, by the server's clock.
    """
    fs, path = open_uri(uri)
    try:
        return _is_locked_file(path) if isinstance(fs, pafs.LocalFileSystem) else _Lease(path).is_held()
    except Exception as error:  # of boto3 or the file system
        log.debug("cannot read the lock %s: %s", uri, error)
        return True


def _this_process() -> dict[str, Any]:
    """Return what identifies this process; `machine` is the same in all processes that see each other's pids.

    `id` differs each time: threads of one process exclude each other too.
    """
    return {
        "id": uuid.uuid4().hex, "host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(),
        "started": _start_ticks(os.getpid()), "since": datetime.now().astimezone().isoformat(), "job": submitted_job(),
    }  # fmt: skip


def _machine() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"


def _start_ticks(pid: int) -> str | None:
    """Return the start time of a process in clock ticks since boot, None if it does not run."""
    with suppress(OSError), open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
        return fields[19] if fields[0] not in ("Z", "X") else None
    return None


def _lives(owner: dict[str, Any]) -> bool | None:
    """Return True if the owner's process runs on this machine, False if it has ended, None for another machine."""
    return _start_ticks(owner["pid"]) == owner["started"] if owner.get("machine") == _machine() else None


def _describe(owner: dict[str, Any]) -> str:
    if not owner:  # it has just taken the lock
        return "by another process: wait for it, stop it"
    since = datetime.fromisoformat(owner["since"]).astimezone()
    text = since.strftime("%H:%M" if since.date() == datetime.now().date() else "%Y-%m-%d %H:%M")
    stop = f"zpoint stop {owner['job']}" if owner["job"] else f"kill {owner['pid']}"
    return f"by pid {owner['pid']} on host {owner['host']} since {text}: wait for it, stop it with `{stop}`"


def _parse(content: bytes) -> dict[str, Any]:
    try:
        return json.loads(content)
    except ValueError:
        return {}


def _take_file(path: str, refuse: Callable[[dict[str, Any]], LockedError]) -> Callable[[], None]:
    """Lock a file and return the function that frees it."""
    folder = os.path.dirname(path)
    while True:
        os.makedirs(folder, exist_ok=True)
        try:
            file = open(path, "a+b", buffering=0)  # noqa: SIM115  # open while the lock is held
        except FileNotFoundError:
            continue  # another process has deleted the folder meanwhile
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = _parse(file.read())
            file.close()
            raise refuse(owner) from None
        except OSError as error:
            file.close()
            if error.errno not in NO_LOCKS:
                raise
            log.warning("%s: the file system has no locks: start no second process on it", path)
            return lambda: None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                break
        file.close()  # its owner has deleted it meanwhile

    def release() -> None:
        with suppress(OSError):  # the folder holds other files, or is deleted already
            os.unlink(path)
            os.rmdir(folder)
        file.close()

    try:
        file.truncate(0)
        file.write(json.dumps(_this_process()).encode())
    except OSError as error:  # the disk is full
        release()
        raise OSError(error.errno, error.strerror, path) from error
    return release


def _is_locked_file(path: str) -> bool:
    """Return True unless the file is missing or its owner has ended. Raises OSError on a file system without flock."""
    try:
        file = open(path, "rb")  # noqa: SIM115  # closed below
    except FileNotFoundError:
        return False
    with file:
        if (lives := _lives(_parse(file.read()))) is not None:
            return lives
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _take_lease(path: str, refuse: Callable[[dict[str, Any]], LockedError]) -> Callable[[], None]:
    """Take the lease at `path`, bucket/key, and return the function that ends it. Raises OSError if S3 fails."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return _await_lease(_Lease(path), refuse).renew_until_release()
    except (BotoCoreError, ClientError) as error:
        forbidden = isinstance(error, ClientError) and error.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        raise (PermissionError if forbidden else OSError)(f"cannot lock s3://{path}: {error}") from error


def _await_lease(lease: "_Lease", refuse: Callable[[dict[str, Any]], LockedError]) -> "_Lease":
    """Take the lease, at once or after it has run out; raise LockedError if its owner lives."""
    watched, deadline = "", 0.0
    while True:
        etag, owner = lease.read()
        if lease.is_own(owner):  # the response to its write was lost, and botocore's second one got a 412
            return lease
        lives = _lives(owner)
        if not etag or lives is False or (etag == watched and time.monotonic() > deadline):
            if lease.write(etag):
                return lease
        elif lives or (watched and etag != watched):
            raise refuse(owner)
        else:
            if not watched:
                watched, deadline = etag, time.monotonic() + LEASE_S
                log.warning("%s; waiting up to %.0f s until it renews its lease", refuse(owner), LEASE_S)
            time.sleep(1)


class _Lease:
    """An S3 object with its owner, renewed by a thread. If another process takes it over, this one exits at once."""

    def __init__(self, path: str) -> None:
        import boto3
        from botocore.config import Config

        self.bucket, _, self.key = path.partition("/")
        current, self.owner, self.released = settings(), _this_process(), threading.Event()
        config = Config(
            connect_timeout=5, read_timeout=30, retries={"mode": "standard", "max_attempts": 5},
            request_checksum_calculation="when_required",  # stores other than AWS may not know the others
        )  # fmt: skip
        self.client = boto3.client(
            "s3", endpoint_url=current.s3_endpoint or None, region_name=s3_region(), config=config
        )

    def read(self) -> tuple[str, dict[str, Any]]:
        """Return the object's ETag and its owner; empty ones if there is no object."""
        response = self._get()
        return (response["ETag"], _parse(response["Body"].read())) if response else ("", {})

    def is_held(self) -> bool:
        """Return True if the owner lives here, or has renewed the object within LEASE_S."""
        response = self._get()
        if response is None or (lives := _lives(_parse(response["Body"].read()))) is False:
            return False
        server_time = parsedate_to_datetime(response["ResponseMetadata"]["HTTPHeaders"]["date"])
        return bool(lives) or (server_time - response["LastModified"]).total_seconds() < LEASE_S

    def _get(self) -> dict[str, Any] | None:
        """Return the response with the object, None if there is none."""
        from botocore.exceptions import ClientError

        try:
            return self.client.get_object(Bucket=self.bucket, Key=self.key)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return None
            raise

    def write(self, etag: str) -> bool:
        """Write this process as owner if the object still has `etag`, '' for none; return False if it has not.

        Each write changes the ETag, which shows others that the owner lives.
        """
        from botocore.exceptions import ClientError

        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        body = json.dumps(self.owner | {"renewed": time.time_ns()}).encode()
        try:
            self.client.put_object(Bucket=self.bucket, Key=self.key, Body=body, **condition)
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status in (404, 409, 412):  # deleted, written at the same time, or replaced
                return False
            if status != 501:
                raise
            log.warning("the S3 server has no conditional writes (HTTP 501): start no second process on %s", self.key)
            self.released.set()
        return True

    def renew_until_release(self) -> Callable[[], None]:
        """Renew the lease in a thread; return the function that ends both."""
        thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        thread.start()

        def release() -> None:
            self.released.set()
            thread.join()
            with suppress(Exception):  # an object that stays is the lease of a process that has ended
                if self.is_own(self.read()[1]):
                    self.client.delete_object(Bucket=self.bucket, Key=self.key)

        return release

    def is_own(self, owner: dict[str, Any]) -> bool:
        return owner.get("id") == self.owner["id"]

    def _renew(self) -> None:
        renewed, warned = time.monotonic(), False
        while not self.released.wait(RENEW_S):
            try:
                etag, owner = self.read()
                if etag and not self.is_own(owner):
                    log.error("%s was taken over %s: this process stops", self.key, _describe(owner))
                    os._exit(1)  # as if killed: a graceful stop would write to what another process now writes
                self.write(etag)
                renewed, warned = time.monotonic(), False
            except Exception as error:  # of any kind: a store that fails for a moment ends no training
                age = time.monotonic() - renewed
                if age > LEASE_S and not warned:
                    warned = True
                    log.warning(
                        "the lease %s has not been renewed for %.0f s, and another process may take it: %s; start none",
                        self.key, age, error,
                    )  # fmt: skip
