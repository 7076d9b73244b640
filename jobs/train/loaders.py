"""The image loaders of a training worker: node cache, GPU memory or a stream, as `data.cache` of the recipe says."""

from functools import partial
from typing import TYPE_CHECKING

from aecore.config import Recipe
from aecore.data.dataset import Dataset
from aecore.data.splits import SPLITS
from cluster.progress import ProgressCallback, no_progress
from cluster.settings import settings

if TYPE_CHECKING:
    import torch

    from aecore.data.loaders import Loader
    from aecore.data.shuffle import World


def open_loaders(
    recipe: Recipe, dataset: Dataset, world: "World", device: "torch.device",
    show_progress: ProgressCallback = no_progress, on_ray: bool = False,
) -> dict[str, "Loader"]:  # fmt: skip
    """Return a loader for each split, an empty one for a split that the dataset lacks.

    With `data.cache=none` a worker of Ray Train streams its shard of Ray Data; any other process must be the only
    worker and reads the shards itself. Raises ValueError if the images exceed the cache or the GPU's memory.
    """
    import numpy as np

    from aecore.data.loaders import DeviceLoader, NodeLoader, StreamLoader
    from aecore.data.node_cache import open_cache
    from aecore.data.shard_stream import iter_shards
    from aecore.data.shuffle import BatchSampler

    sampler = BatchSampler(recipe.optim.seed, recipe.optim.batch, world)

    def open_loader(split: str) -> "Loader":
        if not dataset.manifest.splits.get(split):
            return NodeLoader(np.empty((0, *dataset.image_shape), np.uint8), sampler, device)
        if recipe.data.cache == "none":
            if on_ray:
                import ray.train

                from jobs.ray_data import iter_stream

                stream = partial(iter_stream, ray.train.get_dataset_shard(split))
            else:
                assert world.size == 1
                stream = partial(iter_shards, dataset, split, sampler.seed)
            return StreamLoader(stream, partial(dataset.images, split), dataset.count(split), sampler, device)

        def show_filled(rows: int) -> None:
            show_progress(rows, dataset.count(split), f"filling the node cache: {split}")

        images = open_cache(settings().cache, dataset, split, show_filled, settings().cache_max)
        on_device = fits_device(recipe.data.cache, images.nbytes, device)
        return (DeviceLoader if on_device else NodeLoader)(images, sampler, device)

    return {split: open_loader(split) for split in SPLITS}


def fits_device(cache: str, nbytes: int, device: "torch.device") -> bool:
    """Return if `nbytes` of images go to the device's memory; "auto" fills at most half of what is free.

    Raises ValueError if `cache` is "device" and they do not fit.
    """
    import torch

    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    if cache == "device" and nbytes > free:
        raise ValueError(
            f"data.cache=device: a split takes {nbytes / 1e9:.1f} GB and the GPU has {free / 1e9:.1f} GB free "
            "(0 without a GPU): set data.cache=auto or node"
        )
    return cache == "device" or (cache == "auto" and nbytes <= free // 2 and free > 0)
