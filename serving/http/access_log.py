"""The access log: a line of JSON for each request, without its content."""

import json
import logging
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler

log = logging.getLogger(__name__)


class AccessLog:
    """Append lines to the file `path`; after a rotation, which moves or removes it, to a new one.

    A failure, such as a full disk, is logged once until a line is written again; it fails no request.
    """

    def __init__(self, path: str):
        self._path, self._failed = path, False
        self._handler = _RaisingFileHandler(path, encoding="utf-8")

    def write(self, *, request_id: str, method: str, route: str, status: int, seconds: float, model: str) -> None:
        """Write the line of one request; `route` has no query, `model` is name/version."""
        fields = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "request_id": request_id, "method": method,
            "route": route, "status": status, "seconds": round(seconds, 6), "model": model,
        }  # fmt: skip
        try:
            self._handler.handle(logging.makeLogRecord({"msg": json.dumps(fields)}))
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.warning(
                    "cannot write the access log %s: %s; its lines are lost until it works again", self._path, error
                )
            self._failed = True


class _RaisingFileHandler(WatchedFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        raise  # logging would print a traceback for each line
