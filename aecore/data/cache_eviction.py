"""Room for node caches: who uses which copy, and which one leaves when the disk's share is full."""

import fcntl
import os
import shutil
from pathlib import Path
from typing import IO


def hold(place: Path) -> IO[bytes]:
    """Note that the copy at `place` is used, until the file that this gives is closed or the process ends."""
    file = open(f"{place}.lock", "ab")  # noqa: SIM115
    fcntl.flock(file, fcntl.LOCK_SH)
    os.utime(file.fileno())
    return file


def allocate(place: Path, size: int, limit: int | None) -> None:
    """Have `place/images.u8` with `size` bytes of the disk, evicting other copies where `limit` asks for it.

    Without a limit the copies may take half of what the disk has free and they take already. Raises ValueError
    when the limit forbids it, OSError when the disk does.
    """
    folder = place.parent
    with open(folder / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        others = {file.parent: file.stat().st_size for file in folder.glob("*/images.u8")}
        others[place] = others.get(place, 0)
        limit = limit or (shutil.disk_usage(folder).free + sum(others.values())) // 2
        del others[place]
        allowed = f"more than the {_plain(limit)} that the node cache {folder} may hold (ZPOINT_CACHE_MAX)"
        if size > limit:
            raise ValueError(f"decoded, {place.name} takes {_plain(size)}, {allowed}: stream it with data.cache=none")
        for old in sorted(others, key=_last_used):
            if sum(others.values()) + size > limit and _evict(old):
                del others[old]
        if sum(others.values()) + size > limit:
            in_use = f"and the {_plain(sum(others.values()))} of other sets in use"
            raise ValueError(f"decoded, {place.name} takes {_plain(size)}, with {in_use} {allowed}: wait or raise it")
        place.mkdir(exist_ok=True)
        _extend(place / "images.u8", size)


def _extend(path: Path, size: int) -> None:
    with open(path, "ab") as file:
        before = os.fstat(file.fileno()).st_size
        try:
            # Real blocks, not a hole: a full disk must show here and not later in the midst of decoding.
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise


def _evict(place: Path) -> bool:
    with open(f"{place}.lock", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(place, ignore_errors=True)
        return not place.exists()


def _last_used(place: Path) -> float:
    try:
        return os.stat(f"{place}.lock").st_mtime
    except FileNotFoundError:
        return 0.0


def _plain(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
