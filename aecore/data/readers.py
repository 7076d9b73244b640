"""Readers: small values that give one item of a source by its name, in whatever process they were sent to.

Each opens its files where it is used and keeps them open there. A bad item is a ValueError with the reason.
"""

import gzip
import io
import pickle
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import IO, Any, NamedTuple, Self

import numpy as np

from aecore.data.io import retry_read
from aecore.data.remote_path import RemotePath
from aecore.data.synthetic_faces import draw_face

MAX_FILE = 256 * 1024 * 1024  # bytes of one encoded image
REQUESTS = 16  # at once, where each image is an object of its own on S3
_HEADER, _ENCRYPTED = 30, 1  # bytes before a member's name; a flag
Item = bytes | np.ndarray
_DAMAGED = (zipfile.BadZipFile, zlib.error)


class Reader(ABC):
    """What a source needs: `read(name)` gives a file's bytes, or pixels as uint8 (H, W, 1 or 3)."""

    @property
    def threads(self) -> int:
        """How many threads may read ahead; 0 where reading is no wait."""
        return 0

    @abstractmethod
    def read(self, name: str) -> Item: ...

    def only(self, names: Sequence[str]) -> Self:
        """Give a reader of `names` alone, which takes no more along to another process than they need."""
        return self


def read_ahead(reader: Reader, names: list[str]) -> Iterator[Item | ValueError]:
    """Give the items `names` in order, a bad one as its ValueError, reading ahead where that saves waiting."""

    def read(name: str) -> Item | ValueError:
        try:
            return reader.read(name)
        except ValueError as error:
            return error

    if not reader.threads:
        yield from map(read, names)
        return
    with ThreadPoolExecutor(reader.threads) as pool:
        left = iter(names)
        waiting: list[Future] = [pool.submit(read, name) for name in islice(left, 2 * reader.threads)]
        try:
            while waiting:
                yield waiting.pop(0).result()
                waiting += [pool.submit(read, name) for name in islice(left, 1)]
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class FileReader(Reader):
    """Reads files below `folder`; a name is the path from there."""

    folder: RemotePath

    @property
    def threads(self) -> int:
        """How many threads may read ahead."""
        return 0 if self.folder.local else REQUESTS

    def read(self, name: str) -> bytes:
        """Give the file's bytes. Raises ValueError when it is not there or not for us, OSError when reading fails."""
        place = self.folder / name
        try:
            if place.local:
                _check_length(place.size())
            return place.read()
        except (FileNotFoundError, PermissionError) as error:
            raise ValueError(f"it cannot be read: {error.strerror}") from error


class Member(NamedTuple):
    """Where a member of a zip lies, and what it is, as the zip's list says."""

    offset: int
    packed: int  # bytes in the zip
    size: int  # bytes unpacked
    method: int
    flags: int
    crc: int


@dataclass(frozen=True)
class ZipReader(Reader):
    """Reads `members` of the zip `place`, whose list was read once, by whoever made this reader."""

    place: RemotePath
    stamp: int  # the file's time of change, so that a new zip under an old name is opened anew
    members: dict[str, Member]

    @property
    def threads(self) -> int:
        """How many threads may read ahead."""
        return 0 if self.place.local else 1

    def only(self, names: Sequence[str]) -> Self:
        """Give a reader of the members `names` alone."""
        return replace(self, members={name: self.members[name] for name in names})

    def read(self, name: str) -> bytes:
        """Give the member's bytes. Raises ValueError when it is damaged or encrypted, OSError when reading fails."""
        member = self.members[name]
        _check_length(max(member.size, member.packed))

        def read(attempt: int) -> bytes:
            file = self.place.open() if attempt else _open_here(self.place, self.stamp)  # fetched anew
            return _unpack(file, member)

        try:
            return retry_read(read, *_DAMAGED, remote=not self.place.local)
        except _DAMAGED as error:
            raise ValueError(f"the zip does not give it: {error}") from error


@dataclass(frozen=True)
class ArrayReader(Reader):
    """Reads images that lie in arrays, as torchvision keeps them; a name is train-00012 or test-00012."""

    kind: str  # 'idx' or 'cifar'
    folder: RemotePath
    fingerprint: str  # of the files, so that others under the same names are loaded anew

    def read(self, name: str) -> np.ndarray:
        """Give the pixels, uint8 (H, W, 1 or 3)."""
        part, _, index = name.partition("-")
        return _load(self.kind, self.folder, self.fingerprint, part)[int(index)]


@dataclass(frozen=True)
class FaceReader(Reader):
    """Draws the faces of set `seed`; a name is the face's index."""

    seed: int
    size: int

    def read(self, name: str) -> np.ndarray:
        """Give the pixels, uint8 (size, size, 3)."""
        return draw_face(self.seed, int(name), self.size)[0]


def _check_length(length: int) -> None:
    if length > MAX_FILE:
        raise ValueError(f"its file has {length:,} bytes, over the limit of {MAX_FILE:,}")


def list_zip(place: RemotePath) -> dict[str, Member]:
    """Give the files in the zip `place`. Raises BadZipFile when it is none, OSError when reading fails."""
    try:
        with place.open() as file, zipfile.ZipFile(file) as archive:
            return {
                info.filename: Member(
                    info.header_offset, info.compress_size, info.file_size, info.compress_type, info.flag_bits, info.CRC
                )
                for info in archive.infolist()
                if not info.is_dir()
            }
    except zipfile.BadZipFile as error:
        if isinstance(error.__context__, OSError):  # zipfile takes it for a sign of a bad file
            raise error.__context__ from None
        raise


class _Opened(threading.local):
    """The zip that this thread has open. Another's reading would move its place and empty its buffer."""

    key: tuple[RemotePath, int] | None = None
    file: IO[bytes]


_OPENED = _Opened()


def _open_here(place: RemotePath, stamp: int) -> IO[bytes]:
    if _OPENED.key != (place, stamp):
        _OPENED.file, _OPENED.key = place.open(), (place, stamp)
    return _OPENED.file


def _unpack(file: IO[bytes], member: Member) -> bytes:
    """Read `member` of the zip `file` (PKWARE's APPNOTE.TXT, 4.3.7). Raises BadZipFile or zlib.error for a bad one."""
    if member.flags & _ENCRYPTED:
        raise zipfile.BadZipFile("it is encrypted")
    if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"its compression (method {member.method}) is neither stored nor deflate")
    file.seek(member.offset)
    header = file.read(_HEADER)
    if header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile("it does not begin where the zip's list says")
    name, extra = header[26:28], header[28:30]
    file.seek(int.from_bytes(name, "little") + int.from_bytes(extra, "little"), io.SEEK_CUR)
    data = file.read(member.packed)
    if member.method == zipfile.ZIP_DEFLATED:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size + 1)
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        raise zipfile.BadZipFile("its bytes are not those of which the zip's list tells (CRC-32)")
    return data


@lru_cache(maxsize=2)
def _load(kind: str, folder: RemotePath, fingerprint: str, part: str) -> np.ndarray:
    return (load_idx if kind == "idx" else load_cifar)(folder, part)[0]


def load_idx(folder: RemotePath, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Load `part` ('train' or 'test') of an MNIST-like set: uint8 (n, H, W, 1) images and uint8 (n,) labels.

    Raises ValueError when a file is missing, cut short or of another kind.
    """
    stem = "train" if part == "train" else "t10k"
    images = _read_idx(folder / f"{stem}-images-idx3-ubyte")
    labels = _read_idx(folder / f"{stem}-labels-idx1-ubyte")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"{folder}: {part} has images {images.shape} and labels {labels.shape}, which do not fit")
    return images[..., None], labels


def _read_idx(path: RemotePath) -> np.ndarray:
    packed = RemotePath(path.fs, f"{path.path}.gz")
    try:
        data = path.read() if path.exists() else gzip.decompress(packed.read())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing (and {packed} too)") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{packed} is damaged: {error}") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of bytes (it starts with {data[:4]!r})")
    start = 4 + 4 * data[3]
    shape = tuple(np.frombuffer(data[4:start], ">u4").tolist())
    if len(shape) != data[3] or len(data) - start != int(np.prod(shape)):
        raise ValueError(f"{path} is cut short: {len(data):,} bytes for the shape {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def load_cifar(folder: RemotePath, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Load `part` ('train' or 'test') of CIFAR10: uint8 (n, 32, 32, 3) images and int64 (n,) labels.

    Raises ValueError when a batch is missing, damaged or holds anything but numbers.
    """
    names = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]
    images, labels = [], []
    for name in names:
        path = folder / name
        try:
            batch = _NumbersOnly(io.BytesIO(path.read()), encoding="bytes").load()
            images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.asarray(batch[b"labels"], np.int64))
        except FileNotFoundError:
            raise ValueError(f"{path} is missing") from None
        except OSError:
            raise
        except Exception as error:  # a damaged pickle raises nearly anything
            raise ValueError(f"{path} is no batch of CIFAR10 for Python: {error}") from error
    return np.concatenate(images), np.concatenate(labels)


class _NumbersOnly(pickle.Unpickler):
    """CIFAR10 is published as pickles, which torchvision loads freely. Here only numpy arrays come out."""

    def find_class(self, module: str, name: str) -> Any:
        """Allow what an array of numbers needs, refuse all else."""
        allowed = {"_reconstruct", "ndarray", "dtype", "scalar"}
        if module.split(".")[0] == "numpy" and name in allowed:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):  # Python 3 writes bytes so in protocol 2
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants to run {module}.{name}")
