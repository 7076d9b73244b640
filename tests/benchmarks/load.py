"""Generate HTTP load cheaply: one thread, raw sockets, prepared bytes; about 50 us of CPU per request.

    python tests/benchmarks/load.py --port 8000 --connections 32 --seconds 10 --points 1 --z-dim 200 --accept image/png

Closed loop: each connection sends its next request once it has read the whole response to the last one. With --rate
all connections together send that many requests a second, if enough are idle; a latency then counts from the time the
request was due, so that a stalled server cannot hide behind unsent requests. The last line is one JSON object.
"""

import argparse
import io
import json
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RECEIVE_BYTES = 1 << 18


@dataclass
class Connection:
    sock: socket.socket
    due: float = 0.0
    head: bytes = b""
    body_bytes_left: int = -1  # -1 until the head has been read
    closes: bool = False  # the server closes the connection after this response
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))


class Load:
    """Send `requests` in turn over `connections`; count responses by status and model, and record latencies."""

    def __init__(self, host: str, port: int, requests: list[bytes], connections: int):
        self.address, self.requests, self.sent = (host, port), requests, 0
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self.failures: list[str] = []
        self.failure_times: list[float] = []  # seconds from the start, of failures and responses other than 200
        self.start = 0.0
        self.received_bytes = 0
        self.poll = select.epoll()
        self.busy: dict[int, Connection] = {}
        self.idle: deque[Connection] = deque(self._connect() for _ in range(connections))

    def run(self, seconds: float, rate: float = 0.0) -> None:
        """Send requests for `seconds`; then wait for open responses, at most 30 s."""
        self.start = due = time.perf_counter()
        end = self.start + seconds
        while (now := time.perf_counter()) < end + 30 and (now < end or self.busy):
            while self.idle and now < end and (not rate or due <= now):
                self._send(self.idle.popleft(), due if rate else now)
                due += 1 / rate if rate else 0
            timeout_s = 0.05 if not rate or not self.idle else max(0.0, min(0.05, due - now))
            for fd, _ in self.poll.poll(timeout_s):
                self._advance(self.busy[fd])

    def _connect(self) -> Connection:
        sock = socket.create_connection(self.address, timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        return Connection(sock)

    def _send(self, connection: Connection, due: float) -> None:
        connection.due, connection.head, connection.body_bytes_left = due, b"", -1
        connection.unsent = memoryview(self.requests[self.sent % len(self.requests)])
        self.sent += 1
        fd = connection.sock.fileno()
        self.busy[fd] = connection
        self.poll.register(fd, select.EPOLLIN)
        self._send_unsent(connection)

    def _send_unsent(self, connection: Connection) -> None:
        try:
            connection.unsent = connection.unsent[connection.sock.send(connection.unsent) :]
        except BlockingIOError:
            pass
        except OSError as error:
            return self._fail(connection, repr(error))
        events = select.EPOLLIN | (select.EPOLLOUT if connection.unsent else 0)
        self.poll.modify(connection.sock.fileno(), events)

    def _advance(self, connection: Connection) -> None:
        if connection.unsent:
            self._send_unsent(connection)
        try:
            data = connection.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            return self._fail(connection, repr(error))
        if not data:
            return self._fail(connection, "closed before the end of the response")
        self.received_bytes += len(data)
        if connection.body_bytes_left < 0:
            connection.head += data
            head, separator, body = connection.head.partition(b"\r\n\r\n")
            if not separator:
                return
            lines = head.lower().split(b"\r\n")
            headers = dict(line.split(b": ", 1) for line in lines[1:])
            connection.body_bytes_left = int(headers.get(b"content-length", b"0")) - len(body)
            connection.closes = headers.get(b"connection") == b"close"
            status = lines[0].split(b" ")[1].decode()
            self.statuses[status] += 1
            if status != "200":
                self.failure_times.append(time.perf_counter() - self.start)
            self.models[headers.get(b"x-zpoint-model", b"").decode()] += 1
        else:
            connection.body_bytes_left -= len(data)
        if connection.body_bytes_left == 0:
            self.latencies.append(time.perf_counter() - connection.due)
            self._finish(connection)
            self._reconnect(connection) if connection.closes else self.idle.append(connection)

    def _fail(self, connection: Connection, cause: str) -> None:
        self.failures.append(cause)
        self.failure_times.append(time.perf_counter() - self.start)
        self._finish(connection)
        self._reconnect(connection)

    def _reconnect(self, connection: Connection) -> None:
        """Replace a connection that has ended."""
        connection.sock.close()
        for _ in range(100):
            try:
                return self.idle.append(self._connect())
            except OSError:
                time.sleep(0.05)
        raise ConnectionError(f"cannot reconnect to {self.address}: the server has ended")

    def _finish(self, connection: Connection) -> None:
        self.poll.unregister(connection.sock.fileno())
        del self.busy[connection.sock.fileno()]


def make_request(path: str, body: bytes, accept: str, token: str = "") -> bytes:
    """Return the bytes of an HTTP/1.1 POST of a .npy body."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/x-npy", f"Accept: {accept}"]
    lines += [f"Content-Length: {len(body)}", *([f"Authorization: Bearer {token}"] if token else []), "", ""]
    return "\r\n".join(lines).encode() + body


def decode_requests(
    points: int, z_dim: int, accept: str, token: str = "", paths: Sequence[str] = ("/v1/decode",), count: int = 16
) -> list[bytes]:
    """Return `count` different requests that decode `points` z-points each, sent as .npy, to the `paths` in turn."""
    requests = []
    for index, z in enumerate(np.random.default_rng(0).standard_normal((count, points, z_dim)).astype(np.float32)):
        body = io.BytesIO()
        np.save(body, z)
        requests.append(make_request(paths[index % len(paths)], body.getvalue(), accept, token=token))
    return requests


def report(load: Load, seconds: float, points: int, cpu_seconds: float) -> dict[str, Any]:
    """Return the results of a load that took `seconds`; the generator itself used `cpu_seconds` of CPU."""
    milliseconds = np.sort(load.latencies) * 1000 if load.latencies else np.full(1, np.nan)
    responses = len(load.latencies)
    return {
        "requests_per_second": responses / seconds,
        "points_per_second": load.statuses["200"] * points / seconds,
        **{f"p{q:g}_ms": float(np.percentile(milliseconds, q)) for q in (50, 90, 99)},
        "max_ms": float(milliseconds[-1]),
        "statuses": dict(load.statuses),
        "models": dict(load.models),
        "failures": len(load.failures),
        "kinds_of_failure": dict(Counter(load.failures)),
        "trouble_seconds": [round(t, 2) for t in load.failure_times[:1000]],
        "megabytes_per_second": load.received_bytes / seconds / 1e6,
        "generator_cpu_share": cpu_seconds / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--warm", type=float, default=1.0, help="seconds of load before the measurement")
    parser.add_argument("--rate", type=float, default=0.0, help="requests/s in all; 0: as many as are answered")
    parser.add_argument("--points", type=int, default=1)
    parser.add_argument("--z-dim", type=int, default=200)
    parser.add_argument("--accept", default="application/x-npy")
    parser.add_argument("--token", default="")
    parser.add_argument("--paths", nargs="+", default=["/v1/decode"], help="paths to which the requests go in turn")
    args = parser.parse_args()
    requests = decode_requests(args.points, args.z_dim, args.accept, args.token, args.paths)
    if args.warm:
        Load(args.host, args.port, requests, args.connections).run(args.warm)
    load = Load(args.host, args.port, requests, args.connections)
    start, cpu_start = time.perf_counter(), time.process_time()
    load.run(args.seconds, args.rate)
    print(json.dumps(report(load, time.perf_counter() - start, args.points, time.process_time() - cpu_start)))


if __name__ == "__main__":
    main()
