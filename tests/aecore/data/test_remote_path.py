"""A path on S3 behaves as one on a disk; a file system that pyarrow maps to a folder stands for S3."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aecore.data import remote_path
from aecore.data.remote_path import RemotePath

CONTENT = np.random.default_rng(0).bytes(5000)


def both_paths(folder: Path) -> tuple[RemotePath, RemotePath]:
    """Return a folder as a local path and as a remote one."""
    local = pafs.LocalFileSystem()
    return RemotePath(local, str(folder)), RemotePath(pafs.SubTreeFileSystem(str(folder.parent), local), folder.name)


def test_remote_files_and_folders_are_told_apart_as_local_ones(tmp_path: Path):
    (tmp_path / "set" / "inner").mkdir(parents=True)
    (tmp_path / "set" / "a.zip").write_bytes(CONTENT)
    local, remote = both_paths(tmp_path / "set")
    assert (local.is_local, remote.is_local) == (True, False)
    for name, exists, is_dir, is_file in (
        ("", True, True, False), ("inner", True, True, False), ("a.zip", True, False, True), ("b", False, False, False),
    ):  # fmt: skip
        for path in (local / name, remote / name):
            assert (path.exists(), path.is_dir(), path.is_file()) == (exists, is_dir, is_file), name
    for path in (local / "a.zip", remote / "a.zip"):
        assert (path.size(), path.read()) == (len(CONTENT), CONTENT)
        assert path.mtime_ns() == os.stat(tmp_path / "set" / "a.zip").st_mtime_ns
    for path in (local / "b", remote / "b"):
        for read in (path.size, path.mtime_ns, path.read):
            with pytest.raises(FileNotFoundError):
                read()


def test_names_of_paths(tmp_path: Path):
    local, remote = both_paths(tmp_path / "set")
    assert (str(local / "a" / "b"), str(remote / "a" / "b")) == (f"{tmp_path}/set/a/b", "s3://set/a/b")
    assert str((remote / "a" / "b").parent) == "s3://set/a"
    assert str(remote / "") == "s3://set"


@given(
    st.lists(
        st.tuples(st.sampled_from(["seek", "read"]), st.integers(-40, 40), st.sampled_from([0, 1, 2])), max_size=30
    )
)
def test_remote_file_reads_as_a_local_one(steps: list[tuple[str, int, int]]):
    """Compare any seeks and reads with those of a buffer, in blocks of 7 bytes of which two are kept."""
    content = CONTENT[:30]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_path, "BLOCK_BYTES", 7)
        patch.setattr(remote_path, "CACHED_BLOCKS", 2)
        patch.setattr(remote_path, "read_range", lambda file, start, block, name: file.readinto_at(start, block))
        expected = io.BytesIO(content)
        file = remote_path._RemoteFile(RemotePath(_FileSystem(content), "x"))  # pyright: ignore[reportArgumentType]
        for step, number, whence in steps:
            if step == "read":
                assert file.read(number) == expected.read(number)
            elif whence == 0 and number < 0:
                with pytest.raises(OSError, match="Invalid argument"):
                    file.seek(number)
            else:
                position = (0, expected.tell(), len(content))[whence] + number
                if position < 0:
                    with pytest.raises(OSError, match="Invalid argument"):
                        file.seek(number, whence)
                else:
                    assert file.seek(number, whence) == expected.seek(position)
            assert file.tell() == expected.tell()
        assert (file.readable(), file.seekable(), file.closed) == (True, True, False)
        file.close()
        assert file.closed
        file.close()


class _FileSystem:
    """One file in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def open_input_file(self, _: str) -> "_FileSystem":
        return self

    def size(self) -> int:
        return len(self.content)

    def readinto_at(self, start: int, block: memoryview) -> None:
        block[:] = self.content[start : start + len(block)]

    def close(self) -> None:
        pass


def test_blocks_of_a_remote_file_are_requested_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").write_bytes(CONTENT)
    monkeypatch.setattr(remote_path, "BLOCK_BYTES", 1000)
    starts, read_range = [], remote_path.read_range
    monkeypatch.setattr(
        remote_path, "read_range", lambda *args: starts.append((args[1], len(args[2]))) or read_range(*args)
    )
    with (both_paths(tmp_path / "set")[1] / "a").open() as file:
        file.seek(900)
        assert file.read(200) == CONTENT[900:1100]
        file.seek(-10, os.SEEK_END)
        assert file.read(20) == CONTENT[-10:]
        file.seek(0)
        assert file.read(2000) == CONTENT[:2000]
    assert starts == [(0, 1000), (1000, 1000), (4000, 1000)]
