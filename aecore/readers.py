"""Readers: small values that give one item of a source by its name, in whatever process they were sent to.

Each opens its files where it is used and keeps them open there. A bad item is a ValueError with the reason.
"""

import gzip
import io
import pickle
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aecore.faces import draw_face

MAX_FILE = 256 * 1024 * 1024  # bytes of one encoded image


class Reader(Protocol):
    """What a source needs: `read(name)` gives a file's bytes, or pixels as uint8 (H, W, 1 or 3)."""

    def read(self, name: str) -> bytes | np.ndarray: ...


@dataclass(frozen=True)
class FileReader:
    """Reads files below `folder`; a name is the path from there."""

    folder: str

    def read(self, name: str) -> bytes:
        """Give the file's bytes. Raises ValueError when it cannot be read."""
        try:
            path = Path(self.folder, name)
            _check_length(path.stat().st_size)
            return path.read_bytes()
        except OSError as error:
            raise ValueError(f"it cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class ZipReader:
    """Reads members of the zip `path`; a name is the member's without `prefix`."""

    path: str
    stamp: int  # the file's time of change, so that a new zip under an old name is opened anew
    prefix: str = ""

    def read(self, name: str) -> bytes:
        """Give the member's bytes. Raises ValueError when they are damaged or encrypted."""
        archive = _open_zip(self.path, self.stamp)
        try:
            member = archive.getinfo(self.prefix + name)
            _check_length(member.file_size)
            return archive.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, OSError) as error:
            raise ValueError(f"the zip does not give it: {error}") from error


@dataclass(frozen=True)
class ArrayReader:
    """Reads images that lie in arrays, as torchvision keeps them; a name is train-00012 or test-00012."""

    kind: str  # 'idx' or 'cifar'
    folder: str
    fingerprint: str  # of the files, so that others under the same names are loaded anew

    def read(self, name: str) -> np.ndarray:
        """Give the pixels, uint8 (H, W, 1 or 3)."""
        part, _, index = name.partition("-")
        return _load(self.kind, self.folder, self.fingerprint, part)[int(index)]


@dataclass(frozen=True)
class FaceReader:
    """Draws the faces of set `seed`; a name is the face's index."""

    seed: int
    size: int

    def read(self, name: str) -> np.ndarray:
        """Give the pixels, uint8 (size, size, 3)."""
        return draw_face(self.seed, int(name), self.size)[0]


def _check_length(length: int) -> None:
    if length > MAX_FILE:
        raise ValueError(f"its file has {length:,} bytes, over the limit of {MAX_FILE:,}")


@lru_cache(maxsize=2)
def _open_zip(path: str, stamp: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@lru_cache(maxsize=2)
def _load(kind: str, folder: str, fingerprint: str, part: str) -> np.ndarray:
    return (load_idx if kind == "idx" else load_cifar)(Path(folder), part)[0]


def load_idx(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Load `part` ('train' or 'test') of an MNIST-like set: uint8 (n, H, W, 1) images and uint8 (n,) labels.

    Raises ValueError when a file is missing, cut short or of another kind.
    """
    stem = "train" if part == "train" else "t10k"
    images = _read_idx(folder / f"{stem}-images-idx3-ubyte")
    labels = _read_idx(folder / f"{stem}-labels-idx1-ubyte")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"{folder}: {part} has images {images.shape} and labels {labels.shape}, which do not fit")
    return images[..., None], labels


def _read_idx(path: Path) -> np.ndarray:
    packed = path.with_name(f"{path.name}.gz")
    try:
        data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing (and {packed.name} too)") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{packed} is damaged: {error}") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of bytes (it starts with {data[:4]!r})")
    start = 4 + 4 * data[3]
    shape = tuple(np.frombuffer(data[4:start], ">u4").tolist())
    if len(shape) != data[3] or len(data) - start != int(np.prod(shape)):
        raise ValueError(f"{path} is cut short: {len(data):,} bytes for the shape {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def load_cifar(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Load `part` ('train' or 'test') of CIFAR10: uint8 (n, 32, 32, 3) images and int64 (n,) labels.

    Raises ValueError when a batch is missing, damaged or holds anything but numbers.
    """
    names = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]
    images, labels = [], []
    for name in names:
        path = folder / name
        try:
            batch = _NumbersOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
            images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.asarray(batch[b"labels"], np.int64))
        except FileNotFoundError:
            raise ValueError(f"{path} is missing") from None
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
