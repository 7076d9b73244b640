"""Where a source's files lie: a local path, or an object on S3 that is read in ranges and never whole on a disk."""

import io
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

import pyarrow.fs as pafs

from aecore.data.io import read_bytes, read_range

AHEAD = 1 << 20  # bytes asked for at once inside a remote zip: neighbours in it come in one request


@dataclass(frozen=True)
class RemotePath:
    """A file or folder. Local ones are read by Python itself, which knows links and is quicker there."""

    fs: pafs.FileSystem = field(hash=False)
    path: str

    @property
    def local(self) -> bool:
        """Whether it lies on this machine's disks."""
        return isinstance(self.fs, pafs.LocalFileSystem)

    @property
    def parent(self) -> "RemotePath":
        """Give the folder that holds it."""
        return RemotePath(self.fs, str(PurePosixPath(self.path).parent))

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self.fs, str(PurePosixPath(self.path) / name)) if name else self

    def __str__(self) -> str:
        return self.path if self.local else f"s3://{self.path}"

    def exists(self) -> bool:
        """Whether there is a file or folder."""
        return os.path.exists(self.path) if self.local else self._info().type is not pafs.FileType.NotFound

    def is_dir(self) -> bool:
        """Whether it is a folder, or a prefix of objects."""
        return os.path.isdir(self.path) if self.local else self._info().type is pafs.FileType.Directory

    def is_file(self) -> bool:
        """Whether it is a file."""
        return os.path.isfile(self.path) if self.local else self._info().is_file

    def size(self) -> int:
        """Give its length in bytes. Raises FileNotFoundError when there is no such file."""
        return os.stat(self.path).st_size if self.local else self._found().size or 0

    def stamp(self) -> int:
        """Give its time of change in nanoseconds. Raises FileNotFoundError when there is no such file."""
        return os.stat(self.path).st_mtime_ns if self.local else self._found().mtime_ns or 0

    def files(self) -> dict[str, int]:
        """Give the files below this folder, by their path from here, with their lengths."""
        if self.local:
            base = Path(self.path)
            return {p.relative_to(base).as_posix(): p.stat().st_size for p in base.rglob("*") if p.is_file()}
        found = self.fs.get_file_info(pafs.FileSelector(self.path, recursive=True))
        return {info.path[len(self.path) + 1 :]: info.size or 0 for info in found if info.is_file}

    def read(self) -> bytes:
        """Give the whole file. Raises FileNotFoundError, or OSError when less than all of it comes."""
        return Path(self.path).read_bytes() if self.local else read_bytes(self.fs, self.path)

    def open(self) -> IO[bytes]:
        """Open it for reading here and there."""
        return open(self.path, "rb") if self.local else io.BufferedReader(_Ranges(self), AHEAD)

    def _info(self) -> pafs.FileInfo:
        return self.fs.get_file_info(self.path)

    def _found(self) -> pafs.FileInfo:
        info = self._info()
        if not info.is_file:
            raise FileNotFoundError(2, "No such file", str(self))
        return info


class _Ranges(io.RawIOBase):
    """A remote file as Python's buffers want it; what does not come whole is asked for again, or an error."""

    def __init__(self, place: RemotePath) -> None:
        self._file = place.fs.open_input_file(place.path)
        self._place, self._size = place, self._file.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        place = (0, self._file.tell(), self._size)[whence] + offset
        if place < 0:  # as files of Python say it; zipfile looks for its end so
            raise OSError(22, "Invalid argument")
        return self._file.seek(place)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer) -> int:
        start = self._file.tell()
        wanted = memoryview(buffer)[: max(0, self._size - start)]
        read_range(self._file, start, wanted, str(self._place))
        return len(wanted)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
