"""Files are written whole or not at all, and those of a remote file system are read as `read_range` does."""

import gc
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from aecore.data import io
from aecore.data.io import read_bytes, write_atomic
from cluster.storage import open_uri

LOCAL = LocalFileSystem()


def test_failed_write_keeps_the_earlier_file_and_leaves_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "new" / "file"
    write_atomic(LOCAL, str(path), b"first")
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        write_atomic(LOCAL, str(path), b"second")
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]


def test_remote_file_is_read_by_ranges_that_are_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ranges, read_range = [], io.read_range

    def spy(file, start, buffer, name):
        ranges.append((start, len(buffer), name))
        read_range(file, start, buffer, name)

    monkeypatch.setattr(io, "read_range", spy)
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(LOCAL, str(tmp_path / "file")) == b"12345"
    assert ranges == []
    remote = SubTreeFileSystem(str(tmp_path), LOCAL)  # of another type, as S3 is
    assert read_bytes(remote, "file") == b"12345"
    assert ranges == [(0, 5, "file")]
    write_atomic(remote, "other", b"678")
    assert read_bytes(remote, "other") == b"678"


class FailingFile:
    """Raises an error at the first read."""

    def __init__(self, error: OSError):
        self.errors = [error]

    def seek(self, start: int) -> None:
        self.start = start

    def readinto(self, buffer: memoryview) -> int:
        if self.errors:
            raise self.errors.pop()
        buffer[:] = b"12345"[self.start : self.start + len(buffer)]
        return len(buffer)


def test_error_response_that_is_longer_than_the_range_is_repeated_and_no_other_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(io, "PAUSE_S", 0)
    buffer = bytearray(3)
    io.read_range(FailingFile(OSError("cannot write to the response stream")), 1, memoryview(buffer), "x")
    assert buffer == b"234"
    with pytest.raises(OSError, match="denied"):
        io.read_range(FailingFile(OSError("denied")), 1, memoryview(buffer), "x")


def test_interrupted_write_to_s3_keeps_the_earlier_object_or_completes_the_new_one(s3: str):
    """Interrupt writes while they open the object, which pyarrow replaces as soon as its stream closes."""

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    fs, path = open_uri(f"{s3}/run.json")
    previous_handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        for delay_s in np.linspace(0.0002, 0.02, 10):
            write_atomic(fs, path, b"old")
            with suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, delay_s)
                write_atomic(fs, path, b"new")
                signal.setitimer(signal.ITIMER_REAL, 0)
            gc.collect()
            assert read_bytes(fs, path) in (b"old", b"new"), delay_s
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)
