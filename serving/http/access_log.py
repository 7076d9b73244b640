"""The access log: a line of JSON for each request, without its content."""

import json
import logging
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler


class AccessLog:
    """Append lines to the file `path`; after a rotation, which moves or removes it, to a new one."""

    def __init__(self, path: str):
        self._handler = WatchedFileHandler(path, encoding="utf-8")

    def write(self, *, request_id: str, method: str, route: str, status: int, seconds: float, model: str) -> None:
        """Write the line of one request; `route` has no query, `model` is name/version. A full disk fails nothing."""
        fields = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "request_id": request_id, "method": method,
            "route": route, "status": status, "seconds": round(seconds, 6), "model": model,
        }  # fmt: skip
        self._handler.handle(logging.makeLogRecord({"msg": json.dumps(fields)}))
