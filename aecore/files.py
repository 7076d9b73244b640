"""Reading and writing whole files on any pyarrow filesystem: a reader sees all of a file or none of it."""

import hashlib
import json
import os
import secrets
from typing import Any

import pyarrow.fs as pafs


def sha256(data: bytes) -> str:
    """Give the sha256 of `data` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def write_whole(fs: pafs.FileSystem, path: str, data: bytes) -> None:
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
        data = file.read(size)
    if len(data) != size:  # an object store may end its answer early without an error
        raise OSError(f"{path} came cut short: {len(data):,} of {size:,} bytes")
    return data


def write_json(fs: pafs.FileSystem, path: str, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys: equal values give equal bytes. NaN is a ValueError."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_whole(fs, path, f"{text}\n".encode())


def read_json(fs: pafs.FileSystem, path: str) -> Any:
    """Give the value in the JSON file `path`. Raises FileNotFoundError, or ValueError when it is not JSON."""
    try:
        return json.loads(read_bytes(fs, path))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path} is not valid JSON: {error}") from error
