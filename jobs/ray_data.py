"""`data.cache: none` on Ray: shards are read, checked and decoded by Ray Data's tasks while the workers train.

Imported only where a training streams or a study encodes a large set: it needs ray.data.
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


def ray_streams(recipe: Recipe, manifest: Manifest) -> dict[str, Any]:
    """What Ray's TorchTrainer takes: lists of the splits' shards, and how they become images."""
    DataContext.get_current().enable_progress_bars = False
    parts = {
        split: [{"split": split, "number": number, "rows": shard.rows} for number, shard in enumerate(shards)]
        for split, shards in manifest.splits.items()
    }
    datasets = {split: ray.data.from_items(p, override_num_blocks=len(p)) for split, p in parts.items() if p}
    return {"datasets": datasets, "dataset_config": Shares(recipe, manifest)}


class Shares(DataConfig):
    """Turns lists of shards into images, in as many equal shares as there are workers."""

    def __init__(self, recipe: Recipe, manifest: Manifest) -> None:
        super().__init__()
        self.manifest, self.seed = manifest, recipe.optim.seed
        self.decode = partial(_decode, manifest=manifest, uri=recipe.data.uri, environment=exported_env())

    def configure(self, datasets: dict[str, ray.data.Dataset], world_size: int, *args: Any, **kwargs: Any) -> Any:
        """Called by Ray Train whenever it starts a group of workers."""
        images = {split: self._images(split, parts, world_size) for split, parts in datasets.items()}
        return super().configure(images, world_size, *args, **kwargs)

    def _images(self, split: str, parts: ray.data.Dataset, world_size: int) -> ray.data.Dataset:
        # Equal shares leave out what is over: rows that do not count make the number of rows come out even.
        if extra := -self.manifest.count(split) % world_size:
            parts = parts.union(ray.data.from_items([{"split": split, "number": -1, "rows": extra}]))
        order = RandomSeedConfig(seed=self.seed, reseed_after_execution=True)  # another one in each epoch
        return parts.randomize_block_order(seed=order).map_batches(self.decode, batch_size=1)


def pour_shard(shard: Any, epoch: int | None) -> Iterator[np.ndarray]:
    """This worker's share of a split, from what `ray.train.get_dataset_shard` gives; each call is the next epoch.

    Raises ValueError naming a damaged shard.
    """
    with plain_errors():
        for batch in shard.iter_batches(batch_size=None, batch_format="numpy"):
            yield batch["image"][batch["real"]]


@contextmanager
def plain_errors() -> Iterator[None]:
    """A ValueError of a task of Ray Data's stays one, with its own line alone."""
    try:
        yield
    except UserCodeException as error:  # on its way from the task it lost its cause, but for the text
        if found := re.search(r"^ValueError: (.+)$", str(error), re.MULTILINE):
            raise ValueError(found[1]) from error
        raise


def _decode(part: Any, manifest: Manifest, uri: str, environment: dict[str, str]) -> dict[str, np.ndarray]:
    """The images of one shard; of number -1, rows that do not count."""
    from cluster.storage import open_uri

    apply_env(environment)
    dataset = Dataset(*open_uri(uri), manifest)
    split, number, rows = str(part["split"][0]), int(part["number"][0]), int(part["rows"][0])
    if number < 0:
        images = np.zeros((rows, *dataset.image_shape), np.uint8)
    else:
        images = dataset.decode_shard(dataset.shards(split)[number])
    return {"image": images, "real": np.full(rows, number >= 0)}
