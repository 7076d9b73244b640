"""The images of a split decoded anew in each epoch, for datasets that fit on no node."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from aecore.data.dataset import Dataset
from aecore.data.node_cache import PREFETCH, num_threads
from aecore.data.shuffle import plan_epoch


def iter_shards(dataset: Dataset, split: str, seed: int, epoch: int | None) -> Iterator[np.ndarray]:
    """Yield the images of `split`, one shard at a time: uint8 (rows, size, size, channels).

    The order of the shards is a function of (seed, epoch); `epoch` None keeps the stored order. A thread per CPU
    reads and decodes the next shards meanwhile.
    """
    shards = dataset.shards(split)
    order = range(len(shards)) if epoch is None else plan_epoch(seed, epoch, len(shards))
    with ThreadPoolExecutor(num_threads(), "decode") as decoders:
        pending: deque[Future[np.ndarray]] = deque()
        for index in order:
            pending.append(decoders.submit(dataset.decode_shard, shards[index]))
            if len(pending) > PREFETCH:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
