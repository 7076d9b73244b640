"""A cheap load generator: one thread, raw sockets, prepared bytes; about 50 us of CPU for a request.

    python tests/benchmarks/load.py --port 8000 --connections 32 --seconds 10 --points 1 --z-dim 200 --accept image/png

Closed loop: each connection sends its next request when the answer to the last one is read whole. With --rate so many
a second are sent in all, as far as connections are free, and a latency counts from when the request was due (so that
a stalled server cannot hide behind requests that were not sent). The last line is one JSON object.
"""

import argparse
import io
import json
import select
import socket
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CHUNK = 1 << 18


@dataclass
class Connection:
    sock: socket.socket
    due: float = 0.0
    head: bytes = b""
    wanted: int = -1  # bytes of body to come; -1 until the head is read
    last: bool = False  # the server closes after this answer
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))


class Load:
    """Sends `request` over `connections` until told to stop; counts answers by status and model, keeps latencies."""

    def __init__(self, host: str, port: int, requests: list[bytes], connections: int):
        self.address, self.requests, self.sent = (host, port), requests, 0
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self.failures: list[str] = []
        self.troubles: list[float] = []  # seconds from the start of a failure or an answer other than 200
        self.began = 0.0
        self.received = 0
        self.poll = select.epoll()
        self.open: dict[int, Connection] = {}
        self.idle: deque[Connection] = deque(self._connect() for _ in range(connections))

    def run(self, seconds: float, rate: float = 0.0) -> None:
        """Load for so long; what is still open then is waited for, not more than 30 s."""
        self.began = due = time.perf_counter()
        end = self.began + seconds
        while (now := time.perf_counter()) < end + 30 and (now < end or self.open):
            while self.idle and now < end and (not rate or due <= now):
                self._send(self.idle.popleft(), due if rate else now)
                due += 1 / rate if rate else 0
            wait = 0.05 if not rate or not self.idle else max(0.0, min(0.05, due - now))
            for number, _ in self.poll.poll(wait):
                self._step(self.open[number])

    def _connect(self) -> Connection:
        sock = socket.create_connection(self.address, timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        return Connection(sock)

    def _send(self, connection: Connection, due: float) -> None:
        connection.due, connection.head, connection.wanted = due, b"", -1
        connection.unsent = memoryview(self.requests[self.sent % len(self.requests)])
        self.sent += 1
        number = connection.sock.fileno()
        self.open[number] = connection
        self.poll.register(number, select.EPOLLIN)
        self._push(connection)

    def _push(self, connection: Connection) -> None:
        try:
            connection.unsent = connection.unsent[connection.sock.send(connection.unsent) :]
        except BlockingIOError:
            pass
        except OSError as error:
            return self._fail(connection, repr(error))
        events = select.EPOLLIN | (select.EPOLLOUT if connection.unsent else 0)
        self.poll.modify(connection.sock.fileno(), events)

    def _step(self, connection: Connection) -> None:
        if connection.unsent:
            self._push(connection)
        try:
            data = connection.sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            return self._fail(connection, repr(error))
        if not data:
            return self._fail(connection, "closed before the answer was whole")
        self.received += len(data)
        if connection.wanted < 0:
            connection.head += data
            head, found, body = connection.head.partition(b"\r\n\r\n")
            if not found:
                return
            lines = head.lower().split(b"\r\n")
            headers = dict(line.split(b": ", 1) for line in lines[1:])
            connection.wanted = int(headers.get(b"content-length", b"0")) - len(body)
            connection.last = headers.get(b"connection") == b"close"
            status = lines[0].split(b" ")[1].decode()
            self.statuses[status] += 1
            if status != "200":
                self.troubles.append(time.perf_counter() - self.began)
            self.models[headers.get(b"x-zpoint-model", b"").decode()] += 1
        else:
            connection.wanted -= len(data)
        if connection.wanted == 0:
            self.latencies.append(time.perf_counter() - connection.due)
            self._close(connection)
            self._again(connection) if connection.last else self.idle.append(connection)

    def _fail(self, connection: Connection, why: str) -> None:
        self.failures.append(why)
        self.troubles.append(time.perf_counter() - self.began)
        self._close(connection)
        self._again(connection)

    def _again(self, connection: Connection) -> None:
        """A new connection in the place of one that has ended."""
        connection.sock.close()
        for _ in range(100):
            try:
                return self.idle.append(self._connect())
            except OSError:
                time.sleep(0.05)
        raise ConnectionError(f"nobody listens at {self.address} any more")

    def _close(self, connection: Connection) -> None:
        self.poll.unregister(connection.sock.fileno())
        del self.open[connection.sock.fileno()]


def make_request(path: str, body: bytes, accept: str, kind: str = "application/x-npy", token: str = "") -> bytes:
    """The bytes of an HTTP/1.1 POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", f"Accept: {accept}"]
    lines += [f"Content-Length: {len(body)}", *([f"Authorization: Bearer {token}"] if token else []), "", ""]
    return "\r\n".join(lines).encode() + body


def decode_requests(points: int, z_dim: int, accept: str, token: str = "", count: int = 16) -> list[bytes]:
    """So many different requests to decode `points` z-points each, sent as .npy."""
    requests = []
    for z in np.random.default_rng(0).standard_normal((count, points, z_dim)).astype(np.float32):
        body = io.BytesIO()
        np.save(body, z)
        requests.append(make_request("/v1/decode", body.getvalue(), accept, token=token))
    return requests


def report(load: Load, seconds: float, points: int, cpu: float) -> dict[str, Any]:
    """The figures of a run that took `seconds`, in which the generator itself used `cpu` seconds of CPU."""
    milliseconds = np.sort(load.latencies) * 1000 if load.latencies else np.full(1, np.nan)
    answers = len(load.latencies)
    return {
        "requests_per_second": answers / seconds,
        "points_per_second": load.statuses["200"] * points / seconds,
        **{f"p{q:g}_ms": float(np.percentile(milliseconds, q)) for q in (50, 90, 99)},
        "max_ms": float(milliseconds[-1]),
        "statuses": dict(load.statuses),
        "models": dict(load.models),
        "failures": len(load.failures),
        "kinds_of_failure": dict(Counter(load.failures)),
        "trouble_seconds": [round(seconds, 2) for seconds in load.troubles[:1000]],
        "megabytes_per_second": load.received / seconds / 1e6,
        "generator_cpu_share": cpu / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--warm", type=float, default=1.0, help="seconds of load before what is measured")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second in all; 0: as many as are answered")
    parser.add_argument("--points", type=int, default=1)
    parser.add_argument("--z-dim", type=int, default=200)
    parser.add_argument("--accept", default="application/x-npy")
    parser.add_argument("--token", default="")
    args = parser.parse_args()
    requests = decode_requests(args.points, args.z_dim, args.accept, args.token)
    if args.warm:
        Load(args.host, args.port, requests, args.connections).run(args.warm)
    load = Load(args.host, args.port, requests, args.connections)
    began, cpu = time.perf_counter(), time.process_time()
    load.run(args.seconds, args.rate)
    print(json.dumps(report(load, time.perf_counter() - began, args.points, time.process_time() - cpu)))


if __name__ == "__main__":
    main()
