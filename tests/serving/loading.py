"""Requests to an endpoint for as long as something is done to it, and how they ended."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np

from serving.client import Client

Z_DIM = 8
TOKEN = "of the tests"


def points(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, Z_DIM)).astype(np.float32)


def everywhere(endpoint, so):
    """Whether `so` holds of what all replicas say of their model: each looks at the alias by itself.

    Who answers is by chance: that one of two is asked 30 times in a row does not happen.
    """
    return all(so(endpoint.model()) for _ in range(30))


class Loading:
    """Requests from some threads as long as the block runs, each with the client's retries or without."""

    def __init__(self, url, threads=4, retries=True):
        self.url, self.threads, self.retries = url, threads, retries
        self.versions, self.failures, self.over = Counter(), [], threading.Event()

    def __enter__(self):
        self.pool = ThreadPoolExecutor(self.threads)
        self.running = [self.pool.submit(self.run, seed) for seed in range(self.threads)]
        return self

    def __exit__(self, *_):
        self.over.set()
        self.pool.shutdown()
        for each in self.running:
            each.result()

    def run(self, seed):
        z = points(2, seed)
        with Client(self.url, TOKEN) as client, httpx2.Client(headers={"Authorization": f"Bearer {TOKEN}"}) as plain:
            while not self.over.is_set():
                try:
                    if self.retries:
                        assert client.decode(z).shape == (2, 16, 16, 3)
                        self.versions["any"] += 1
                    else:
                        answer = plain.post(f"{self.url}/v1/decode", json={"z": z.tolist()})
                        answer.raise_for_status()
                        self.versions[answer.headers["x-zpoint-model"]] += 1
                except Exception as error:
                    self.failures.append(error)

    def until(self, done, seconds=60):
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, (self.versions, self.failures[-1:])
            time.sleep(0.1)
