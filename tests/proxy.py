"""An HTTP proxy on loopback that counts what it gets and answers each request itself."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class CountingProxy(ThreadingHTTPServer):
    """`requests` holds the method and target of each request; `url` is the proxy's own."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        assert isinstance(self.server, CountingProxy)
        self.server.requests.append(f"{self.command} {self.path}")
        self.send_response(418, "I am a proxy")
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_CONNECT = _answer


@contextmanager
def counting_proxy() -> Iterator[CountingProxy]:
    """Serve a proxy inside the block."""
    proxy = CountingProxy()
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
