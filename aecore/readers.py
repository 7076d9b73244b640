"""Readers: small values that give one item of a source by its name, in whatever process they were sent to.

Each opens its files where it is used and keeps them open there. A bad item is a ValueError with the reason.
"""

import gzip
import io
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

import numpy as np

from aecore.faces import draw_face
from aecore.files import again
from aecore.places import Place

MAX_FILE = 256 * 1024 * 1024  # bytes of one encoded image
REQUESTS = 16  # at once, where each image is an object of its own on S3
Item = bytes | np.ndarray
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError)


class Reader(Protocol):
    """What a source needs: `read(name)` gives a file's bytes, or pixels as uint8 (H, W, 1 or 3)."""

    @property
    def threads(self) -> int:
        """How many threads may read ahead; 0 where reading is no wait."""
        ...

    def read(self, name: str) -> Item: ...


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
class FileReader:
    """Reads files below `folder`; a name is the path from there."""

    folder: Place

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


@dataclass(frozen=True)
class ZipReader:
    """Reads members of the zip `place`; a name is the member's without `prefix`."""

    place: Place
    stamp: int  # the file's time of change, so that a new zip under an old name is opened anew
    prefix: str = ""

    @property
    def threads(self) -> int:
        """How many threads may read ahead."""
        return 0 if self.place.local else 1

    def read(self, name: str) -> bytes:
        """Give the member's bytes. Raises ValueError when it is damaged or encrypted, OSError when reading fails."""
        archive = _open_zip(self.place, self.stamp)

        def read(attempt: int) -> bytes:
            source = _opened_beside(archive, self.place) if attempt else archive
            return source.read(member)

        try:
            member = archive.getinfo(self.prefix + name)
            _check_length(member.file_size)
            return again(read, *_DAMAGED, remote=not self.place.local)
        except (*_DAMAGED, KeyError, RuntimeError) as error:
            raise ValueError(f"the zip does not give it: {error}") from error


@dataclass(frozen=True)
class ArrayReader:
    """Reads images that lie in arrays, as torchvision keeps them; a name is train-00012 or test-00012."""

    kind: str  # 'idx' or 'cifar'
    folder: Place
    fingerprint: str  # of the files, so that others under the same names are loaded anew
    threads: int = 0

    def read(self, name: str) -> np.ndarray:
        """Give the pixels, uint8 (H, W, 1 or 3)."""
        part, _, index = name.partition("-")
        return _load(self.kind, self.folder, self.fingerprint, part)[int(index)]


@dataclass(frozen=True)
class FaceReader:
    """Draws the faces of set `seed`; a name is the face's index."""

    seed: int
    size: int
    threads: int = 0

    def read(self, name: str) -> np.ndarray:
        """Give the pixels, uint8 (size, size, 3)."""
        return draw_face(self.seed, int(name), self.size)[0]


def _check_length(length: int) -> None:
    if length > MAX_FILE:
        raise ValueError(f"its file has {length:,} bytes, over the limit of {MAX_FILE:,}")


def open_zip(place: Place) -> zipfile.ZipFile:
    """Open the zip `place` for reading. Raises BadZipFile when it is none, OSError when reading fails."""
    try:
        return zipfile.ZipFile(place.open())
    except zipfile.BadZipFile as error:
        if isinstance(error.__context__, OSError):  # zipfile takes it for a sign of a bad file
            raise error.__context__ from None
        raise


@lru_cache(maxsize=2)
def _open_zip(place: Place, stamp: int) -> zipfile.ZipFile:
    try:
        return open_zip(place)
    except zipfile.BadZipFile as error:  # it was whole when it was listed: none of its images is to blame
        raise OSError(f"{place} does not open as a zip any more: {error}") from error


def _opened_beside(archive: zipfile.ZipFile, place: Place) -> zipfile.ZipFile:
    """The same zip with a buffer of its own, so that its bytes are fetched anew; its list is not read again."""
    other = copy(archive)
    other.fp = place.open()
    return other


@lru_cache(maxsize=2)
def _load(kind: str, folder: Place, fingerprint: str, part: str) -> np.ndarray:
    return (load_idx if kind == "idx" else load_cifar)(folder, part)[0]


def load_idx(folder: Place, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Load `part` ('train' or 'test') of an MNIST-like set: uint8 (n, H, W, 1) images and uint8 (n,) labels.

    Raises ValueError when a file is missing, cut short or of another kind.
    """
    stem = "train" if part == "train" else "t10k"
    images = _read_idx(folder / f"{stem}-images-idx3-ubyte")
    labels = _read_idx(folder / f"{stem}-labels-idx1-ubyte")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"{folder}: {part} has images {images.shape} and labels {labels.shape}, which do not fit")
    return images[..., None], labels


def _read_idx(path: Place) -> np.ndarray:
    packed = Place(path.fs, f"{path.path}.gz")
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


def load_cifar(folder: Place, part: str) -> tuple[np.ndarray, np.ndarray]:
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
