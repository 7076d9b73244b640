"""Error messages in one line, for log lines and for what a command prints."""


def one_line(error: BaseException, limit: int | None = 300) -> str:
    """Return the message of `error` without line breaks, cut to `limit` characters; its class name if it has none."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"[:limit]
    return " ".join(str(error).split())[:limit] or type(error).__name__
