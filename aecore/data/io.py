"""Reading and writing whole files on any pyarrow filesystem: a reader sees all of a file or none of it."""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

T = TypeVar("T")
TRIES = 3  # for what came over a network without an error, and yet is not what was sent
MARKS = b"\xa5\x5a\xc3"  # one for each try
PAUSE_SECONDS = 0.5  # before the second try, twice as long before the third


def sha256(data: bytes) -> str:
    """Give the sha256 of `data` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def write_atomic(fs: pafs.FileSystem, path: str, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all, replacing what was there; parent folders are made.

    On a local disk the bytes go to a temporary name beside `path`, are synced, then renamed. An object store
    shows an object only once it is complete. Raises OSError when the storage refuses (no space, no right).
    """
    if not isinstance(fs, pafs.LocalFileSystem):
        with fs.open_output_stream(path) as stream:
            stream.write(data)
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
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def read_bytes(fs: pafs.FileSystem, path: str) -> bytes:
    """Give the whole content of `path`. Raises FileNotFoundError when there is none, OSError when less comes."""
    with fs.open_input_file(path) as file:
        size = file.size()
        if not isinstance(fs, pafs.LocalFileSystem):
            buffer = bytearray(size)
            read_range(file, 0, memoryview(buffer), path)
            return bytes(buffer)
        data = file.read(size)
    if len(data) != size:
        raise OSError(f"{path} came cut short: {len(data):,} of {size:,} bytes")
    return data


def read_range(file: pa.NativeFile, start: int, buffer: memoryview, name: str) -> None:
    """Fill `buffer` from byte `start` of a remote file that reaches that far. Raises OSError when less comes.

    Two answers of S3 are asked for again here, for pyarrow (25) does not. One that is too short, but as long as its
    own Content-Length: pyarrow leaves the rest of the buffer as it was and says nothing. So a mark is laid on the last
    byte first, another one at each try: where it is still there, the answer did not get so far (or that byte is the
    mark, which the next try tells). And an error, as a 503, whose text is longer than the buffer.
    """

    def read(attempt: int) -> None:
        time.sleep(attempt * PAUSE_SECONDS)
        buffer[-1] = mark = MARKS[attempt]
        file.seek(start)
        try:
            came = file.readinto(buffer)
        except OSError as error:
            if "response stream" in str(error):  # it does not take the error's text
                raise _ShortAnswerError(f"{name} gave an error for {len(buffer):,} bytes from {start:,} on") from error
            raise
        if came != len(buffer) or buffer[-1] == mark:
            raise _ShortAnswerError(f"{name} came cut short: not all of {len(buffer):,} bytes from {start:,} on")

    if len(buffer):
        retry_read(read, _ShortAnswerError, remote=True)


class _ShortAnswerError(OSError):
    """Fewer bytes came than the file holds."""


def retry_read(read: Callable[[int], T], *wrong: type[Exception], remote: bool) -> T:
    """Give what `read(attempt)` gives, attempts counting from 0. What is `wrong` but came over a network is read again.

    For what arrives without a word and is not what was sent; errors of the connection the file system retries itself.
    """
    last = TRIES - 1 if remote else 0
    for attempt in range(last):
        with suppress(*wrong):
            return read(attempt)
    return read(last)


def write_json(fs: pafs.FileSystem, path: str, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys: equal values give equal bytes. NaN is a ValueError."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomic(fs, path, f"{text}\n".encode())


def read_json(fs: pafs.FileSystem, path: str) -> Any:
    """Give the value in the JSON file `path`. Raises FileNotFoundError, or ValueError when it is not JSON."""
    try:
        return json.loads(read_bytes(fs, path))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path} is not valid JSON: {error}") from error
