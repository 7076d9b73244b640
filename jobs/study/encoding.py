"""The z-points of a set that is too large for one process: Ray Data reads, decodes and encodes it on all nodes.

Imported only where a study encodes so much: it needs ray.data.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.data
from ray.data import DataContext

from aecore.data.dataset import Dataset
from aecore.data.shards import Manifest
from cluster.ray_connection import connect, has_gpu
from cluster.settings import apply_env, exported_env
from cluster.storage import open_uri
from jobs.ray_data import unwrap_value_errors

if TYPE_CHECKING:
    from aecore.model.autoencoder import DiagonalGaussian


def encode_spread(run: str, uri: str, manifest: Manifest, limit: int) -> "DiagonalGaussian":
    """What the encoder of the run at the URI `run` answers to at most `limit` training images of the dataset at `uri`.

    In the order of the images, on the CPU, and the same as in one process, but for the noise of a task that has some:
    each shard draws its own. Raises ValueError naming a damaged shard.
    """
    import torch

    from aecore.model.autoencoder import DiagonalGaussian

    connect()
    DataContext.get_current().enable_progress_bars = False
    parts, first = [], 0
    for shard, rows in Dataset(*open_uri(uri), manifest).spaced_rows("train", limit):
        parts.append({"shard": manifest.shards("train").index(shard), "rows": rows, "first": first})
        first += len(rows)
    encode = partial(_encode, run=run, uri=uri, manifest=manifest, environment=exported_env())
    listed = ray.data.from_items(parts, override_num_blocks=len(parts))
    found = listed.map_batches(encode, batch_size=1, num_cpus=1, num_gpus=1 if has_gpu() else 0)
    with unwrap_value_errors():
        pieces = sorted(found.iter_rows(), key=lambda piece: piece["first"])
    mean = torch.from_numpy(np.concatenate([piece["mean"] for piece in pieces]))
    logvar = [piece["logvar"] for piece in pieces]
    return DiagonalGaussian(mean, torch.from_numpy(np.concatenate(logvar)) if len(logvar[0]) else None)


def _encode(part: Any, run: str, uri: str, manifest: Manifest, environment: dict[str, str]) -> dict[str, Any]:
    """What the encoder answers to some rows of a shard."""
    from aecore.analysis import encode_images
    from aecore.model.autoencoder import default_device
    from aecore.training.checkpoint import load_model

    apply_env(environment)
    fs, root = open_uri(run)
    # Each time: it is little beside a shard, and never an older one.
    saved = load_model(fs, f"{root}/model", default_device())
    shard, first = manifest.shards("train")[int(part["shard"][0])], int(part["first"][0])
    images = Dataset(*open_uri(uri), manifest).decode_shard(shard, part["rows"][0])
    latent = encode_images(saved, images, first)
    logvar = np.empty((0,), np.float32) if latent.logvar is None else latent.logvar.numpy()
    return {"first": [first], "mean": [latent.mean.numpy()], "logvar": [logvar]}
