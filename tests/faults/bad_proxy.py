"""A proxy in front of an S3 server that injects faults, the same ones each time."""

import re
import threading
from collections import Counter
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)
HOP_BY_HOP = ("connection", "content-length", "expect", "keep-alive", "transfer-encoding")  # headers not passed on


@dataclass(frozen=True)
class Fault:
    """A fault of the first `times` equal requests that match `pattern`.

    503: an error. stall: no response. half: the connection ends in mid-body. short: half the body, with the
    Content-Length of that half. flip: one bit in the middle of the body is flipped.
    """

    kind: str
    pattern: str  # a regular expression for `METHOD /bucket/key?query bytes=FIRST-LAST`
    times: float = 1


class BadProxy(ThreadingHTTPServer):
    """Forwards requests to the server at `url`, except for its `faults`; `injected` counts them by kind."""

    daemon_threads = True

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = url.removeprefix("http://")
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.faults: list[Fault] = []
        self.injected: Counter[str] = Counter()
        self.stopped = threading.Event()
        self._matches: Counter[tuple[Fault, str]] = Counter()
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def fault(self, request: str) -> str:
        """Return the kind of fault to inject into this request, '' for none."""
        with self._lock:
            for fault in self.faults:
                if re.search(fault.pattern, request):
                    self._matches[fault, request] += 1
                    if self._matches[fault, request] <= fault.times:
                        self.injected[fault.kind] += 1
                        return fault.kind
        return ""

    def stop(self) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: BadProxy

    def respond(self) -> None:
        body = self._body()
        kind = self.server.fault(f"{self.command} {self.path} {self.headers.get('Range', '')}")
        if kind == "stall":
            self.server.stopped.wait(60)
            self.close_connection = True
        elif kind == "503":
            self._send(503, [("Content-Type", "application/xml")], SLOW_DOWN, len(SLOW_DOWN))
        else:
            self._send(*self._damaged(kind, *self._upstream(body)))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = respond

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)

    def _upstream(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes, int]:
        """Return status, headers, body and Content-Length of the server's response."""
        connection = HTTPConnection(self.server.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            content = response.read()
            length = int(response.getheader("Content-Length") or len(content))  # a HEAD has one without a body
            headers = [(n, v) for n, v in response.getheaders() if n.lower() not in HOP_BY_HOP]
            return response.status, headers, content, length
        finally:
            connection.close()

    def _damaged(
        self, kind: str, status: int, headers: list[tuple[str, str]], body: bytes, length: int
    ) -> tuple[int, list[tuple[str, str]], bytes, int]:
        half = len(body) // 2
        if self.command == "HEAD":
            return status, headers, body, length
        if kind == "half":
            self.close_connection = True
            return status, headers, body[:half], length
        if kind == "short":
            return status, headers, body[:half], half
        if kind == "flip" and body:
            return status, headers, body[:half] + bytes([body[half] ^ 16]) + body[half + 1 :], length
        return status, headers, body, length

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
