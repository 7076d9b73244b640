"""Error messages in one line, for log lines and for what a command prints."""

import errno
import os
from collections.abc import Iterable

MAX_NAME = 70  # characters of a printed file name
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # the second is a user's quota
FREE_SPACE = "free some space there"


def one_line(error: BaseException, limit: int | None = 300) -> str:
    """Return the message of `error` without line breaks, cut to `limit` characters; its class name if it has none."""
    if isinstance(error, OSError) and error.filename:
        if error.errno in DISK_FULL:  # of a copy, the second file is the one to write
            return f"{error.filename2 or error.filename}: {error.strerror}; {FREE_SPACE}"[:limit]
        return f"{error.filename}: {error.strerror}"[:limit]
    return " ".join(str(error).split())[:limit] or type(error).__name__


def printable(name: str) -> str:
    """Return a file name for a message: control characters and bytes that are not UTF-8 escaped, the middle cut out."""
    text = os.fsencode(name).decode(errors="backslashreplace") if not name.isascii() else name
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME // 2]}...{text[-MAX_NAME // 2 :]}"


def list_names(names: Iterable[str], limit: int = 3) -> str:
    """Return the first `limit` names for a message, and the number of the others: `a.png, b.png and 3 more`."""
    names = list(names)
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(map(printable, names[:limit])) + more
