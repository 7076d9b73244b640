"""Paths of source files: on a local disk, or objects on S3 that are read in ranges and never copied to a disk."""

import io
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO

import pyarrow.fs as pafs

from aecore.data.io import check_length, read_bytes, read_range

BLOCK_BYTES = 1 << 20  # of a remote file per request, so that neighbours inside a zip are read together
CACHED_BLOCKS = 4  # of each open file: two shards are read from distant ranges of one zip at a time


@dataclass(frozen=True)
class RemotePath:
    """A file or folder. Local ones are read by Python itself, which follows links and is faster there."""

    fs: pafs.FileSystem = field(hash=False)
    path: str

    @property
    def is_local(self) -> bool:
        """Return True for a path on a disk of this machine."""
        return isinstance(self.fs, pafs.LocalFileSystem)

    @property
    def parent(self) -> "RemotePath":
        """Return the parent folder."""
        return RemotePath(self.fs, str(PurePosixPath(self.path).parent))

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self.fs, str(PurePosixPath(self.path) / name)) if name else self

    def __str__(self) -> str:
        return self.path if self.is_local else f"s3://{self.path}"

    def exists(self) -> bool:
        """Return True if a file or folder exists here."""
        return os.path.exists(self.path) if self.is_local else self._info().type is not pafs.FileType.NotFound

    def is_dir(self) -> bool:
        """Return True for a folder or a prefix of objects."""
        return os.path.isdir(self.path) if self.is_local else self._info().type is pafs.FileType.Directory

    def is_file(self) -> bool:
        """Return True for a file."""
        return os.path.isfile(self.path) if self.is_local else self._info().is_file

    def size(self) -> int:
        """Return the file's length in bytes. Raises FileNotFoundError when it is missing."""
        return os.stat(self.path).st_size if self.is_local else self._file_info().size or 0

    def mtime_ns(self) -> int:
        """Return the file's modification time in nanoseconds. Raises FileNotFoundError when it is missing."""
        return os.stat(self.path).st_mtime_ns if self.is_local else self._file_info().mtime_ns or 0

    def read(self, max_bytes: int | None = None) -> bytes:
        """Read the whole file. Raises as `read_bytes`."""
        if not self.is_local:
            return read_bytes(self.fs, self.path, max_bytes)
        if max_bytes is not None:
            check_length(self.size(), max_bytes)
        return Path(self.path).read_bytes()

    def open(self) -> IO[bytes]:
        """Open the file for random access."""
        return open(self.path, "rb") if self.is_local else _RemoteFile(self)  # pyright: ignore[reportReturnType]

    def _info(self) -> pafs.FileInfo:
        return self.fs.get_file_info(self.path)

    def _file_info(self) -> pafs.FileInfo:
        info = self._info()
        if not info.is_file:
            raise FileNotFoundError(2, "No such file", str(self))
        return info


class _RemoteFile(io.RawIOBase):
    """A remote file that is read block by block; `read(n)` returns fewer than n bytes only at the end."""

    def __init__(self, path: RemotePath) -> None:
        self._file = path.fs.open_input_file(path.path)
        self._name, self._size, self._position = str(path), self._file.size(), 0
        self._block = lru_cache(CACHED_BLOCKS)(self._read_block)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        position = (0, self._position, self._size)[whence] + offset
        if position < 0:  # as Python's own files raise it; zipfile relies on it to find the end of a zip
            raise OSError(22, "Invalid argument")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer) -> int:
        length = min(len(buffer), max(0, self._size - self._position))
        done = 0
        while done < length:
            index, start = divmod(self._position + done, BLOCK_BYTES)
            chunk = self._block(index)[start : start + length - done]
            buffer[done : done + len(chunk)] = chunk
            done += len(chunk)
        self._position += done
        return done

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _read_block(self, index: int) -> memoryview:
        start = index * BLOCK_BYTES
        block = memoryview(bytearray(min(BLOCK_BYTES, self._size - start)))
        read_range(self._file, start, block, self._name)
        return block
