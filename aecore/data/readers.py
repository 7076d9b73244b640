"""Readers: picklable values that read one item of a source by its name, in any process.

Each opens its files in the process that reads and keeps them open there. A bad item raises a ValueError.
"""

import gzip
import io
import pickle
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from aecore.data.io import check_length, retry_read
from aecore.data.remote_path import RemotePath
from aecore.data.synthetic_faces import draw_face
from aecore.data.threads import map_ahead

MAX_FILE_BYTES = 256 * 1024 * 1024  # of one encoded image
MAX_TABLE_BYTES = 2 * 1024**3  # of a file or row group that holds many images, decompressed
MAX_REQUESTS = 16  # in flight, when each image is an S3 object of its own
CSV_FILES = {  # Kaggle's names
    subset: tuple(f"{stem}{subset}.csv" for stem in ("mnist_", "fashion-mnist_", "")) for subset in ("train", "test")
}
Item = bytes | np.ndarray
_ENCRYPTED = 1  # flag bit of a zip member
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, UnicodeDecodeError)


class Reader(ABC):
    """Reads the items of a source: `read(name)` returns a file's bytes, or pixels as uint8 (H, W, 1 or 3)."""

    @property
    def threads(self) -> int:
        """Return the number of threads that read ahead, 0 if reading does not wait."""
        return 0

    @abstractmethod
    def read(self, name: str) -> Item: ...


def read_ahead(reader: Reader, names: list[str]) -> Iterator[Item | ValueError]:
    """Yield the items `names` in order, a bad one as its ValueError; threads of the reader read ahead."""

    def read(name: str) -> Item | ValueError:
        try:
            return reader.read(name)
        except ValueError as error:
            return error

    if not reader.threads:
        yield from map(read, names)
        return
    with ThreadPoolExecutor(reader.threads) as pool:
        yield from map_ahead(pool, read, names, 2 * reader.threads - 1)


@dataclass(frozen=True)
class FileReader(Reader):
    """Reads files below `folder`; a name is the path relative to it."""

    folder: RemotePath

    @property
    def threads(self) -> int:
        """Return the number of threads that read ahead."""
        return 0 if self.folder.is_local else MAX_REQUESTS

    def read(self, name: str) -> bytes:
        """Read a file. Raises ValueError when it is missing, too large or not readable, OSError when storage fails."""
        try:
            return (self.folder / name).read(MAX_FILE_BYTES)
        except (FileNotFoundError, PermissionError) as error:
            raise ValueError(f"it cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class ZipReader(Reader):
    """Reads members of the zip `path`; a name is the member's name without `prefix`."""

    path: RemotePath
    mtime_ns: int  # so that a zip that replaces another one is opened anew
    prefix: str

    @property
    def threads(self) -> int:
        """Return the number of threads that read ahead."""
        return 0 if self.path.is_local else 1

    def read(self, name: str) -> bytes:
        """Read a member. Raises ValueError when it is damaged or encrypted, OSError when storage fails."""

        def read(attempt: int) -> bytes:
            if attempt:  # drop what was read: it may have been damaged in transit
                open_zip.cache_clear()
            archive, members = open_zip(self.path, self.mtime_ns)
            member = members[self.prefix + name]
            check_length(max(member.file_size, member.compress_size), MAX_FILE_BYTES)
            if member.flag_bits & _ENCRYPTED:
                raise ValueError("the zip member is encrypted")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"the zip member's compression {member.compress_type} is neither stored nor deflate")
            with archive.open(member) as file:
                return file.read(member.file_size)  # bounded, against a member that inflates to more

        try:
            return retry_read(read, *_DAMAGED, remote=not self.path.is_local)
        except (*_DAMAGED, NotImplementedError) as error:
            raise ValueError(f"the zip member cannot be read: {error}") from error


@dataclass(frozen=True)
class ArrayReader(Reader):
    """Reads images of arrays in torchvision's formats; a name is train-00012 or test-00012."""

    kind: str  # of ARRAY_LOADERS
    folder: RemotePath
    fingerprint: str  # of the files, so that files that replace them are loaded anew

    def read(self, name: str) -> np.ndarray:
        """Return the pixels, uint8 (H, W, 1 or 3)."""
        subset, _, index = name.partition("-")
        return _load_images(self.kind, self.folder, self.fingerprint, subset)[int(index)]


@dataclass(frozen=True)
class ParquetReader(Reader):
    """Reads images of Hugging Face's Parquet files below `folder`; a name is FILE/ROW, without the ending of FILE."""

    folder: RemotePath
    column: str  # of encoded images: binary, or a struct with the binary field `bytes`
    fingerprint: str  # of the files, so that files that replace them are read anew

    def read(self, name: str) -> bytes:
        """Return the encoded image. Raises ValueError when the row has none or the file is damaged."""
        file, _, row = name.rpartition("/")
        path = self.folder / f"{file}.parquet"
        group, start = _find_row_group(path, self.fingerprint, int(row))
        data = _read_row_group(path, self.fingerprint, self.column, group)[int(row) - start].as_py()
        if data is None:
            raise ValueError("its row holds no bytes")
        check_length(len(data), MAX_FILE_BYTES)
        return data


@dataclass(frozen=True)
class FaceReader(Reader):
    """Draws the faces of the set `seed`; a name is the face's index."""

    seed: int
    size: int

    def read(self, name: str) -> np.ndarray:
        """Return the pixels, uint8 (size, size, 3)."""
        return draw_face(self.seed, int(name), self.size)[0]


def read_table(path: RemotePath) -> bytes:
    """Read a file that describes or holds many images. Raises ValueError if it is too large, else as `read_bytes`."""
    try:
        return path.read(MAX_TABLE_BYTES)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@lru_cache(maxsize=1)
def open_zip(path: RemotePath, mtime_ns: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """Open the zip `path`, once per process: listing CelebA's 202,599 members takes 1.5 s and 120 MB.

    Returns the zip and its members by `member_path`. Threads may read from it: zipfile locks the file for each read.
    Raises BadZipFile when it is no zip, UnicodeDecodeError for a member's name, OSError when storage fails.
    """
    try:
        archive = zipfile.ZipFile(path.open())
        return archive, {member_path(member.filename): member for member in archive.infolist()}
    except zipfile.BadZipFile as error:
        if isinstance(error.__context__, OSError):  # zipfile reports a failed read as a bad file
            raise error.__context__ from None
        raise


def member_path(name: str) -> str:
    """Return a zip member's name as a relative path with slashes, as Python unpacks it: without `.` and `..`.

    Some programs on Windows write backslashes.
    """
    if "\\" in name or "//" in name or "/." in name or name.startswith(("/", ".")) or name.endswith("/"):
        return "/".join(folder for folder in name.replace("\\", "/").split("/") if folder not in ("", ".", ".."))
    return name


@lru_cache(maxsize=2)
def _load_images(kind: str, folder: RemotePath, fingerprint: str, subset: str) -> np.ndarray:
    return ARRAY_LOADERS[kind](folder, subset)[0]


def _find_row_group(path: RemotePath, fingerprint: str, row: int) -> tuple[int, int]:
    """Return the index of the row group that holds `row`, and its first row."""
    starts = _row_group_starts(path, fingerprint)
    group = int(np.searchsorted(starts, row, side="right")) - 1
    return group, int(starts[group])


@lru_cache(maxsize=64)
def _row_group_starts(path: RemotePath, fingerprint: str) -> np.ndarray:
    metadata = pq.read_metadata(path.path, filesystem=path.fs)
    return np.cumsum([0, *(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))])


@lru_cache(maxsize=4)  # two shards are read from distant row groups at a time
def _read_row_group(path: RemotePath, fingerprint: str, column: str, group: int) -> pa.ChunkedArray:
    file = pq.ParquetFile(path.path, filesystem=path.fs)
    chunks = file.metadata.row_group(group).to_dict()["columns"]
    paths = {c["path_in_schema"]: c["total_uncompressed_size"] for c in chunks}
    length = sum(size for path, size in paths.items() if path == column or path.startswith(f"{column}."))
    if length > MAX_TABLE_BYTES:
        raise ValueError(f"its row group has {length:,} bytes, over the limit of {MAX_TABLE_BYTES:,}")
    image_type = file.schema_arrow.field(column).type
    if not pa.types.is_struct(image_type):
        return _read_images(file, group, column, image_type, length)[column]
    images = _read_images(file, group, f"{column}.bytes", image_type.field("bytes").type, length)[column]
    return images.flatten()[images.type.get_field_index("bytes")]


def _read_images(file: pq.ParquetFile, group: int, leaf: str, leaf_type: pa.DataType, length: int) -> pa.Table:
    """Return a row group's leaf column, of `length` bytes in the file. Raises ValueError over MAX_TABLE_BYTES."""
    if pa.types.is_dictionary(leaf_type):  # it stays one in memory, and each batch would have a copy of it
        return file.read_row_group(group, columns=[leaf])
    # A dictionary of the file holds an image of many rows once, so that the rows may take far more than `length`. One
    # row does not: a batch of these many stays below the limit.
    batches, remaining = [], MAX_TABLE_BYTES
    for batch in file.iter_batches(max(1, MAX_TABLE_BYTES // max(1, length)), row_groups=[group], columns=[leaf]):
        batches.append(batch)
        remaining -= batch.nbytes
        if remaining < 0:
            raise ValueError(f"its row group, decoded, is over the limit of {MAX_TABLE_BYTES:,} bytes")
    return pa.Table.from_batches(batches)


def load_idx(folder: RemotePath, subset: str) -> tuple[np.ndarray, np.ndarray]:
    """Load `subset` ('train' or 'test') of an MNIST-like dataset: uint8 (n, H, W, 1) images and uint8 (n,) labels.

    Raises ValueError when a file is missing, cut short or in another format.
    """
    stem = "train" if subset == "train" else "t10k"
    images = _read_idx(find_idx(folder, f"{stem}-images-idx3-ubyte"))
    labels = _read_idx(find_idx(folder, f"{stem}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"{folder}: shapes of {subset} images {images.shape} and labels {labels.shape} do not match")
    return images[..., None], labels


def find_idx(folder: RemotePath, name: str) -> RemotePath:
    """Return the path of an IDX file, without .gz: its official name, or Kaggle's `train-images.idx3-ubyte`."""
    kaggle = folder / name.replace("-idx", ".idx")
    return kaggle if kaggle.is_file() else folder / name


def _read_idx(path: RemotePath) -> np.ndarray:
    compressed = RemotePath(path.fs, f"{path.path}.gz")
    try:
        data = read_table(path) if path.exists() else _decompress(read_table(compressed))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing (and {compressed} too)") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{compressed} is damaged: {error}") from error
    if len(data) > MAX_TABLE_BYTES:
        raise ValueError(f"{compressed}: its content is over the limit of {MAX_TABLE_BYTES:,} bytes")
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of bytes (it starts with {data[:4]!r})")
    start = 4 + 4 * data[3]
    shape = tuple(np.frombuffer(data[4:start], ">u4").tolist())
    if len(shape) != data[3] or len(data) - start != int(np.prod(shape)):
        raise ValueError(f"{path} is cut short: {len(data):,} bytes for the shape {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _decompress(data: bytes) -> bytes:
    """Return the content of a gzip file, of which no more than MAX_TABLE_BYTES + 1 bytes are decompressed."""
    with gzip.open(io.BytesIO(data)) as file:
        return file.read(MAX_TABLE_BYTES + 1)


def load_csv(folder: RemotePath, subset: str) -> tuple[np.ndarray, np.ndarray]:
    """Load `subset` of an MNIST as CSV, a label and 784 pixels a row: uint8 (n, 28, 28, 1) images, uint8 (n,) labels.

    The file is one of CSV_FILES. The label is the first column, or the one that a header names `label` or `class`. The
    arrays are empty if a test file is missing. Raises ValueError when the file has other columns or values.
    """
    path = next((folder / name for name in CSV_FILES[subset] if (folder / name).is_file()), None)
    if path is None:
        return np.empty((0, 28, 28, 1), np.uint8), np.empty(0, np.uint8)
    data = read_table(path)
    first_row = data[: data.find(b"\n")].decode(errors="replace").strip().replace('"', "").split(",")
    has_header = not first_row[0].isdigit()
    if len(first_row) != 785:
        hint = "; a test set without labels is of no use here: move it away" if len(first_row) == 784 else ""
        raise ValueError(f"{path} has {len(first_row):,} columns, not a label and 784 pixels{hint}")
    columns = [name.strip().lower() for name in first_row] if has_header else [str(i) for i in range(785)]
    try:
        table = csv.read_csv(
            pa.BufferReader(data),
            csv.ReadOptions(column_names=columns, skip_rows=int(has_header)),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.uint8()), null_values=[]),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} must hold whole numbers from 0 to 255: {error}") from error
    label = next((columns.index(name) for name in ("label", "class") if name in columns), 0)
    values = np.stack([column.to_numpy() for column in table.columns], axis=1)
    images, labels = np.delete(values, label, axis=1), values[:, label]
    if len(labels) and not labels.any() and 0 < images[:, -1].max() <= 9:  # MNIST's corner pixels are all 0
        raise ValueError(f"{path} has the labels in its last column: put them first, or add a header with `label`")
    return images.reshape(-1, 28, 28, 1), labels


def load_cifar(folder: RemotePath, subset: str) -> tuple[np.ndarray, np.ndarray]:
    """Load `subset` ('train' or 'test') of CIFAR10: uint8 (n, 32, 32, 3) images and int64 (n,) labels.

    Raises ValueError when a batch is missing, damaged or holds anything but numbers.
    """
    names = [f"data_batch_{i}" for i in range(1, 6)] if subset == "train" else ["test_batch"]
    images, labels = [], []
    for name in names:
        path = folder / name
        try:
            batch = _NumbersOnly(io.BytesIO(read_table(path)), encoding="bytes").load()
            images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.asarray(batch[b"labels"], np.int64))
        except FileNotFoundError:
            raise ValueError(f"{path} is missing") from None
        except OSError:
            raise
        except Exception as error:  # a damaged pickle raises nearly anything
            raise ValueError(f"{path} is not a CIFAR10 batch for Python: {error}") from error
    return np.concatenate(images), np.concatenate(labels)


ARRAY_LOADERS: dict[str, Callable[[RemotePath, str], tuple[np.ndarray, np.ndarray]]] = {
    "idx": load_idx,
    "csv": load_csv,
    "cifar": load_cifar,
}


class _NumbersOnly(pickle.Unpickler):
    """Unpickles numpy arrays alone: CIFAR10 is published as pickles, which torchvision loads without a check."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that an array of numbers needs, refuse any other."""
        allowed = {"_reconstruct", "ndarray", "dtype", "scalar"}
        if module.split(".")[0] == "numpy" and name in allowed:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 pickles bytes in protocol 2
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it would run {module}.{name}")
