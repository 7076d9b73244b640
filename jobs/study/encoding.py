"""Encode a training split that is too large for one process: Ray Data reads, decodes and encodes it on all nodes.

It imports ray.data: import it after `cluster.ray_connection.connect`, and only when it is needed.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.data
from ray.data import DataContext

from aecore.data.dataset import Dataset
from aecore.data.shards import Manifest
from cluster.ray_connection import has_gpu
from cluster.settings import apply_env, exported_env
from cluster.storage import open_uri
from jobs.ray_data import unwrap_value_errors

if TYPE_CHECKING:
    from aecore.model.autoencoder import DiagonalGaussian


def encode_on_cluster(run_uri: str, dataset_uri: str, manifest: Manifest, limit: int) -> "DiagonalGaussian":
    """Return q(z|x) of at most `limit` corrupted training images, in their order, on the CPU.

    The result equals that of one process, except for a task with random noise: each shard has a seed of its own.
    Raises ValueError naming a damaged shard.
    """
    import torch

    from aecore.model.autoencoder import DiagonalGaussian

    DataContext.get_current().enable_progress_bars = False
    shard_tasks, first_index = [], 0
    for shard, rows in Dataset(*open_uri(dataset_uri), manifest).spaced_rows("train", limit):
        shard_index = manifest.shards("train").index(shard)
        shard_tasks.append({"shard_index": shard_index, "rows": rows, "first_index": first_index})
        first_index += len(rows)
    encode = partial(
        _encode_shard, run_uri=run_uri, dataset_uri=dataset_uri, manifest=manifest, environment=exported_env()
    )
    tasks = ray.data.from_items(shard_tasks, override_num_blocks=len(shard_tasks))
    encoded = tasks.map_batches(encode, batch_size=1, num_cpus=1, num_gpus=1 if has_gpu() else 0)
    with unwrap_value_errors():
        shards = sorted(encoded.iter_rows(), key=lambda row: row["first_index"])
    mean = torch.from_numpy(np.concatenate([shard["mean"] for shard in shards]))
    logvars = [shard["logvar"] for shard in shards]
    return DiagonalGaussian(mean, torch.from_numpy(np.concatenate(logvars)) if len(logvars[0]) else None)


def _encode_shard(
    batch: Any, run_uri: str, dataset_uri: str, manifest: Manifest, environment: dict[str, str]
) -> dict[str, Any]:
    """Return mean and logvar of q(z|x) of some rows of one shard. An AE has an empty logvar."""
    from aecore.analysis import encode_images
    from aecore.model.autoencoder import default_device
    from aecore.training.checkpoint import load_model

    apply_env(environment)
    fs, root = open_uri(run_uri)
    # Loaded for each shard: that costs little beside decoding it, and a reused worker never has an outdated model.
    saved = load_model(fs, f"{root}/model", default_device())
    shard, first_index = manifest.shards("train")[int(batch["shard_index"][0])], int(batch["first_index"][0])
    images = Dataset(*open_uri(dataset_uri), manifest).decode_shard(shard, batch["rows"][0])
    posterior = encode_images(saved, images, first_index)
    logvar = np.empty((0,), np.float32) if posterior.logvar is None else posterior.logvar.numpy()
    return {"first_index": [first_index], "mean": [posterior.mean.numpy()], "logvar": [logvar]}
