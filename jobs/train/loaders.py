"""Where a training's images come from: the node cache, the GPU's memory, or a stream (`data.cache` of the recipe)."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from aecore.config import Recipe
from aecore.data.dataset import Dataset
from aecore.data.splits import SPLITS
from cluster.settings import settings

if TYPE_CHECKING:
    import torch

    from aecore.data.loaders import Loader
    from aecore.data.shuffle import World

ShardOf = Callable[[str], Any]  # ray.train.get_dataset_shard
ProgressCallback = Callable[[int, int, str], None]  # takes how much is done, of how much, and what else there is to say


def open_loaders(
    recipe: Recipe, dataset: Dataset, world: "World", device: "torch.device",
    shard_of: ShardOf | None = None, show: ProgressCallback = lambda done, total, text: None,
) -> dict[str, "Loader"]:  # fmt: skip
    """A feed for each split, empty for one that the dataset lacks.

    A stream comes through Ray Data where `shard_of` gives this worker's share of a split; else this process, which
    must be the only worker, reads the shards itself. Raises ValueError where the images do not fit in.
    """
    import numpy as np

    from aecore.data.loaders import DeviceLoader, NodeLoader, StreamLoader
    from aecore.data.node_cache import open_cache
    from aecore.data.shard_stream import iter_shards
    from aecore.data.shuffle import BatchSampler

    order = BatchSampler(recipe.optim.seed, recipe.optim.batch, world)

    def open_feed(split: str) -> "Loader":
        if not dataset.manifest.splits.get(split):
            return NodeLoader(np.empty((0, *dataset.image_shape), np.uint8), order, device)
        if recipe.data.cache == "none":
            assert shard_of or world.size == 1
            if shard_of:
                from jobs.ray_data import pour_shard

                share = partial(pour_shard, shard_of(split))
            else:
                share = partial(iter_shards, dataset, split, order.seed)
            few = partial(dataset.images, split)
            return StreamLoader(share, few, dataset.count(split), order, device)
        total, text = dataset.count(split), f"filling the node cache: {split}"
        filled: Callable[[int], None] = lambda done: show(done, total, text)  # noqa: E731
        images = open_cache(settings().cache, dataset, split, filled, settings().cache_max)
        feed = DeviceLoader if in_device(recipe.data.cache, images.nbytes, device) else NodeLoader
        return feed(images, order, device)

    return {split: open_feed(split) for split in SPLITS}


def in_device(cache: str, size: int, device: "torch.device") -> bool:
    """Whether images of `size` bytes go to the device's memory. Raises ValueError when they should and cannot."""
    import torch

    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    if cache == "device" and size > free:
        raise ValueError(
            f"data.cache=device: a split takes {size / 1e9:.1f} GB and the training's GPU has {free / 1e9:.1f} GB free "
            "(none, where there is no GPU): take auto or node"
        )
    return cache == "device" or (cache == "auto" and size <= free // 2 and free > 0)
