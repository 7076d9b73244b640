"""A constant load of requests on an endpoint while a test disturbs it, and how the requests ended."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx2
import numpy as np

from serving.client import Client

Z_DIM = 8
TOKEN = "of the tests"
PLAIN_TIMEOUT_S = 60.0  # as long as the client's: a slow answer on a busy machine is no failure


def make_z(n, seed=0):
    """Return random z-points, float32 (n, z_dim)."""
    return np.random.default_rng(seed).normal(size=(n, Z_DIM)).astype(np.float32)


def all_replicas(endpoint, condition):
    """Return true if `condition` holds for what each replica reports at /v1/model: each polls the alias by itself.

    HAProxy picks the replica at random: that 30 requests in a row all reach one of two does not happen.
    """
    return all(condition(endpoint.model()) for _ in range(30))


@dataclass(frozen=True)
class Failure:
    """A failed request: its error, when it began (seconds since the load did), and how long it took."""

    error: Exception
    began_s: float
    took_s: float


class RequestLoad:
    """Threads that send decode requests until the block ends, with the client's retries or without.

    `versions` counts the successful requests by X-Zpoint-Model (by "any" with retries).
    """

    def __init__(self, url, threads=4, retries=True):
        self.url, self.threads, self.retries = url, threads, retries
        self.versions, self.failures, self.stopping = Counter(), list[Failure](), threading.Event()

    def __enter__(self):
        self.start = time.monotonic()
        self.pool = ThreadPoolExecutor(self.threads)
        self.futures = [self.pool.submit(self.run, seed) for seed in range(self.threads)]
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.pool.shutdown()
        for future in self.futures:
            future.result()

    def elapsed_s(self):
        """Return the seconds since the load began."""
        return time.monotonic() - self.start

    def run(self, seed):
        z, headers = make_z(2, seed), {"Authorization": f"Bearer {TOKEN}"}
        with Client(self.url, TOKEN) as client, httpx2.Client(headers=headers, timeout=PLAIN_TIMEOUT_S) as plain:
            while not self.stopping.is_set():
                began_s = self.elapsed_s()
                try:
                    if self.retries:
                        assert client.decode(z).shape == (2, 16, 16, 3)
                        self.versions["any"] += 1
                    else:
                        response = plain.post(f"{self.url}/v1/decode", json={"z": z.tolist()})
                        response.raise_for_status()
                        self.versions[response.headers["x-zpoint-model"]] += 1
                except Exception as error:
                    self.failures.append(Failure(error, began_s, self.elapsed_s() - began_s))

    def wait_until(self, condition, timeout_s=60):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, (self.versions, self.failures[-1:])
            time.sleep(0.1)
