"""Disk space of the node cache: entries in use are locked, the least recently used others are evicted."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO


class CacheSpaceError(ValueError):
    """The node cache of this machine cannot take a split: its disk is too small, full or not writable."""


def mark_in_use(entry: Path) -> IO[bytes]:
    """Protect the cache entry at `entry` from eviction until the returned file is closed or the process exits."""
    lock = open(f"{entry}.lock", "ab")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_SH)
    os.utime(lock.fileno())
    return lock


def allocate(entry: Path, size: int, max_bytes: int | None) -> None:
    """Allocate `size` bytes of disk for `entry/images.u8`, evicting other entries if `max_bytes` requires it.

    Without `max_bytes` the entries may take half of the free disk space and of what they take already; an entry that
    has its disk space already keeps it. Raises CacheSpaceError when that is too little, without an eviction; OSError
    when the disk is full.
    """
    with _locked(entry.parent), ExitStack() as locks:
        if not max_bytes and _allocated_bytes(entry / "images.u8") >= size:
            return
        for path in _find_evictions({entry: size}, max_bytes, locks):
            shutil.rmtree(path)
        entry.mkdir(exist_ok=True)
        _extend(entry / "images.u8", size)


def check_space(sizes: dict[Path, int], max_bytes: int | None) -> None:
    """Raise CacheSpaceError if entries of `sizes` bytes, all in one folder, do not fit together; changes nothing."""
    with _locked(next(iter(sizes)).parent), ExitStack() as locks:
        if max_bytes or any(_allocated_bytes(entry / "images.u8") < size for entry, size in sizes.items()):
            _find_evictions(sizes, max_bytes, locks)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from allocating and evicting entries in `folder`."""
    with open(folder / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _find_evictions(entries: dict[Path, int], max_bytes: int | None, locks: ExitStack) -> list[Path]:
    """Return the other entries of the folder to evict, so that `entries` of these sizes fit within `allocate`'s limit.

    They are locked until `locks` is closed. Raises CacheSpaceError if the entries do not fit all the same.
    """
    folder, size = next(iter(entries)).parent, sum(entries.values())
    sizes = {file.parent: file.stat().st_size for file in folder.glob("*/images.u8")}
    if max_bytes:
        reason, fix = "ZPOINT_CACHE_MAX", "raise the limit"
    else:
        max_bytes = (shutil.disk_usage(folder).free + sum(sizes.values())) // 2
        reason, fix = "half of what its disk has free", "free some space, set ZPOINT_CACHE to a larger disk"
    other_sizes = {path: path_size for path, path_size in sizes.items() if path not in entries}
    verb = "takes" if len(entries) == 1 else "take"
    taken = f"decoded, {', '.join(entry.name for entry in entries)} {verb} {_format(size)}"
    exceeded = f"more than the {_format(max_bytes)} that the node cache {folder} may hold ({reason})"
    if size > max_bytes:
        raise CacheSpaceError(f"{taken}, {exceeded}: {fix} or stream it with data.cache=none")
    if sum(other_sizes.values()) + size <= max_bytes:
        return []
    idle = [path for path in sorted(other_sizes, key=_last_used) if _lock_idle(path, locks)]
    in_use = sum(other_sizes[path] for path in other_sizes.keys() - idle)
    if in_use + size > max_bytes:
        raise CacheSpaceError(
            f"{taken}, with the {_format(in_use)} of other datasets in use {exceeded}: "
            f"wait for their runs to end, or {fix}"
        )
    evicted: list[Path] = []
    while sum(other_sizes.values()) + size > max_bytes:
        evicted.append(idle.pop(0))
        del other_sizes[evicted[-1]]
    return evicted


def _allocated_bytes(path: Path) -> int:
    """Return how much of a file has blocks on the disk, 0 if there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return 0
    return min(stat.st_size, 512 * stat.st_blocks)


def _extend(path: Path, size: int) -> None:
    # On file systems without fallocate glibc emulates it, but only for files open to read and not to append.
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        old_size = os.fstat(file.fileno()).st_size
        try:
            # Blocks, not a hole: a full disk must fail here and not later, while images are decoded.
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            os.ftruncate(file.fileno(), old_size)
            raise


def _lock_idle(entry: Path, locks: ExitStack) -> bool:
    """Keep others from using the cache entry until `locks` is closed, or return False if it is in use."""
    lock = locks.enter_context(open(f"{entry}.lock", "ab"))  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _last_used(entry: Path) -> float:
    try:
        return os.stat(f"{entry}.lock").st_mtime
    except FileNotFoundError:
        return 0.0


def _format(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
