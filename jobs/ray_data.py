"""`data.cache: none` on Ray: Ray Data's tasks read, check and decode the shards while the workers train.

Imported only by a training that streams or a study that encodes a large set: it needs ray.data.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import ray.data
from ray.data import DataContext, RandomSeedConfig
from ray.exceptions import UserCodeException
from ray.train import DataConfig

from aecore.config import Recipe
from aecore.data.dataset import Dataset
from aecore.data.shards import Manifest
from cluster.settings import apply_env, exported_env

PADDING = -1  # the shard index of rows that only make the number of rows divisible by that of workers


def streaming_datasets(recipe: Recipe, manifest: Manifest) -> dict[str, Any]:
    """Return TorchTrainer's `datasets`, which are lists of shards, and its `dataset_config`, which decodes them."""
    DataContext.get_current().enable_progress_bars = False
    rows = {
        split: [{"split": split, "shard": index, "rows": shard.rows} for index, shard in enumerate(shards)]
        for split, shards in manifest.splits.items()
        if shards
    }
    datasets = {split: ray.data.from_items(r, override_num_blocks=len(r)) for split, r in rows.items()}
    return {"datasets": datasets, "dataset_config": DecodingDataConfig(recipe, manifest)}


class DecodingDataConfig(DataConfig):
    """Decodes lists of shards, and splits the images evenly among the workers."""

    def __init__(self, recipe: Recipe, manifest: Manifest) -> None:
        super().__init__()
        self.manifest, self.seed = manifest, recipe.optim.seed
        self.decode = partial(_decode, manifest=manifest, uri=recipe.data.uri, env=exported_env())

    def configure(self, datasets: dict[str, ray.data.Dataset], world_size: int, *args: Any, **kwargs: Any) -> Any:
        """Replace shard lists by their images; Ray Train calls this whenever it starts a group of workers."""
        images = {split: self._images(split, shards, world_size) for split, shards in datasets.items()}
        return super().configure(images, world_size, *args, **kwargs)

    def _images(self, split: str, shards: ray.data.Dataset, world_size: int) -> ray.data.Dataset:
        # An even split drops the remainder: padding makes the number of rows divisible.
        if remainder := -self.manifest.count(split) % world_size:
            shards = shards.union(ray.data.from_items([{"split": split, "shard": PADDING, "rows": remainder}]))
        order = RandomSeedConfig(seed=self.seed, reseed_after_execution=True)  # another order in each epoch
        return shards.randomize_block_order(seed=order).map_batches(self.decode, batch_size=1)


def iter_stream(shard: Any, epoch: int | None) -> Iterator[np.ndarray]:
    """Yield this worker's images of a split from `shard`, its `ray.train.get_dataset_shard`; a call is an epoch.

    Yields uint8 arrays (n, size, size, channels). Raises ValueError that names a damaged shard.
    """
    with unwrap_value_errors():
        for batch in shard.iter_batches(batch_size=None, batch_format="numpy"):
            yield batch["image"][~batch["padding"]]


@contextmanager
def unwrap_value_errors() -> Iterator[None]:
    """Raise a task's ValueError as one, with its own line alone, in place of Ray Data's UserCodeException."""
    try:
        yield
    except UserCodeException as error:  # its cause is lost on the way from the task, except for the text
        if match := re.search(r"^ValueError: (.+)$", str(error), re.MULTILINE):
            raise ValueError(match[1]) from error
        raise


def _decode(batch: Any, manifest: Manifest, uri: str, env: dict[str, str]) -> dict[str, np.ndarray]:
    """Return the images of one shard, or zeros for padding rows, and which of them are padding."""
    from cluster.storage import open_uri

    apply_env(env)
    split, shard, rows = str(batch["split"][0]), int(batch["shard"][0]), int(batch["rows"][0])
    dataset = Dataset(*open_uri(uri), manifest)
    if shard == PADDING:
        images = np.zeros((rows, *dataset.image_shape), np.uint8)
    else:
        images = dataset.decode_shard(dataset.shards(split)[shard])
    return {"image": images, "padding": np.full(rows, shard == PADDING)}
