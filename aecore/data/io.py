"""Read and write whole files on any pyarrow file system: a reader gets all of a file or none of it."""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

T = TypeVar("T")
MAX_ATTEMPTS = 3  # to read data that a network damaged or cut short without an error
SENTINELS = b"\xa5\x5a\xc3"  # one byte per attempt
PAUSE_S = 0.5  # before the second attempt, twice as long before the third


def absolute_path(path: str) -> Path:
    """Return the local `path` as an absolute one, with a leading `~` or `~user` expanded.

    Raises ValueError for an unknown user, and for a relative path if the working directory was deleted.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"'{path}' names no user's home folder; for a folder of that name write './{path}'") from None
    except FileNotFoundError:
        raise ValueError(f"cannot resolve '{path}': the working directory was deleted; change to another") from None


def sha256(data: bytes) -> str:
    """Return the sha256 of `data` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def write_atomic(fs: pafs.FileSystem, path: str, data: bytes) -> None:
    """Write `data` to `path` atomically, replacing an existing file; parent folders are created.

    On a local disk the bytes go to a temporary name beside `path`, are synced, then renamed. An object store
    shows an object only once it is complete. Raises OSError, which names `path` or its folder, when the storage
    refuses (no space, no permission).
    """
    if not isinstance(fs, pafs.LocalFileSystem):
        with ThreadPoolExecutor(1) as pool:  # signal handlers, which may raise, run in the main thread alone
            pool.submit(_write_object, fs, path, data).result()
        return
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno:  # that of a failed write names no file
            raise OSError(error.errno, error.strerror, path) from error
        raise


def _write_object(fs: pafs.FileSystem, path: str, data: bytes) -> None:
    """Write an object. A stream that an exception closes before `write` replaces the object by an empty one."""
    with fs.open_output_stream(path) as stream:
        stream.write(data)


def read_bytes(fs: pafs.FileSystem, path: str, max_bytes: int | None = None) -> bytes:
    """Return the content of `path`.

    Raises FileNotFoundError when it is missing, OSError when it is cut short, ValueError if it exceeds `max_bytes`.
    """
    with fs.open_input_file(path) as file:
        size = file.size()
        if max_bytes is not None:
            check_length(size, max_bytes)
        if not isinstance(fs, pafs.LocalFileSystem):
            buffer = bytearray(size)
            read_range(file, 0, memoryview(buffer), path)
            return bytes(buffer)
        data = file.read(size)
    if len(data) != size:
        raise OSError(f"{path} was cut short: read {len(data):,} of {size:,} bytes")
    return data


def check_length(length: int, max_bytes: int) -> None:
    """Raise ValueError if `length` bytes exceed `max_bytes`."""
    if length > max_bytes:
        raise ValueError(f"it has {length:,} bytes, over the limit of {max_bytes:,}")


def read_range(file: pa.NativeFile, start: int, buffer: memoryview, name: str) -> None:
    """Fill `buffer` from byte `start` of a remote file that is long enough. Raises OSError when it is cut short.

    Two responses of S3 are retried here because pyarrow (25) does not retry them. One is a body that is too short but
    agrees with its own Content-Length: pyarrow leaves the rest of the buffer unchanged and reports no error. So the
    last byte is set to a sentinel first, another one at each attempt: if it is still there, the body ended before it
    (or that byte equals the sentinel, which the next attempt shows). The other is an error response, such as a 503,
    whose text is longer than the buffer.
    """

    def read(attempt: int) -> None:
        time.sleep(attempt * PAUSE_S)
        buffer[-1] = sentinel = SENTINELS[attempt]
        file.seek(start)
        try:
            length = file.readinto(buffer)
        except OSError as error:
            if "response stream" in str(error):  # the buffer is too small for the error's text
                raise _ShortReadError(f"{name}: error response for {len(buffer):,} bytes at {start:,}") from error
            raise
        if length != len(buffer) or buffer[-1] == sentinel:
            raise _ShortReadError(f"{name} was cut short: fewer than {len(buffer):,} bytes at {start:,}")

    if len(buffer):
        retry_read(read, _ShortReadError, remote=True)


class _ShortReadError(OSError):
    """Fewer bytes were read than the file holds."""


def retry_read(read: Callable[[int], T], *errors: type[Exception], remote: bool) -> T:
    """Return `read(attempt)`, attempts counting from 0; retry on `errors` if the file is `remote`.

    This is for data that was damaged in transit without an error; the file system itself retries connection errors.
    """
    last = MAX_ATTEMPTS - 1 if remote else 0
    for attempt in range(last):
        with suppress(*errors):
            return read(attempt)
    return read(last)


def encode_json(value: Any) -> bytes:
    """Return `value` as indented JSON with sorted keys: equal values give equal bytes. Raises ValueError for NaN."""
    return f"{json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)}\n".encode()


def write_json(fs: pafs.FileSystem, path: str, value: Any) -> None:
    """Write `value` atomically as `encode_json` returns it."""
    write_atomic(fs, path, encode_json(value))


def read_json(fs: pafs.FileSystem, path: str) -> Any:
    """Return the value in the JSON file `path`. Raises FileNotFoundError, or ValueError when it is not JSON."""
    try:
        return json.loads(read_bytes(fs, path))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path} is not valid JSON: {error}") from error
